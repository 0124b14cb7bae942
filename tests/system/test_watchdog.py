"""A daemon that stalls is replaced by systemd in time, and its processes run on."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.e2e.harness import until
from tests.e2e.wedge import await_end, threads, wedged
from tests.lab import Container
from tests.system.services import App

pytestmark = pytest.mark.usefixtures("nothing_is_left")

WATCHDOG = 2.0


def daemon_of(app: App) -> int:
    """The pid of its daemon, as we see it."""
    return int((app.cgroup / "daemon" / "cgroup.procs").read_text())


@pytest.mark.parametrize(
    ("thread", "word"),
    [
        ("", ""),
        ("sysup-pump", "the pump does not turn"),
        ("ZMQbg/IO/0", "the control socket does not answer"),
    ],
)
def test_a_stall_ends_in_a_restart(machine: Container, thread: str, word: str) -> None:
    app = App(machine, f"stall{thread[:3].lower()}")
    app.drop_in(f"[Service]\nWatchdogSec={WATCHDOG:g}\n")
    app.start()
    before, daemon = app.pids(), daemon_of(app)
    assert Path(f"/proc/{daemon}/comm").read_text() == "sysupd\n"
    tid = threads(daemon)[thread] if thread else daemon
    began = time.monotonic()
    with wedged(tid):
        await_end(tid)
    until(lambda: app.show("NRestarts") == "1", "systemd starts a new one")
    until(lambda: app.show("ActiveState") == "active", "it is ready")
    restarted = int(app.show("ExecMainStartTimestampMonotonic")) / 1e6
    assert 0.0 < restarted - began < WATCHDOG + 1.0
    assert "watchdog" in app.machine.journal("-u", app.unit).lower()
    assert word in app.machine.journal("-u", app.unit)
    assert app.pids() == before
    assert app.ctl("status").returncode == 0
    app.systemctl("stop")
