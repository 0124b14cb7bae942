"""A container with a systemd of its own, as its test sees it.

with boot() as machine:
    machine.run(["systemctl", "start", "sysup@shop"])
    machine.path("/etc/sysup/shop.ini").read_text()
    machine.journal("sysup@shop")
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.lab.rootfs import SUITE, CannotBuild, rootfs

HERE = Path(__file__).parent
PYTHON = (sys.executable, "-IS")
PATIENCE = 120.0


class Unavailable(Exception):
    """This machine cannot have the one to test in; says why."""


class Container:
    """One that is up; a context, at whose end nothing of it is left.

    Args:
        layers: directories that hold what its file system has, the topmost last.

    Attributes:
        name: of no other one.
        leader: its PID 1, as it is seen from outside.
    """

    def __init__(self, layers: Sequence[Path]) -> None:
        # overlayfs names the topmost first
        lower = ":".join(str(layer) for layer in reversed(layers))
        self._keeper = subprocess.Popen(
            [*PYTHON, str(HERE / "keeper.py"), lower],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # a Ctrl-C is for the tests
        )
        word, _, rest = self._said().partition(" ")
        if word != "up":
            self.close()
            raise Unavailable(f"a container does not boot: {rest or 'its keeper failed'}")
        self.name, _, leader = rest.partition(" ")
        self.leader = int(leader)

    def __enter__(self) -> Container:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def run(
        self,
        command: Sequence[str],
        *,
        check: bool = True,
        input: str | None = None,
        timeout: float = PATIENCE,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside, as root, outside of all units; by default it must succeed."""
        done = subprocess.run(
            self._inside(command),
            input=input,
            stdin=None if input is not None else subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        if check and done.returncode:
            raise AssertionError(
                f"{' '.join(command)}: exit {done.returncode}\n{done.stdout}{done.stderr}"
            )
        return done

    def popen(self, command: Sequence[str]) -> subprocess.Popen[str]:
        """Begin a command inside, whose output is a pipe."""
        return subprocess.Popen(
            self._inside(command), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
        )

    def _inside(self, command: Sequence[str]) -> list[str]:
        return [*PYTHON, str(HERE / "enter.py"), str(self.leader), *command]

    def path(self, inside: str) -> Path:
        """Where a file of it is for us; absolute links in its path lead astray."""
        return Path(f"/proc/{self.leader}/root", inside.lstrip("/"))

    def write(self, inside: str, text: str) -> None:
        """Write a file, and make its directory."""
        path = self.path(inside)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def pids(self, command: str) -> set[int]:
        """Its processes with that command line, as they are numbered inside."""
        found = set()
        for directory in self.path("/proc").iterdir():
            if directory.name.isdecimal():
                try:
                    line = (directory / "cmdline").read_bytes().rstrip(b"\0").replace(b"\0", b" ")
                except (FileNotFoundError, ProcessLookupError):
                    continue
                if line.decode() == command:
                    found.add(int(directory.name))
        return found

    def journal(self, *match: str) -> str:
        """The messages of all entries that match, as journalctl(1) has it: `-u UNIT`, A=B."""
        self.run(["journalctl", "--sync"])
        return self.run(["journalctl", "--quiet", "--output=cat", *match]).stdout

    def power_off(self) -> None:
        """Shut down as an operator would."""
        self.run(["systemctl", "--no-block", "poweroff"])
        assert self._said() == "down"

    def close(self) -> None:
        """Kill it, and remove all that there is of it."""
        assert self._keeper.stdin
        assert self._keeper.stdout
        self._keeper.stdin.close()
        self._keeper.wait(PATIENCE)
        self._keeper.stdout.close()

    def _said(self) -> str:
        assert self._keeper.stdout
        return self._keeper.stdout.readline().rstrip("\n")


def boot(*layers: Path, suite: str = SUITE) -> Container:
    """Boot a container whose file system has the layers over Debian's. Raises Unavailable."""
    if os.geteuid() != 0:
        raise Unavailable("only root can boot a container")
    if shutil.which("systemd-nspawn") is None:
        raise Unavailable("there is no systemd-nspawn")
    try:
        return Container([rootfs(suite), *layers])
    except CannotBuild as error:
        raise Unavailable(f"cannot make a tree to boot: {error}") from None
