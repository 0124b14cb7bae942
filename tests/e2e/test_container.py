"""sysupd as the first process of a container: no systemd, and nobody else who buries the dead."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress

import pytest

from tests.e2e.conftest import Start
from tests.e2e.harness import PATIENCE, Daemon, children, descendants, until

CONTAINER = [
    *("unshare", "--pid", "--fork", "--kill-child", "--mount-proc"),
    *(["--map-root-user"] if os.geteuid() else []),
]
ORPHANS = """[watcher:parent]
cmd = sh -c '(sh -c "exit 3" &); (setsid sleep 1000 &); exec sleep 1000'
"""

Contain = Callable[[str], Daemon]


@pytest.fixture
def contained(sysupd: Start) -> Contain:
    """Start a daemon that is process 1 of its own namespace."""
    return lambda ini: sysupd(ini, inside=CONTAINER)


def first(daemon: Daemon) -> int:
    """The daemon's pid out here."""
    (pid,) = children(daemon.pid)
    return pid


def zombies(pid: int) -> list[int]:
    found = []
    for child in children(pid):
        with suppress(FileNotFoundError), open(f"/proc/{child}/stat") as stat:
            if stat.read().rpartition(")")[2].split()[0] == "Z":
                found.append(child)
    return found


def test_an_app_as_process_1(contained: Contain) -> None:
    daemon = contained(f"{ORPHANS}[watcher:web]\ncmd = sleep 1000\nnumprocesses = 3\n")
    pid = first(daemon)
    with open(f"/proc/{pid}/status") as status:
        assert f"NSpid:\t{pid}\t1\n" in status.read()
    until(lambda: len(descendants(pid)) == 5, "all run, and the one that fled")
    until(lambda: not zombies(pid), "who was left to process 1 is buried")
    assert daemon.ctl("status").returncode == 0
    daemon.ctl("stop", "parent")
    until(lambda: len(descendants(pid)) == 3, "what fled was found")
    os.kill(pid, signal.SIGTERM)
    assert daemon.process.wait(PATIENCE) == 0
    assert "ending" in daemon.log()


def test_a_container_that_was_killed_starts_again(contained: Contain) -> None:
    """What the file tells of is of another namespace, where the same numbers are others'."""
    for _ in range(3):
        daemon = contained("[watcher:web]\ncmd = sleep 1000\nnumprocesses = 3\n")
        pid = first(daemon)
        until(lambda: len(descendants(pid)) == 3, "all run")  # noqa: B023
        os.kill(pid, signal.SIGKILL)
        daemon.process.wait(PATIENCE)
        assert "that the daemon before left" not in daemon.log()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGQUIT])
def test_it_ends_by_each_signal(contained: Contain, signum: int) -> None:
    """The kernel gives process 1 only the signals that it asks for."""
    daemon = contained("[watcher:web]\ncmd = sleep 1000\n")
    os.kill(first(daemon), signum)
    assert daemon.process.wait(PATIENCE) == 0
