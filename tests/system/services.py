"""Apps as services of a machine."""

from __future__ import annotations

import itertools
import subprocess
from pathlib import Path

from tests.e2e.harness import until
from tests.lab import Container, Vm

NUMBERS = itertools.count(1_000_000)
USER = 1000
OWN_CGROUP = "/sys/fs/cgroup/system.slice/system-sysup.slice"
HOME, RUNTIME = "/home/user", f"/run/user/{USER}"


class App:
    """An app of the machine, whose processes sleep a number of seconds that nobody else does.

    Args:
        user: it is an app of the user, not of the system.
    """

    def __init__(self, machine: Container | Vm, name: str, user: bool = False) -> None:
        self.machine = machine
        self.name = name
        self.unit = f"sysup@{name}.service"
        self.user = user
        self.number = next(NUMBERS)
        self.file = f"{HOME}/.config/sysup/{name}.ini" if user else f"/etc/sysup/{name}.ini"
        self.configure()

    def configure(self, processes: int = 2, more: str = "") -> None:
        """Write its config."""
        self.processes = processes
        self.machine.write(
            self.file,
            f"[watcher:w]\ncmd = sleep {self.number}\nnumprocesses = {processes}\n{more}\n",
        )

    def drop_in(self, text: str) -> None:
        """Add to its service."""
        self.machine.write(f"/etc/systemd/system/{self.unit}.d/test.conf", text)
        self.machine.run(["systemctl", "daemon-reload"])

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command as whom the app belongs to."""
        return self.machine.run([*(as_user() if self.user else ()), *command], check=check)

    def systemctl(
        self, verb: str, *args: str, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        scope = "--user" if self.user else "--system"
        return self.run("systemctl", scope, verb, self.unit, *args, check=check)

    def ctl(self, *args: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.run("sysupctl", "-a", self.name, "--timeout=100", *args, check=check)

    def show(self, name: str) -> str:
        """A property of its service."""
        return self.systemctl("show", "--value", f"--property={name}").stdout.strip()

    def start(self) -> App:
        """Returns when its processes are what they are: systemd hears of them a moment before."""
        self.systemctl("start")
        self.wait_for_processes()
        return self

    def wait_for_processes(self) -> None:
        """Until there are as many as its config says, or more."""
        until(lambda: len(self.pids()) >= self.processes, f"{self.name} has its processes", 300)

    def pids(self) -> set[int]:
        """Its processes that live, found by what they are."""
        return self.machine.pids(f"sleep {self.number}")

    def path(self, inside: str) -> Path:
        """Where a file of its machine is for us, if that is one into which we can look."""
        assert isinstance(self.machine, Container)
        return self.machine.path(inside)

    @property
    def cgroup(self) -> Path:
        return self.path(self.cgroup_inside)

    @property
    def cgroup_inside(self) -> str:
        return f"{OWN_CGROUP}/{self.unit}"


def as_user(*groups: str) -> list[str]:
    """Before a command: run it as the user, with their manager."""
    return [
        *("setpriv", f"--reuid={USER}", f"--regid={USER}"),
        *([f"--groups={','.join(groups)}"] if groups else ["--clear-groups"]),
        *("env", f"HOME={HOME}", f"XDG_RUNTIME_DIR={RUNTIME}"),
    ]
