"""Apps as services of a real systemd: start, status, reload, stop, crash, drop-ins, users."""

from __future__ import annotations

import time

import pytest

from tests.e2e.harness import until
from tests.lab import Container
from tests.system.services import App

pytestmark = pytest.mark.usefixtures("nothing_is_left")

EX_CONFIG = 78
HARDENING = "/usr/local/share/doc/sysup/examples/hardening.conf"


# ---- start, status, reload -------------------------------------------------------------------


def test_a_start_is_over_when_the_processes_run(machine: Container) -> None:
    app = App(machine, "start").start()
    assert len(app.pids()) == 2
    assert app.show("ActiveState") == "active"
    assert app.show("NRestarts") == "0"


def test_status_tells_how_the_app_fares(machine: Container) -> None:
    app = App(machine, "status").start()
    until(lambda: app.show("StatusText") == "2/2 ready", "the status says so")
    assert "2/2 ready" in app.systemctl("status").stdout
    assert "w" in app.ctl("status").stdout


def test_a_reload_does_what_differs_and_lets_the_rest_run(machine: Container) -> None:
    app = App(machine, "reload").start()
    before = app.pids()
    app.configure(processes=3)
    app.systemctl("reload")
    until(lambda: len(app.pids()) == 3, "there is one more")
    assert app.pids() > before
    assert app.show("ActiveState") == "active"


def test_a_reload_follows_what_is_right(machine: Container) -> None:
    app = App(machine, "partly").start()
    before = app.pids()
    app.configure(more=f"nonsense = 1\n[watcher:x]\ncmd = sleep {app.number}")
    assert app.systemctl("reload", check=False).returncode != 0
    until(lambda: len(app.pids()) == 3, "the other one is started")
    assert app.pids() > before
    assert app.show("ActiveState") == "active"
    until(lambda: "watcher w stays as it is" in app.show("StatusText"), "the status says so")
    assert "[watcher:w] nonsense: unknown option" in app.systemctl("status").stdout
    app.configure(processes=2)
    app.systemctl("reload")
    until(lambda: app.show("StatusText") == "2/2 ready", "nothing is wrong any more")
    assert app.pids() == before


def test_a_reload_of_a_wrong_config_fails_and_the_app_runs_on(machine: Container) -> None:
    app = App(machine, "wrongly").start()
    before = app.pids()
    app.configure(more="no_such_option = 1")
    assert app.systemctl("reload", check=False).returncode != 0
    assert "no_such_option" in app.machine.journal("-u", app.unit)
    assert app.show("ActiveState") == "active"
    assert app.pids() == before


# ---- wrong config ----------------------------------------------------------------------------


def test_a_wrong_config_is_told_and_not_tried_again(machine: Container) -> None:
    app = App(machine, "bad")
    app.configure(more="no_such_option = 1\nrestart = many")
    assert app.systemctl("start", check=False).returncode != 0
    assert app.show("ActiveState") == "failed"
    assert app.show("ExecMainStatus") == str(EX_CONFIG)
    assert app.show("NRestarts") == "0"
    status = app.systemctl("status", check=False).stdout
    assert "bad.ini:4" in status
    assert "no_such_option" in status
    assert "many" in status


def test_a_missing_config_is_told_and_not_tried_again(machine: Container) -> None:
    app = App(machine, "missing")
    machine.path(app.file).unlink()
    assert app.systemctl("start", check=False).returncode != 0
    assert app.show("ExecMainStatus") == str(EX_CONFIG)
    assert app.show("NRestarts") == "0"
    assert "/etc/sysup/missing.ini" in app.systemctl("status", check=False).stdout


# ---- stop, restart ---------------------------------------------------------------------------


def test_a_stop_leaves_nothing(machine: Container) -> None:
    app = App(machine, "stop")
    escaping = f"setsid -f sleep {app.number}; exec sleep {app.number}"
    app.configure(more=f"[watcher:escaping]\ncmd = sh -c '{escaping}'")
    app.start()
    until(lambda: len(app.pids()) == 4, "all run")
    app.systemctl("stop")
    assert app.pids() == set()
    assert not app.cgroup.exists()
    assert app.show("Result") == "success"
    assert app.show("ActiveState") == "inactive"


def test_a_restart_begins_anew(machine: Container) -> None:
    app = App(machine, "restart").start()
    before, daemon = app.pids(), app.show("MainPID")
    app.systemctl("restart")
    assert app.show("MainPID") != daemon
    app.wait_for_processes()
    assert len(app.pids()) == 2
    assert not app.pids() & before


def test_a_daemon_that_is_killed_comes_back_however_often(machine: Container) -> None:
    app = App(machine, "killed").start()
    for times in range(1, 7):  # systemd's own limit is 5 within 10 s
        daemon = app.show("MainPID")
        machine.run(["kill", "-KILL", daemon])
        until(lambda: app.show("NRestarts") == str(times), "it is started again")  # noqa: B023
        until(lambda: app.show("ActiveState") == "active", "it is ready")
        assert app.show("MainPID") != daemon
    until(lambda: len(app.pids()) == 2, "its processes run")


@pytest.mark.parametrize("program", ["/bin/false", "/no/such/program"])
def test_a_daemon_that_cannot_live_is_tried_again_with_pauses(
    machine: Container, program: str
) -> None:
    """systemd itself makes none, as its timers would hold up those that can."""
    app = App(machine, f"lives-not{program.count('/')}")
    app.drop_in(f"[Service]\nExecStart=\nExecStart={program}\nRestartPreventExitStatus=\n")
    begun = time.monotonic()
    app.systemctl("start", check=False)
    until(lambda: int(app.show("NRestarts")) >= 5, "it is tried again")
    tries, took = int(app.show("NRestarts")), time.monotonic() - begun
    app.systemctl("stop")
    assert tries <= took / 0.3 + 1


# ---- several apps ----------------------------------------------------------------------------


def test_two_apps_do_not_touch_each_other(machine: Container) -> None:
    one, other = App(machine, "one").start(), App(machine, "other").start()
    before = other.pids()
    assert f"sleep {one.number}" in one.ctl("get", "w", "cmd").stdout
    assert f"sleep {other.number}" in other.ctl("get", "w", "cmd").stdout
    one.systemctl("stop")
    assert one.pids() == set()
    assert other.pids() == before


def test_the_target_acts_on_all_apps(machine: Container) -> None:
    enabled = [App(machine, "first"), App(machine, "second")]
    third = App(machine, "third")
    for app in enabled:
        app.systemctl("enable")
    try:
        machine.run(["systemctl", "start", "sysup.target"])
        for app in enabled:
            app.wait_for_processes()
        assert [len(app.pids()) for app in (*enabled, third)] == [2, 2, 0]
        third.start()
        before = [app.pids() for app in (*enabled, third)]
        machine.run(["systemctl", "restart", "sysup.target"])
        for app in (*enabled, third):
            app.wait_for_processes()
        after = [app.pids() for app in (*enabled, third)]
        assert [len(some) for some in after] == [2, 2, 2]
        assert not set().union(*before) & set().union(*after)
        machine.run(["systemctl", "stop", "sysup.target"])
        until(lambda: not any(app.pids() for app in (*enabled, third)), "all are stopped")
    finally:
        for app in enabled:
            app.systemctl("disable")


# ---- drop-ins --------------------------------------------------------------------------------


def test_drop_ins_are_in_force(machine: Container) -> None:
    app = App(machine, "dropped")
    assert "cap_sys_time" not in app.show("CapabilityBoundingSet")
    app.drop_in("[Service]\nCapabilityBoundingSet=~\nTimeoutStopSec=7s\n")
    app.start()
    assert "cap_sys_time" in app.show("CapabilityBoundingSet")
    assert app.show("TimeoutStopUSec") == "7s"
    assert len(app.pids()) == 2


def test_an_app_runs_shut_in(machine: Container) -> None:
    app = App(machine, "shut-in")
    app.configure(more="uid = nobody\nrlimit_nofile = 100")
    app.drop_in(machine.path(HARDENING).read_text())
    app.start()
    assert len(app.pids()) == 2
    (pid, *_) = app.pids()
    status = machine.path(f"/proc/{pid}/status").read_text()
    assert "NoNewPrivs:\t1" in status
    assert "Seccomp:\t2" in status
    app.configure(processes=3, more="uid = nobody\nrlimit_nofile = 100")
    app.systemctl("reload")
    until(lambda: len(app.pids()) == 3, "there is one more")
    app.systemctl("stop")
    assert app.show("Result") == "success"


# ---- apps of users ---------------------------------------------------------------------------


def test_a_user_has_apps(of_user: App) -> None:
    app = of_user.start()
    assert len(app.pids()) == 2
    assert app.ctl("status").returncode == 0
    app.configure(processes=1)
    app.systemctl("reload")
    until(lambda: len(app.pids()) == 1, "one is left")
    app.systemctl("stop")
    assert app.pids() == set()
    assert app.show("Result") == "success"
