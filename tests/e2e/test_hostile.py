"""What a stranger on the machine may have put in our way."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.e2e.conftest import Start
from tests.e2e.harness import PATIENCE, until

GOOD = "[watcher:good]\ncmd = sleep 100\n"


def test_a_runtime_directory_that_others_may_change_is_refused(
    sysupd: Start, tmp_path: Path
) -> None:
    base = tmp_path / "open"
    base.mkdir()
    base.chmod(0o777)
    daemon = sysupd(GOOD, env={"SYSUP_RUNTIME_DIR": str(base)}, wait=False)
    assert daemon.process.wait(PATIENCE) == 1
    assert f"cannot use {base}: others may replace what is in it" in daemon.log()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_runtime_directory_that_a_stranger_made_is_refused(sysupd: Start, tmp_path: Path) -> None:
    base = tmp_path / "theirs"
    base.mkdir()
    os.chown(base, 12345, -1)
    daemon = sysupd(GOOD, env={"SYSUP_RUNTIME_DIR": str(base)}, wait=False)
    assert daemon.process.wait(PATIENCE) == 1
    assert f"cannot use {base}" in daemon.log()


def test_a_pidfile_is_not_written_through_a_link(sysupd: Start, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("do not touch\n")
    (tmp_path / "pid").symlink_to(precious)
    daemon = sysupd(f"[sysup]\npidfile = {tmp_path}/pid\n{GOOD}", wait=False)
    assert daemon.process.wait(PATIENCE) == 1
    assert f"cannot write {tmp_path}/pid" in daemon.log()
    assert precious.read_text() == "do not touch\n"


def test_a_pidfile_that_is_withheld_or_none_is_not_waited_for(
    sysupd: Start, tmp_path: Path
) -> None:
    """By a lease of its owner, who is nobody that must let go (F_SETLEASE, fcntl(2))."""
    pidfile = tmp_path / "pid"
    ini = f"[sysup]\npidfile = {pidfile}\n{GOOD}"
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)
    with pidfile.open("w+") as file:
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        withheld = sysupd(ini, wait=False)
        assert withheld.process.wait(PATIENCE) == 1
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    signal.signal(signal.SIGIO, before)
    assert f"cannot write {pidfile}: Resource temporarily unavailable" in withheld.log()
    pidfile.unlink()
    os.mkfifo(pidfile)
    fifo = sysupd(ini, wait=False)
    assert fifo.process.wait(PATIENCE) == 1
    assert f"cannot write {pidfile}: " in fifo.log()
    assert "None" not in fifo.log()


def test_a_pidfile_of_the_living_is_respected_and_one_of_the_dead_is_not(
    sysupd: Start, tmp_path: Path
) -> None:
    pidfile = tmp_path / "pid"
    pidfile.write_text(f"{os.getpid()}\n")
    ini = f"[sysup]\npidfile = {pidfile}\n{GOOD}"
    refused = sysupd(ini, wait=False)
    assert refused.process.wait(PATIENCE) == 1
    assert f"process {os.getpid()} is named there and alive" in refused.log()
    pidfile.write_text(f"{refused.pid}\nand more of it\n")
    daemon = sysupd(ini)
    assert pidfile.read_text() == f"{daemon.pid}\n"
    daemon.stop()
    assert not pidfile.exists()


def test_an_owner_that_there_is_not_costs_only_the_gift(sysupd: Start, tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/own"
    daemon = sysupd(f"[sysup]\nendpoint = {endpoint}\nendpoint_owner = nobody-such\n{GOOD}")
    daemon.says(f"cannot give {endpoint} to nobody-such")
    assert daemon.status("good") == "active"


FUGITIVE = r"""
#include <fcntl.h>
#include <stdlib.h>
#include <sys/file.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    if (argc > 2 && getenv("SYSUP_PROCESS"))
        return execve(argv[0], argv, (char *[]){NULL});
    int lock = open(argv[1], O_RDWR | O_CREAT, 0600);
    if (lock < 0 || flock(lock, LOCK_EX) < 0 || write(1, "on the run\n", 11) < 0)
        return 1;
    if (fork())
        pause();
    while (fork() <= 0)
        setsid();
}
"""
"""Flees from child to child, each in a session of its own; all share the lock to the last."""


def is_locked(path: Path) -> bool:
    with path.open("r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@pytest.mark.parametrize("hides", [False, True], ids=["marked", "hidden"])
def test_what_flees_from_child_to_child_is_caught(
    sysupd: Start, tmp_path: Path, hides: bool
) -> None:
    """By the stop; and by the daemon's end, if it has hidden its marker."""
    program, lock = tmp_path / "fugitive", tmp_path / "lock"
    compile_ = ["gcc", "-O2", "-x", "c", "-", "-o", str(program)]
    subprocess.run(compile_, input=FUGITIVE, text=True, check=True)
    daemon = sysupd(f"[watcher:w]\ncmd = {program} {lock}{' hide' if hides else ''}\n{GOOD}")
    until(lambda: "on the run" in daemon.log(), "it flees")
    assert is_locked(lock)
    if hides:
        assert daemon.stop() == 0
    else:
        assert daemon.call("stop", name="w", waiting=True)["status"] == "ok"
    assert not is_locked(lock)
