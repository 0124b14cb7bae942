"""A daemon that stalls is replaced by systemd in time, and its processes run on.

How long this machine takes for a restart that is asked for is the measure of what may pass
beside the watchdog's own time.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.e2e.harness import until
from tests.e2e.wedge import await_end, threads, wedged
from tests.lab import Container
from tests.system.services import App

pytestmark = pytest.mark.usefixtures("nothing_is_left")

WATCHDOG = 3.0


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
    began = time.monotonic()
    app.systemctl("restart")
    slowness = time.monotonic() - began
    app.wait_for_processes()
    before, daemon = app.pids(), daemon_of(app)
    assert Path(f"/proc/{daemon}/comm").read_text() == "sysupd\n"
    tid = until(lambda: threads(daemon).get(thread), "it has its name") if thread else daemon
    restarts = int(app.show("NRestarts"))
    began = time.monotonic()
    with wedged(tid):
        await_end(tid)
    until(lambda: int(app.show("NRestarts")) > restarts, "systemd starts a new one")
    until(lambda: app.show("ActiveState") == "active", "it is ready")
    restarted = int(app.show("ExecMainStartTimestampMonotonic")) / 1e6
    assert 0.0 < restarted - began < WATCHDOG + 1.0 + 3 * slowness
    assert "watchdog" in app.machine.journal("-u", app.unit).lower()
    assert word in app.machine.journal("-u", app.unit)
    assert app.pids() == before
    assert app.ctl("status").returncode == 0
    app.systemctl("stop")
