"""One app of writers on a machine of its own, whose daemon can be ended, and what is found then."""

from __future__ import annotations

import json
import os
import random
import signal
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import zmq

from sysup import protocol
from tests.chaos.lines import Tally, count, of_files, of_journal
from tests.e2e.harness import until
from tests.lab import Container
from tests.system.services import App
from tests.system.tree import booted

HERE = Path(__file__).parent
DIRECTORY = "/run/chaos"
WRITER = "/usr/local/bin/writer"
LOGS = "/var/log/chaos"
PATIENCE = 60.0
JOURNALD = """[Journal]
Storage=persistent
RateLimitIntervalSec=0
RateLimitBurst=0
SystemMaxUse=20G
SystemKeepFree=100M
"""
"""It is not to leave anything out by itself."""
OFTEN = "[Unit]\nStartLimitIntervalSec=0\n"
FILE_OPTIONS = """
stdout_stream.class = FileStream
stdout_stream.filename = {logs}/{label}
stdout_stream.refresh_time = 0.3
stdout_stream.max_bytes = {max_bytes}
stdout_stream.backup_count = 10000
"""


@dataclass(frozen=True)
class Scale:
    """How much is done."""

    children: int = 100
    kills: int = 200
    upgrades: int = 50
    commands: int = 1000
    stops: int = 10
    """In each state."""
    rounds: int = 10
    pause: int = 3000
    """Microseconds between two lines of a process, on average."""


SHORT = Scale(children=20, kills=8, upgrades=4, commands=50, stops=1, rounds=1)


@dataclass(frozen=True)
class Outcome:
    """What became of it.

    Attributes:
        tally: the lines; None where they are not of interest.
        again: processes that were started again, are there twice, or are gone.
        wrong: what else is not as it should be.
    """

    tally: Tally | None
    kills: int
    again: int
    notes: tuple[str, ...] = ()
    wrong: tuple[str, ...] = ()

    @property
    def is_good(self) -> bool:
        """Whether everything is there, whole, and nobody noticed."""
        tally = self.tally or Tally()
        bad = tally.lost + tally.torn + tally.misnamed + tally.disordered + self.again
        return not bad and not self.wrong

    def noted(self, note: str) -> Outcome:
        """It, with one more note."""
        return replace(self, notes=(*self.notes, note))


class Stage:
    """An app on a machine.

    Args:
        rand: all chance comes from there.

    Attributes:
        kills: how often its daemon was killed.
    """

    def __init__(self, machine: Container, name: str, rand: random.Random) -> None:
        self.machine = machine
        self.rand = rand
        self.app = App(machine, name)
        self.kills = 0
        self._ini = ""
        self._files: list[str] = []
        self._journals: list[str] = []

    # ---- writers -------------------------------------------------------------------------

    def add(
        self,
        label: str,
        processes: int,
        how: str = "whole",
        *,
        pause: int = 3000,
        to_file: bool = False,
        max_bytes: int = 1_000_000,
        more: str = "",
    ) -> None:
        """Have a watcher of writers, to the journal or to a file."""
        (self._files if to_file else self._journals).append(label)
        self._ini += (
            f"[watcher:{label}]\nnumprocesses = {processes}\n"
            f"cmd = {WRITER} {DIRECTORY} {label} $(circus.wid) {pause} {how}\n{more}\n"
        )
        if to_file:
            self._ini += FILE_OPTIONS.format(logs=LOGS, label=label, max_bytes=max_bytes)

    def write_config(self) -> None:
        """Write what was added."""
        self.machine.write(self.app.file, self._ini)

    def start(self, processes: int) -> None:
        """Start the app; returns when so many processes write."""
        self.machine.path(LOGS).mkdir(parents=True, exist_ok=True)
        self.machine.path(f"{DIRECTORY}/count").mkdir(parents=True)
        self.machine.write(f"{DIRECTORY}/go", "1")
        self.write_config()
        self.app.systemctl("start")
        until(lambda: len(self.written()) >= processes, "all write", PATIENCE)

    def written(self) -> dict[str, int]:
        """How many lines each process that ever was says to have written; none is left out."""
        counts = self.machine.path(f"{DIRECTORY}/count")
        found = {path.name: path.read_bytes() for path in counts.iterdir()}
        return {name: struct.unpack("Q", data)[0] if data else 0 for name, data in found.items()}

    def end_writers(self) -> None:
        """Have them end by themselves; returns when they are gone."""
        with self.machine.path(f"{DIRECTORY}/go").open("r+b") as go:  # it is mapped: not truncated
            go.write(b"\0")
        until(lambda: not self.processes(), "all writers have ended", PATIENCE)

    def processes(self) -> dict[int, str]:
        """`LABEL.WID` of the writers that live, and of what they left, by pid; from /proc."""
        found = {}
        for directory in self.machine.path("/proc").iterdir():
            if directory.name.isdecimal():
                with suppress(FileNotFoundError, ProcessLookupError):
                    words = (directory / "cmdline").read_bytes().split(b"\0")
                    if words[0].decode() == WRITER:
                        found[int(directory.name)] = f"{words[2].decode()}.{words[3].decode()}"
        return found

    def tally(self, *, killed: bool = False) -> Tally:
        """All that was written, held against what is there."""
        total = Tally()
        written = self.written()
        self.machine.run(["sync"])
        for label in (*self._files, *self._journals):
            mine = {name: n for name, n in written.items() if name.startswith(f"{label}.")}
            is_file = label in self._files
            directory = self.machine.path(LOGS)
            found = (
                of_files(directory, label)
                if is_file
                else of_journal(self.machine, self.app.name, label)
            )
            total.add(count(mine, found, killed=killed))
        return total

    # ---- the daemon ----------------------------------------------------------------------

    def daemon(self) -> int:
        """Its pid as we see it, from the first moment of its life; 0 while there is none."""
        for name in ("daemon", "."):
            with suppress(OSError):  # not there yet, or removed just now
                pids = map(int, (self.app.cgroup / name / "cgroup.procs").read_text().split())
                if pid := min(pids, default=0):  # its self-test, before an upgrade, is younger
                    return pid
        return 0

    def kill(self) -> None:
        """By SIGKILL, in whatever it does; returns as soon as there is another one."""
        pid = until(self.daemon, "there is a daemon", PATIENCE)
        pidfd = os.pidfd_open(pid)
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        except ProcessLookupError:
            return
        finally:
            os.close(pidfd)
        self.kills += 1
        until(lambda: self.daemon() not in (0, pid), "systemd starts a new one", PATIENCE)

    def kill_at_random(self, kills: int) -> None:
        """Most of them when it serves again; some while it takes over from the one before, or is
        about to become another program."""
        for _ in range(kills):
            chance = self.rand.random()
            if chance < 0.3:
                time.sleep(self.rand.uniform(0, 0.25))
            elif chance < 0.45:
                self.answer()
                os.kill(self.daemon(), signal.SIGUSR2)
                time.sleep(self.rand.uniform(0, 0.7))
            else:
                self.answer()
                time.sleep(self.rand.uniform(0, 0.5))
            self.kill()
        self.answer()

    def answer(self, command: str = "version", **properties: Any) -> dict[str, Any]:
        """Its answer, from whichever daemon is there to give one."""
        found = until(lambda: self.ask(command, 1.0, **properties), "it answers", PATIENCE)
        assert isinstance(found, dict)
        return found

    def ask(self, command: str, seconds: float, **properties: Any) -> dict[str, Any] | None:
        """The answer to one request, if there is one within so many seconds."""
        with asking(self.machine.path(f"/run/sysup/{self.app.name}/control")) as peer:
            peer.send(protocol.encode_request(protocol.Request(command, properties, command)))
            if not peer.poll(int(seconds * 1000)):
                return None
            reply: dict[str, Any] = json.loads(peer.recv())
            return reply

    # ---- its end -------------------------------------------------------------------------

    def is_gone(self) -> bool:
        """Whether nothing of the app is left: no process, and no cgroup."""
        return not self.processes() and not self.app.cgroup.exists()


@contextmanager
def asking(path: Path) -> Iterator[zmq.Socket[bytes]]:
    """A client of a control socket, which need not be there yet."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as peer:
        peer.linger = 0
        peer.reconnect_ivl = 2
        peer.connect(f"ipc://{path}")
        yield peer


@contextmanager
def staged(tree: Path, name: str, rand: random.Random) -> Iterator[Stage]:
    """A stage on a machine of its own, which is gone afterwards."""
    with booted(tree) as machine:
        with tempfile.TemporaryDirectory() as directory:
            target = Path(directory, "writer")
            options = ["-std=c17", "-D_GNU_SOURCE", "-O2", "-static"]
            subprocess.run(["gcc", *options, "-o", target, HERE / "writer.c"], check=True)
            machine.path(WRITER).write_bytes(target.read_bytes())
            machine.path(WRITER).chmod(0o755)
        machine.write("/etc/systemd/journald.conf.d/chaos.conf", JOURNALD)
        machine.write("/etc/systemd/system/systemd-journald.service.d/chaos.conf", OFTEN)
        machine.run(["systemctl", "daemon-reload"])
        machine.run(["systemctl", "restart", "systemd-journald"])
        yield Stage(machine, name, rand)
