"""A program that does not answer: its process is on the way, and nobody waits for it."""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Start
from tests.e2e.harness import PATIENCE, Daemon, command_line, until


class Withheld:
    """A program that nobody can open until `give`, or for 45 s (F_SETLEASE, fcntl(2))."""

    def __init__(self, path: Path) -> None:
        path.write_text("#!/usr/bin/tail -f\n")
        path.chmod(0o755)
        self.path = path
        self._fd = os.open(path, os.O_RDONLY)
        fcntl.fcntl(self._fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)

    def give(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


@pytest.fixture
def withheld(tmp_path: Path) -> Iterator[Withheld]:
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)  # that somebody waits
    held = Withheld(tmp_path / "held")
    yield held
    held.give()
    signal.signal(signal.SIGIO, before)


def ini(withheld: Withheld) -> str:
    return f"[watcher:held]\ncmd = {withheld.path}\n[watcher:good]\ncmd = sleep 1000\n"


def process(daemon: Daemon) -> dict[str, Any]:
    found = daemon.call("status", processes=True)["watchers"]["held"]["processes"]
    return dict(found[0]) if found else {}


def test_others_start_and_it_is_stopped(sysupd: Start, withheld: Withheld) -> None:
    daemon = sysupd(ini(withheld), wait=False)
    until(lambda: daemon.call("status")["statuses"]["good"] == "active", "others start")
    born = process(daemon)
    assert born["state"] == "starting"
    assert daemon.call("restart", name="good", waiting=True)["status"] == "ok"
    assert daemon.call("stop", name="held", waiting=True)["status"] == "ok"
    assert not os.path.exists(f"/proc/{born['pid']}")
    assert daemon.stop() == 0


def test_an_upgrade_meanwhile(sysupd: Start, withheld: Withheld) -> None:
    """The process shares the memory of what the daemon was, and goes on."""
    daemon = sysupd(ini(withheld), wait=False)
    until(lambda: process(daemon).get("state") == "starting", "it is on the way")
    pid = process(daemon)["pid"]
    daemon.upgrade()
    assert process(daemon)["pid"] == pid
    withheld.give()
    until(lambda: command_line(pid).startswith("/usr/bin/tail"), "it executes its program")
    assert process(daemon)["state"] == "running"
    assert daemon.stop() == 0


def test_a_kill_of_the_daemon_meanwhile(sysupd: Start, withheld: Withheld) -> None:
    """The process holds nothing: the next daemon gets the lock, and ends what was left."""
    first = sysupd(ini(withheld), wait=False)
    until(lambda: process(first).get("state") == "starting", "it is on the way")
    pid = process(first)["pid"]
    os.kill(first.pid, signal.SIGKILL)
    first.process.wait(PATIENCE)
    second = sysupd(ini(withheld), wait=False)
    until(lambda: process(second).get("state") == "starting", "the next one runs")
    assert process(second)["pid"] != pid
    until(lambda: not command_line(pid), "what was left is ended")
    assert second.stop() == 0
