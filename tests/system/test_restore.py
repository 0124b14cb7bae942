"""The daemon dies, and nobody notices; a stop leaves nothing, whatever state the daemon was in."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.delegated import members
from tests.e2e.harness import until
from tests.lab import Container
from tests.system.services import App

pytestmark = pytest.mark.usefixtures("nothing_is_left")

WRITER = "i=0; while [ -e /run/{name}.go ]; do i=$((i+1)); echo line $i; sleep 0.002; done"
PAUSED = "[Service]\nRestartSec=600s\n"


def daemon_of(app: App) -> int:
    """The pid of its daemon, as we see it."""
    return int(until((app.cgroup / "daemon" / "cgroup.procs").read_text, "a daemon runs"))


def kill(app: App) -> None:
    """By SIGKILL; returns when the next one serves."""
    restarts = int(app.show("NRestarts"))
    os.kill(daemon_of(app), signal.SIGKILL)
    until(lambda: int(app.show("NRestarts")) == restarts + 1, "systemd starts a new one")
    until(lambda: app.show("ActiveState") == "active", "it is ready")


@pytest.fixture
def app(machine: Container, request: pytest.FixtureRequest) -> Iterator[App]:
    name = request.node.name.removeprefix("test_")[:20].rstrip("_").replace("[", "-")
    app = App(machine, name).start()
    yield app
    app.systemctl("stop")


def test_processes_run_on_without_a_daemon(app: App) -> None:
    before = app.pids()
    for _ in range(3):
        kill(app)
        assert app.pids() == before
    assert "2 processes run on" in app.machine.journal("-u", app.unit)
    app.ctl("stop", "w")
    assert app.pids() == set()


def test_a_command_that_waits_for_its_turn_outlives_the_daemon(app: App) -> None:
    """It was answered, so it is done; a restart that had stopped all starts all."""
    script = f"/run/{app.name}.sh"
    app.machine.write(
        script,
        "[ -e /run/deaf ] && exec sleep 1000\n"
        "trap : TERM\necho > /run/deaf\nwhile :; do sleep 1000 & wait; done\n",
    )
    before = app.pids()
    app.ctl("add", "--start", "--option", "graceful_timeout=100", "deaf", f"sh {script}")
    until(app.path("/run/deaf").exists, "it is deaf")
    (pid,) = app.machine.pids(f"sh {script}")
    app.ctl("restart", "--no-wait", "deaf")
    until(lambda: "stopping" in app.ctl("status", "deaf", check=False).stdout, "it was told to end")
    app.ctl("incr", "--no-wait", "deaf")
    kill(app)
    kill(app)
    assert app.pids() == before
    assert app.machine.pids(f"sh {script}") == {pid}
    app.machine.run(["kill", "-KILL", str(pid)])
    until(lambda: len(json.loads(app.ctl("list", "deaf", "--json").stdout)["pids"]) == 2, "two")


@pytest.mark.parametrize("wrong", ["in part", "as a whole", "gone"])
def test_a_config_that_is_wrong_when_the_daemon_dies_harms_nobody(app: App, wrong: str) -> None:
    """Read or not: what runs goes on by what it was, over kills and upgrades."""
    before = app.pids()
    app.configure(processes=1, more=f"nonsense = 1\n[watcher:x]\ncmd = sleep {app.number}")
    assert app.systemctl("reload", check=False).returncode != 0
    until(lambda: len(app.pids()) == 3, "the other one is started")
    now = app.pids()
    if wrong == "as a whole":
        app.machine.write(app.file, "[watcher:w\ncmd")
    elif wrong == "gone":
        app.path(app.file).unlink()
    for _ in range(2):
        kill(app)
        assert app.pids() == now
        until(lambda: "watcher w stays as it is" in app.show("StatusText"), "it is known")
        app.ctl("upgrade")
        assert app.pids() == now
    app.configure(processes=2)
    app.systemctl("reload")
    assert app.pids() == before


def test_who_ended_meanwhile_is_replaced(app: App) -> None:
    app.drop_in("[Service]\nRestartSec=500ms\n")
    first, second = sorted(app.pids())
    os.kill(daemon_of(app), signal.SIGKILL)
    app.machine.run(["kill", "-ABRT", str(first)])
    until(lambda: len(app.pids() - {first}) == 2, "there is another one")
    assert second in app.pids()
    assert "SIGABRT" in app.ctl("show", "w").stdout, "how it ended is known"


def is_larger(path: Path, size: int) -> bool:
    return path.exists() and path.stat().st_size > size


def test_lines_go_on_where_they_were(machine: Container) -> None:
    app = App(machine, "lines")
    log = f"/var/log/{app.name}.log"
    machine.write(f"/run/{app.name}.go", "")
    machine.write("/root/writer", WRITER.format(name=app.name))
    app.configure(
        1,
        "[watcher:log]\ncmd = sh /root/writer\nrestart = never\n"
        f"stdout_stream.class = FileStream\nstdout_stream.filename = {log}\n",
    )
    app.start()
    path = machine.path(log)
    for _ in range(5):
        until(partial(is_larger, path, 0), "it writes")
        size = path.stat().st_size
        kill(app)
        until(partial(is_larger, path, size), "it goes on")
    machine.path(f"/run/{app.name}.go").unlink()
    until(lambda: "done" in app.ctl("status").stdout, "it has ended")
    lines = path.read_text().splitlines()
    assert lines == [f"line {number}" for number in range(1, len(lines) + 1)]
    app.systemctl("stop")


def test_output_goes_on_to_the_journal_where_the_next_daemon_has_none(machine: Container) -> None:
    """systemd gives a daemon /dev/null for standard error while journald is away."""
    app = App(machine, "null")
    app.configure(1, "[watcher:say]\ncmd = echo said\nautostart = False\nrestart = never\n")
    app.start()
    app.drop_in("[Service]\nStandardError=null\n")
    kill(app)
    app.ctl("start", "say")
    until(lambda: machine.journal("SYSUP_APP=null", "SYSUP_WATCHER=say") == "said\n", "it is there")
    app.systemctl("stop")


def test_an_upgrade_keeps_everything(app: App) -> None:
    before, daemon = app.pids(), daemon_of(app)
    for _ in range(3):
        app.ctl("upgrade")
        until(lambda: app.show("ActiveState") == "active", "it is ready")
    assert daemon_of(app) == daemon
    assert app.pids() == before
    assert app.show("NRestarts") == "0"


# ---- a stop leaves nothing -------------------------------------------------------------------


def is_empty(app: App) -> bool:
    return not app.cgroup.exists() or not members(app.cgroup)


def test_stopped_while_it_hangs(machine: Container) -> None:
    app = App(machine, "hangs")
    app.drop_in("[Service]\nTimeoutStopSec=1\n")
    app.start()
    os.kill(daemon_of(app), signal.SIGSTOP)
    app.systemctl("stop")
    assert app.pids() == set()
    assert is_empty(app)


def test_stopped_between_two_daemons(machine: Container) -> None:
    app = App(machine, "between")
    app.drop_in(PAUSED)
    app.start()
    before = app.pids()
    os.kill(daemon_of(app), signal.SIGKILL)
    until(lambda: app.show("SubState") == "auto-restart", "systemd waits")
    assert app.pids() == before
    app.systemctl("stop")
    until(lambda: app.pids() == set(), "the guard ends them")
    until(lambda: is_empty(app), "the cgroup is empty")


def test_the_guard_waits_for_nothing_that_an_app_may_wait_for(app: App) -> None:
    """While the guard ends it waits for the next daemon, which starts after these."""
    guard = app.unit.replace("sysup@", "sysup-guard@")
    units = (app.unit, guard)
    for_app, for_guard = (
        app.run("systemctl", "show", "--value", "--property=After", unit).stdout.split()
        for unit in units
    )
    assert "systemd-journald.socket" in for_app
    assert [unit for unit in for_guard if not unit.strip('"').endswith(".slice")] == []


def test_the_guard_comes_back_however_often_the_daemon_dies(app: App) -> None:
    guard = app.unit.replace("sysup@", "sysup-guard@")
    for _ in range(8):
        app.run("systemctl", "restart", guard)
    assert app.run("systemctl", "is-active", guard).stdout == "active\n"


def test_stopped_a_moment_after_a_kill(machine: Container) -> None:
    app = App(machine, "moment")
    for delay in (0.0, 0.02, 0.1, 0.2, 0.3):
        app.start()
        until(lambda: len(app.pids()) == 2, "it runs")
        os.kill(daemon_of(app), signal.SIGKILL)
        time.sleep(delay)
        app.systemctl("stop")
        until(lambda: app.pids() == set(), f"all ended, {delay} s after")
        assert app.show("ActiveState") in ("inactive", "failed")


def test_quit_ends_the_service(machine: Container) -> None:
    app = App(machine, "quits").start()
    app.ctl("quit")
    until(lambda: app.show("ActiveState") == "inactive", "it is over")
    assert app.pids() == set()


def test_a_restart_begins_anew(machine: Container) -> None:
    app = App(machine, "anew").start()
    before = app.pids()
    app.systemctl("restart")
    app.wait_for_processes()
    assert len(app.pids()) == 2
    assert not app.pids() & before
    app.systemctl("stop")
    assert app.pids() == set()
