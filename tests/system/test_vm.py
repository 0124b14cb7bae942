"""What no container shows: controllers of cgroups, and a kernel from before pidfds told much.

An app is started once, and by each test that finds it stopped: to start takes long in there.
"""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.e2e.harness import until as until_within
from tests.lab import Vm
from tests.lab.rootfs import SUITE
from tests.lab.vm import DISK
from tests.system.services import App

pytestmark = pytest.mark.timeout(600)

KERNELS = {"bookworm": ("6.1.", errno.ENOTTY), "trixie": ("6.12.", errno.EINVAL)}
"""And what each says to the PIDFD_GET_INFO that it does not know."""
CONTROLLERS = {"cpu", "memory", "pids"}
CGROUP_ERROR = 219
"""systemd's EXIT_CGROUP."""
ASK = """
import fcntl, os, sys
try:
    fcntl.ioctl(os.pidfd_open(os.getpid()), 0xC048FF0B, bytearray(72))
except OSError as error:
    print(error.errno)
"""
RESUME_AND_WAIT = """
from tests.lab import resume
machine = resume()
print(machine.pid, flush=True)
machine.run(["sleep", "1000"], timeout=1000)
"""


def until(condition: Callable[[], Any], what: str) -> Any:
    """With patience, and a pause between looks: each is a good deal of work in there."""

    def look() -> Any:
        if not (answer := condition()):
            time.sleep(0.2)
        return answer

    return until_within(look, what, timeout=300)


@pytest.fixture(scope="module")
def shop(vm: Vm) -> Iterator[App]:
    app = App(vm, "shop")
    yield app
    app.systemctl("stop")


@pytest.fixture
def app(shop: App) -> App:
    """One that runs, with two processes."""
    shop.start()
    return shop


def kill_daemon(app: App) -> Callable[[], bool]:
    """By SIGKILL; returns whether the next one serves."""
    restarts = int(app.show("NRestarts"))
    app.run("kill", "-KILL", app.show("MainPID"))
    return lambda: app.show("ActiveState") == "active" and int(app.show("NRestarts")) > restarts


def ends(app: App, pid: int) -> int:
    """Have one of its processes end; returns that which takes its place, one alone."""
    before = app.pids()
    app.run("kill", "-ABRT", str(pid))
    until(lambda: len(app.pids() - {pid}) == len(before), "it is replaced")
    (new,) = app.pids() - before
    return new


def in_cgroup(app: App, script: str) -> str:
    """What a script says that runs where its cgroup is."""
    return app.run("sh", "-ec", f'cd "$0"; {script}', app.cgroup_inside).stdout


def enable_controllers(app: App) -> None:
    """As an admin might; the directories of slots have them then."""
    wanted = " ".join(f"+{name}" for name in sorted(CONTROLLERS))
    in_cgroup(app, f"for at in . w w/w; do echo {wanted} >$at/cgroup.subtree_control; done")
    assert {*in_cgroup(app, "cat w/w/1/cgroup.controllers").split()} >= CONTROLLERS


def is_gone(app: App) -> bool:
    """Nothing of it runs, and nothing is left where it did."""
    left = app.run("ls", "-d", app.cgroup_inside, check=False)
    return not app.pids() and left.returncode != 0


# ---- the machine -----------------------------------------------------------------------------


def test_it_is_what_a_container_is_not(vm: Vm) -> None:
    assert vm.run(["systemctl", "is-system-running"]).stdout == "running\n"
    version, refusal = KERNELS[SUITE]
    assert vm.run(["uname", "-r"]).stdout.startswith(version)
    assert vm.run(["python3", "-c", ASK]).stdout == f"{refusal}\n"
    there = vm.run(["cat", "/sys/fs/cgroup/cgroup.controllers"]).stdout.split()
    assert {*there} >= CONTROLLERS


def test_a_command_has_its_status_and_streams(vm: Vm) -> None:
    done = vm.run(["sh", "-c", "cat; echo no >&2; exit 3"], input="yes", check=False)
    assert (done.returncode, done.stdout, done.stderr) == (3, "yes", "no\n")
    assert vm.run(["sh", "-c", "kill -TERM $$"], check=False).returncode == 128 + signal.SIGTERM
    assert vm.run(["/no/such/program"], check=False).returncode == 127
    with pytest.raises(AssertionError, match="exit 3"):
        vm.run(["sh", "-c", "exit 3"])
    with pytest.raises(subprocess.TimeoutExpired):
        vm.run(["sleep", "1001"], timeout=0.3)
    assert vm.pids("sleep 1001") == set()


def test_a_machine_ends_with_its_owner_and_its_image_stays(vm: Vm) -> None:
    before = (vm.image / DISK).stat()
    command = [sys.executable, "-c", RESUME_AND_WAIT]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout
        pidfd = os.pidfd_open(int(owner.stdout.readline()))
        owner.kill()
        until(lambda: is_over(pidfd), "it has ended")
        os.close(pidfd)
    vm.run(["sync"])
    assert (vm.image / DISK).stat().st_mtime_ns == before.st_mtime_ns


def is_over(pidfd: int) -> bool:
    """Also of one that nobody has reaped: after some tests this process is who should."""
    return bool(select.select([pidfd], [], [], 0)[0])


# ---- an old kernel ---------------------------------------------------------------------------


def test_of_what_another_daemon_started_nobody_knows_how_it_ended(app: App) -> None:
    """It is replaced once, be it that it ended while no daemon was there, or after that."""
    first, second = sorted(app.pids())
    is_back = kill_daemon(app)
    new = ends(app, first)
    until(is_back, "another daemon is there")
    assert app.pids() == {new, second}
    ends(app, second)
    ends(app, new)
    shown = json.loads(app.ctl("--json", "show", "w").stdout)["watcher"]["processes"]
    assert sum(process["restarts"] for process in shown) == 3
    reasons = {process["reason"] for process in shown}
    assert reasons == {"ended, nobody knows how", "killed by SIGABRT"}


def test_an_upgrade_keeps_everything(app: App) -> None:
    before, daemon = app.pids(), app.show("MainPID")
    app.ctl("upgrade")
    assert app.pids() == before
    assert (app.show("MainPID"), app.show("ActiveState")) == (daemon, "active")


# ---- controllers -----------------------------------------------------------------------------


@pytest.mark.skipif(SUITE != "bookworm", reason="that of systemd 257 can")
def test_systemd_cannot_start_where_controllers_are(vm: Vm) -> None:
    """If it could, the tests below would show nothing."""
    vm.write(
        "/root/trap",
        "cd /sys/fs/cgroup/system.slice/trap.service; mkdir -p in; echo 0 >in/cgroup.procs\n"
        "echo +pids >cgroup.subtree_control; sleep 1002 & exec sleep 1003\n",
    )
    vm.run(
        [
            *("systemd-run", "--unit=trap", "--property=Delegate=yes", "--property=Restart=always"),
            *("--property=KillMode=process", "sh", "/root/trap"),
        ]
    )
    (pid,) = until(lambda: vm.pids("sleep 1003"), "it runs")
    vm.run(["kill", "-KILL", str(pid)])
    shown = ["systemctl", "show", "--value", "--property=ExecMainStatus", "trap"]
    until(lambda: vm.run(shown).stdout == f"{CGROUP_ERROR}\n", "the next one does not")
    vm.run(["systemctl", "stop", "trap"])
    vm.run(["pkill", "--full", "--exact", "sleep 1002"])


def test_processes_run_on_under_controllers_and_end_by_a_stop(app: App) -> None:
    enable_controllers(app)
    assert in_cgroup(app, "cat w/w/*/pids.current") == "1\n1\n"
    app.configure(processes=3)
    app.systemctl("reload")
    app.wait_for_processes()
    before = app.pids()
    assert in_cgroup(app, "cat w/w/3/pids.current") == "1\n"
    until(kill_daemon(app), "another daemon is there")
    assert app.pids() == before
    enable_controllers(app)
    app.systemctl("stop")
    assert is_gone(app)
    assert app.show("Result") == "success"


def test_who_runs_out_of_memory_is_replaced_and_nobody_else(app: App) -> None:
    daemon = app.show("MainPID")
    enable_controllers(app)
    app.ctl("restart", "w")  # what was had before is on nobody's account
    before, one = app.pids(), int(in_cgroup(app, "cat w/w/1/cgroup.procs"))
    in_cgroup(app, "echo 0 >w/w/1/memory.max")
    until(lambda: len(app.pids() - {one}) == len(before), "it is replaced")
    assert app.pids() > before - {one}
    assert (app.show("MainPID"), app.show("ActiveState")) == (daemon, "active")
    assert "SIGKILL" in app.ctl("show", "w").stdout


def test_stopped_right_after_a_kill(app: App) -> None:
    enable_controllers(app)
    app.run("sh", "-c", 'kill -KILL "$0"; systemctl stop "$1"', app.show("MainPID"), app.unit)
    until(lambda: is_gone(app), "nothing is left")
    assert app.show("ActiveState") in ("inactive", "failed")


def test_stopped_between_two_daemons(shop: App) -> None:
    """Which is the guard's work."""
    shop.drop_in("[Service]\nRestartSec=100s\n")
    shop.start()
    enable_controllers(shop)
    before = shop.pids()
    kill_daemon(shop)
    until(lambda: shop.show("SubState") == "auto-restart", "systemd waits")
    assert shop.pids() == before
    shop.systemctl("stop")
    until(lambda: is_gone(shop), "nothing is left")
