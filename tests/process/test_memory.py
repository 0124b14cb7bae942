"""Nobody gets at the daemon's memory, or its keys, by a child that was given to another user."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sysup.process import OS
from tests.process.real import NOBODY, born, ended, launch, needs_root, output

BIRTHS = 3000
SPY = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    char name[32], program[4096];
    puts("spying");
    fflush(stdout);
    for (int last = 0; argc > 1;) {
        FILE *file = fopen("/proc/sys/kernel/ns_last_pid", "r");
        if (!file || fscanf(file, "%d", &last) != 1)
            return 1;
        fclose(file);
        for (int look = 0; look < 400; look++) {
            int pid = last + look % 2;
            snprintf(name, sizeof name, "/proc/%d/exe", pid); /* asks for what ptrace(2) does */
            ssize_t size = readlink(name, program, sizeof program - 1);
            program[size > 0 ? size : 0] = 0;
            if (strcmp(program, argv[1]) == 0) {
                printf("%d is %s\n", pid, program);
                return 0;
            }
        }
    }
}
"""


@pytest.fixture
def spy() -> Iterator[subprocess.Popen[str]]:
    """One of the child's new user, which looks whether a new process can be looked into while it
    is what we are."""
    directory = Path(tempfile.mkdtemp(prefix="sysup-spy-"))
    program = directory / "spy"
    command = ["gcc", "-O2", "-x", "c", "-", "-o", str(program)]
    subprocess.run(command, input=SPY, text=True, check=True)
    directory.chmod(0o755)
    with subprocess.Popen(
        [program, os.readlink("/proc/self/exe")],
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "spying\n"
        try:
            yield process
        finally:
            process.kill()
            shutil.rmtree(directory)


@needs_root
def test_the_childs_user_never_sees_us_in_it(system: OS, spy: subprocess.Popen[str]) -> None:
    """By chance: where both have a processor of their own, one birth in thirty shows a fault."""
    launcher = system.launcher(launch("true", uid=NOBODY, gid=NOBODY, groups=()))
    for _ in range(BIRTHS):
        ended(system, born(system, launcher.spawn()))
    assert spy.poll() is None, spy.communicate()[0]


CALLS = {"x86_64": (248, 250), "aarch64": (217, 219)}
"""Numbers of add_key(2) and keyctl(2)."""
SESSION_KEYRING = -3
JOIN_SESSION_KEYRING = 1


def have_a_key(name: bytes) -> None:
    """In a session keyring of its own, as a login has one."""
    add_key, keyctl = CALLS[platform.machine()]
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(keyctl, JOIN_SESSION_KEYRING, None) < 0:
        raise OSError(ctypes.get_errno(), "no keyring")
    if libc.syscall(add_key, b"user", name, b"x", ctypes.c_size_t(1), SESSION_KEYRING) < 0:
        raise OSError(ctypes.get_errno(), "no key")


def tell_of_keys() -> None:
    """Print what keys a child of this user sees, and one of another user; run by the test below."""
    have_a_key(b"sysup-test")
    for who in (NOBODY, None):
        print("sysup-test" in output(OS(), launch("cat", "/proc/keys", uid=who)))


@needs_root
@pytest.mark.skipif(platform.machine() not in CALLS, reason="the calls' numbers are not known")
def test_another_user_does_not_get_our_keys() -> None:
    program = f"from {__name__} import tell_of_keys; tell_of_keys()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    if "no key" in done.stderr:
        pytest.skip("there are no keyrings here")
    assert (done.stdout, done.stderr) == ("False\nTrue\n", "")
