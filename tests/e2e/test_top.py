"""sysupctl top on a terminal: it shows what runs, and gives the terminal back, however it ends."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.conftest import Start
from tests.e2e.harness import PATIENCE, PROGRAMS, Daemon, until

INI = """\
[watcher:web]
cmd = sleep 1000
numprocesses = 3

[watcher:db]
cmd = sleep 1000
"""
LEAVE = b"\x1b[?25h\x1b[?1049l"
"""The cursor is there, and the screen that was before."""


def take_terminal() -> None:
    """As a shell has a command in the foreground; a job in its background ignores SIGINT."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Terminal:
    """A terminal of a size, and sysupctl top on it."""

    def __init__(self, daemon: Daemon, *args: str, lines: int = 20, columns: int = 120) -> None:
        self._leader, self._follower = pty.openpty()
        self.resize(lines, columns)
        self.before = termios.tcgetattr(self._follower)
        self.shown = b""
        self.process = subprocess.Popen(
            [str(PROGRAMS / "sysupctl"), "-a", daemon.app, "top", *args],
            stdin=self._follower,
            stdout=self._follower,
            stderr=self._follower,
            env={**daemon.env, "TERM": "xterm", "LANG": "C.UTF-8"},
            start_new_session=True,
            preexec_fn=take_terminal,
        )

    def resize(self, lines: int, columns: int) -> None:
        size = struct.pack("HHHH", lines, columns, 0, 0)
        fcntl.ioctl(self._leader, termios.TIOCSWINSZ, size)

    def press(self, keys: bytes) -> None:
        self.shown = b""
        os.write(self._leader, keys)

    def wait_for(self, *words: bytes) -> None:
        deadline = time.monotonic() + PATIENCE
        while not all(word in self.shown for word in words):
            assert time.monotonic() < deadline, self.shown
            self._read(0.2)

    def _read(self, timeout: float) -> bool:
        """What has come, a part at a time; whether there was any."""
        is_there = bool(select.select([self._leader], [], [], timeout)[0])
        if is_there:
            self.shown += os.read(self._leader, 65536)
        return is_there

    def end(self) -> int:
        """Its exit status; then the terminal is as before."""

        def has_ended() -> bool:
            self._read(0.01)
            return self.process.poll() is not None

        until(has_ended, "it ends")
        while self._read(0.0):
            pass
        assert termios.tcgetattr(self._follower) == self.before
        assert self.shown.endswith(LEAVE)
        return self.process.returncode

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._leader)
        os.close(self._follower)


@pytest.fixture
def daemon(sysupd: Start) -> Daemon:
    return sysupd(INI)


@pytest.fixture
def terminal(daemon: Daemon) -> Iterator[Terminal]:
    terminal = Terminal(daemon)
    yield terminal
    terminal.close()


def test_processes_are_shown_and_q_is_enough(daemon: Daemon, terminal: Terminal) -> None:
    pids = [*daemon.pids("web"), *daemon.pids("db")]
    terminal.wait_for(b"\x1b[?1049h", b"4 processes", b"db.1", b"web.3", *(b"%d" % p for p in pids))
    terminal.press(b"n")
    terminal.wait_for(b"by name")
    terminal.press(b"r")
    terminal.wait_for(b"by name reversed")
    terminal.press(b"q")
    assert terminal.end() == 0


def test_new_processes_come_and_old_ones_go(daemon: Daemon, terminal: Terminal) -> None:
    terminal.wait_for(b"4 processes")
    daemon.call("incr", name="web", nb=2, waiting=True)
    terminal.wait_for(b"6 processes", b"web.5")
    daemon.call("stop", name="web", waiting=True)
    terminal.wait_for(b"1 process,")


@pytest.mark.parametrize(
    ("signum", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 0)]
)
def test_a_signal_ends_it_cleanly(terminal: Terminal, signum: int, status: int) -> None:
    terminal.wait_for(b"4 processes")
    terminal.process.send_signal(signum)
    assert terminal.end() == status


def test_control_c(terminal: Terminal) -> None:
    terminal.wait_for(b"4 processes")
    terminal.press(b"\x03")
    assert terminal.end() == 0


def test_it_pauses_and_goes_on(terminal: Terminal) -> None:
    terminal.wait_for(b"4 processes")
    terminal.process.send_signal(signal.SIGTSTP)
    terminal.wait_for(LEAVE)
    assert os.waitid(os.P_PID, terminal.process.pid, os.WSTOPPED | os.WNOWAIT)
    terminal.shown = b""
    terminal.process.send_signal(signal.SIGCONT)
    terminal.wait_for(b"\x1b[?1049h", b"4 processes")
    terminal.press(b"q")
    assert terminal.end() == 0


def test_it_follows_the_size(terminal: Terminal) -> None:
    terminal.wait_for(b"sort: c cpu", b"web.3")
    terminal.shown = b""
    terminal.resize(6, 30)
    terminal.wait_for(b"sort: c cpu  m mem  t time  a \x1b")
    terminal.press(b"q")
    assert terminal.end() == 0


def test_a_daemon_that_ends_is_told_of(daemon: Daemon, terminal: Terminal) -> None:
    terminal.wait_for(b"4 processes")
    daemon.stop()
    terminal.wait_for(b"sysupd has gone")
    terminal.press(b"q")
    assert terminal.end() == 0


# ---- elsewhere ---------------------------------------------------------------------------


def top(daemon: Daemon, *args: str) -> list[str]:
    done = daemon.ctl("top", *args)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_in_a_pipe_it_is_a_table(daemon: Daemon) -> None:
    head, *rows = top(daemon, "web", "--sort", "pid")
    assert head.split()[:2] == ["NAME", "PID"]
    assert [int(row.split()[1]) for row in rows] == sorted(daemon.pids("web"))
    reply: Any = json.loads("".join(top(daemon, "--json")))
    assert len(reply["processes"]) == 4
    assert reply["daemon"]["pid"] == daemon.pid
    assert len(top(daemon, "db", "-n", "2")) == 4


def test_an_upgrade_is_outlived(daemon: Daemon) -> None:
    """The new daemon hears anew who subscribes."""
    sysupctl = str(PROGRAMS / "sysupctl")
    command = [sysupctl, "-a", daemon.app, "--timeout=60", "top", "-n", "1000"]
    with subprocess.Popen(command, env=daemon.env, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        daemon.upgrade()
        daemon.call("stop", name="web", waiting=True)
        daemon.call("incr", name="db", nb=4, waiting=True)
        while b"db.5" not in process.stdout.readline():
            pass
        process.kill()
