"""Nobody gets at the daemon's memory by a child that was given to another user."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import pytest

from sysup.process import OS
from tests.process.real import NOBODY, ended, launch, needs_root

BIRTHS = 3000
SPY = """
import os, sys
ours = sys.argv[1]
print("spying", flush=True)
while True:
    with open("/proc/sys/kernel/ns_last_pid") as file:
        last = int(file.read())
    for pid in {last, last + 1} - {os.getpid()}:
        for _ in range(50):
            try:
                program = os.readlink(f"/proc/{pid}/exe")  # asks for what ptrace(2) does
            except OSError:
                continue
            if program == ours:
                print(f"{pid} is {program}", flush=True)
                sys.exit()
"""


@pytest.fixture
def spy() -> Iterator[subprocess.Popen[str]]:
    """One of the child's new user, which looks whether a new process can be looked into while it
    is what we are."""
    own = os.readlink("/proc/self/exe")
    with subprocess.Popen(
        ["/usr/bin/python3", "-c", SPY, own],
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


@needs_root
def test_the_childs_user_never_sees_us_in_it(system: OS, spy: subprocess.Popen[str]) -> None:
    launcher = system.launcher(launch("true", uid=NOBODY, gid=NOBODY, groups=()))
    for _ in range(BIRTHS):
        ended(system, launcher.spawn())
    assert spy.poll() is None, spy.communicate()[0]
