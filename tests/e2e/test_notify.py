"""What a real daemon tells systemd, whose end of NOTIFY_SOCKET is here.

A thread of the daemon is wedged by ptrace(2), as a debugger stops one: the others go on. What
the tests see then is that no sign of life comes, and the log says why.
"""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.e2e.conftest import Start
from tests.e2e.harness import PATIENCE, until
from tests.e2e.wedge import threads, wedged

WEB = "[watcher:web]\ncmd = sleep 1000\nnumprocesses = 2\n"
INTERVAL = 0.5


class Manager:
    """The service manager's end: what it was told, in order."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.seen: list[str] = []

    def env(self, interval: float | None = None) -> dict[str, str]:
        env = {"NOTIFY_SOCKET": str(self.path)}
        return env if interval is None else {**env, "WATCHDOG_USEC": str(round(interval * 1e6))}

    def receive(self, timeout: float) -> list[str]:
        """The lines of the next message; empty if none comes."""
        self.socket.settimeout(timeout)
        try:
            lines = self.socket.recv(4096).decode().split("\n")
        except TimeoutError:
            return []
        self.seen += lines
        return lines

    def wait_for(self, line: str) -> list[str]:
        """All lines up to this one, itself not."""
        passed: list[str] = []
        deadline = time.monotonic() + PATIENCE
        while (left := deadline - time.monotonic()) > 0:
            lines = self.receive(left)
            if line in lines:
                return passed
            passed += lines
        raise AssertionError(f"no {line!r} among {self.seen}")

    def is_silent(self, seconds: float) -> bool:
        """Whether no sign of life comes for so long."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if "WATCHDOG=1" in self.receive(left):
                return False
        return True

    def drain(self) -> None:
        """Take what was sent until now."""
        while self.receive(0.000001):
            pass


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    made = Manager(tmp_path / "notify")
    yield made
    made.socket.close()


# ---- life --------------------------------------------------------------------------------


def test_a_life(sysupd: Start, manager: Manager) -> None:
    daemon = sysupd(WEB, env=manager.env())
    manager.wait_for("READY=1")
    manager.wait_for("STATUS=2/2 ready")
    daemon.stop()
    manager.wait_for("STOPPING=1")
    manager.wait_for("STATUS=stopping: 2 processes left")


def test_ready_is_when_the_slowest_is(sysupd: Start, manager: Manager) -> None:
    sysupd(f"{WEB}ready = uptime:2\n", env=manager.env())
    manager.wait_for("STATUS=starting: 0/2 ready")
    assert "EXTEND_TIMEOUT_USEC=32000000" in manager.seen
    assert "READY=1" not in manager.seen
    manager.wait_for("READY=1")


def test_a_crash_loop_is_shown_and_holds_nobody_up(sysupd: Start, manager: Manager) -> None:
    bad = "[watcher:bäd]\ncmd = sh -c 'exit 3'\n"
    sysupd(WEB + bad, env=manager.env())
    manager.wait_for("READY=1")
    manager.wait_for("STATUS=2/3 ready, 1 flapping: bäd.1 exit code 3")


@pytest.mark.parametrize(("more", "word"), [("", ""), ("nonsense", "nonsense")])
def test_a_reload(sysupd: Start, manager: Manager, more: str, word: str) -> None:
    daemon = sysupd(WEB, env=manager.env())
    manager.wait_for("READY=1")
    daemon.file.write_text(f"[watcher:web]\ncmd = sleep 1000\nnumprocesses = 3\n{more}\n")
    daemon.process.send_signal(signal.SIGHUP)
    manager.wait_for("RELOADING=1")
    manager.wait_for("READY=1")
    if word:
        until(lambda: manager.receive(PATIENCE) and word in manager.seen[-1], "the reason is told")
        assert manager.seen[-1].startswith("STATUS=2/2 ready; cannot reload the config: ")
    else:
        manager.wait_for("STATUS=3/3 ready")


def test_processes_cannot_speak_for_the_daemon(sysupd: Start, manager: Manager) -> None:
    text = "[watcher:web]\ncmd = sh -c 'env; exec sleep 1000'\ncopy_env = yes\n"
    text += "stdout_stream.filename = out\n"
    daemon = sysupd(text, env={**manager.env(INTERVAL), "BESIDE": "1", "LISTEN_FDS": "7"})
    out = daemon.directory / "out"
    until(lambda: out.exists() and "BESIDE" in out.read_text(), "the environment is written")
    names = [line.partition("=")[0] for line in out.read_text().splitlines()]
    assert not [name for name in names if name.startswith(("NOTIFY", "WATCHDOG", "LISTEN"))]
    manager.wait_for("READY=1")


def test_a_manager_that_reads_nothing_stops_nothing(sysupd: Start, manager: Manager) -> None:
    """Its queue is full after some messages; the daemon goes on."""
    daemon = sysupd(WEB, env=manager.env(0.02))
    limit = int(Path("/proc/sys/net/unix/max_dgram_qlen").read_text())
    for _ in range(limit + 1):  # a full queue, whatever the daemon sent so far
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other, suppress(BlockingIOError):
            other.setblocking(False)
            other.connect(str(manager.path))
            other.send(b"unread")
    for _ in range(20):
        assert daemon.status("web") == "active"
    manager.drain()
    manager.wait_for("WATCHDOG=1")


# ---- signs of life -----------------------------------------------------------------------


def test_signs_of_life(sysupd: Start, manager: Manager) -> None:
    sysupd(WEB, env=manager.env(INTERVAL))
    for _ in range(4):
        manager.wait_for("WATCHDOG=1")


def test_no_watchdog_no_signs(sysupd: Start, manager: Manager) -> None:
    other = {**manager.env(INTERVAL), "WATCHDOG_PID": "1"}
    sysupd(WEB, env=other)
    manager.wait_for("READY=1")
    assert "WATCHDOG=1" not in manager.seen


def stall(manager: Manager, tid: int, has_stalled: Callable[[], bool]) -> None:
    """What was on its way is let pass: only then no sign may come."""
    manager.wait_for("WATCHDOG=1")
    with wedged(tid):
        until(has_stalled, "the stall is noticed")
        manager.drain()
        assert manager.is_silent(3 * INTERVAL)
    manager.drain()
    manager.wait_for("WATCHDOG=1")


def test_a_loop_that_stands_still(sysupd: Start, manager: Manager) -> None:
    daemon = sysupd(WEB, env=manager.env(INTERVAL))
    stall(manager, daemon.pid, lambda: True)


@pytest.mark.parametrize(
    ("thread", "word"),
    [
        ("sysup-pump", "the pump does not turn"),
        ("ZMQbg/IO/0", "the control socket does not answer"),
    ],
)
def test_a_thread_that_stands_still(
    sysupd: Start, manager: Manager, thread: str, word: str
) -> None:
    daemon = sysupd(WEB, env=manager.env(INTERVAL))
    tid = until(lambda: threads(daemon.pid).get(thread), "its thread has its name")
    complaint = f"no sign of life to systemd: {word}\n"
    seen = daemon.log().count(complaint)
    stall(manager, tid, lambda: daemon.log().count(complaint) > seen + 1)


def test_a_control_socket_without_its_path(sysupd: Start, manager: Manager) -> None:
    """Whoever is connected is still answered; but nobody else can be."""
    daemon = sysupd(WEB, env=manager.env(INTERVAL))
    manager.wait_for("WATCHDOG=1")
    (daemon.runtime / "control").unlink()
    complaint = "no sign of life to systemd: the control socket does not answer\n"
    seen = daemon.log().count(complaint)
    until(lambda: daemon.log().count(complaint) > seen + 1, "it is noticed")
    manager.drain()
    assert manager.is_silent(2 * INTERVAL)
    assert daemon.status("web") == "active"
