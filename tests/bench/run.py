"""One supervisor at work: its children's reports, what it costs, how it ends.

The children report by a FIFO with the time of their first instruction in the report, so how
soon the reader wakes up does not matter; and the reader sleeps until there is one, so it takes
no processor from what is measured.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import struct
import tempfile
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from tests.bench.peers import Job, Peer
from tests.e2e.harness import descendants

REPORT = struct.Struct("QQ")
NS = 1_000_000_000
SETTLE = 3.0
"""Seconds after the start before anything is measured: more than any supervisor asks of a
process that is to count as started."""

Figures = dict[str, float]
"""What a scenario found out, by names that end in the unit."""


@dataclass(frozen=True)
class Scale:
    """How much is measured."""

    children: int = 200
    many: int = 1000
    recoveries: int = 5
    commands: int = 20
    kills: int = 100
    killing: float = 30.0
    watching: float = 20.0
    bulk: int = 2_000_000
    writers: int = 100
    lines: int = 20_000
    silent: tuple[int, int] = (500, 1500)


QUICK = Scale(20, 50, 2, 4, 10, 5.0, 3.0, 300_000, 10, 2_000, (20, 60))


@dataclass(frozen=True)
class Tools:
    """The compiled helpers."""

    child: Path
    verify: Path
    follow: Path


class Missing(Exception):
    """Something did not come in time, so there is nothing to measure."""


class Report(NamedTuple):
    """The first act of a child; `time` is CLOCK_MONOTONIC in nanoseconds."""

    time: int
    pid: int


@dataclass(frozen=True)
class Cost:
    """What a supervisor has used up, over all its processes, or holds."""

    cpu: float
    """Seconds of processor time."""
    switches: int
    """Times that one of its threads was put on a processor after waiting."""
    pss: int
    """Bytes of memory, shared pages by their share."""


@dataclass(frozen=True)
class Ending:
    """Seconds from the order to end until so far everything was gone."""

    children: float
    all: float


class Run:
    """A supervisor running so many children: a context that leaves no process behind.

    Args:
        child: the program to supervise.
        mode: its arguments after the two FIFOs.
        log: whether what the children print goes to one file, `log`.
        errors: whether what they print to stderr goes to another one.
    """

    def __init__(
        self,
        peer: Peer,
        child: Path,
        mode: tuple[str, ...],
        children: int,
        *,
        log: bool = False,
        errors: bool = False,
    ) -> None:
        self.peer = peer
        self.children = children
        self.directory = Path(tempfile.mkdtemp(prefix="sysup-bench-"))
        # As the loggers want it: a directory of its own, and this name.
        self.log = self.directory / "log/current"
        self.log.parent.mkdir()
        fifo, self._gate = self.directory / "reports", self.directory / "gate"
        os.mkfifo(fifo)
        os.mkfifo(self._gate)
        # For writing as well: a reader of a FIFO without writers would see its end.
        self._reports = os.open(fifo, os.O_RDWR | os.O_CLOEXEC)
        job = Job(
            (str(child), str(fifo), str(self._gate), *mode),
            children,
            self.log if log else None,
            self.directory / "errors" if errors else None,
        )
        self.child = str(child)
        self._ended: set[int] = set()
        self.began = time.monotonic_ns()
        self.process = peer.start(self.directory, job)
        self._pidfd = os.pidfd_open(self.process.pid)

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        below = self.below()
        self.process.kill()
        self.process.wait()
        for pid in below:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        # Orphans are ours, as the program is a subreaper; those of others are not.
        for pid in self._ended.union(below):
            with suppress(ChildProcessError):
                os.waitpid(pid, 0)
        os.close(self._pidfd)
        os.close(self._reports)
        shutil.rmtree(self.directory)

    def report(self, timeout: float) -> Report:
        """The next report. Raises Missing when none comes within `timeout` seconds."""
        ready = select.select([self._reports, self._pidfd], [], [], max(0.0, timeout))[0]
        if self._reports not in ready:
            out = (self.directory / "out").read_text(errors="replace")[-500:]
            what = "it ended" if ready else "no report of a child"
            raise Missing(f"{self.peer.name}: {what}\n{out}")
        return Report(*REPORT.unpack(os.read(self._reports, REPORT.size)))

    def all_up(self, timeout: float = 60.0) -> list[Report]:
        """A report of each child. Raises Missing after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        return [self.report(deadline - time.monotonic()) for _ in range(self.children)]

    def open_gate(self) -> None:
        """Let the children write. All have reported, so they wait, or soon will."""
        with self._gate.open("wb"):
            time.sleep(0.05)

    def parts(self) -> list[Path]:
        """The files of the log, oldest first."""
        found = [p for p in self.log.parent.iterdir() if p.name.startswith(("current", "@"))]
        return sorted(found, key=lambda path: path.stat().st_mtime_ns)

    def below(self) -> dict[int, str]:
        """Command lines, by pid, of the supervisor's helpers and children."""
        return descendants(self.process.pid)

    def cost(self) -> Cost:
        """What the supervisor and its helpers have used so far."""
        helpers = [pid for pid, command in self.below().items() if self.child not in command]
        cpu, switches, pss = 0, 0, 0
        for pid in (self.process.pid, *helpers):
            with suppress(FileNotFoundError, ProcessLookupError):
                pss += int(_field(Path(f"/proc/{pid}/smaps_rollup"), "Pss")) * 1024
                for task in Path(f"/proc/{pid}/task").iterdir():
                    cpu += int((task / "schedstat").read_text().split()[0])
                    switches += int(_field(task / "status", "voluntary_ctxt_switches"))
                    switches += int(_field(task / "status", "nonvoluntary_ctxt_switches"))
        return Cost(cpu / NS, switches, pss)

    def end(self, children: set[int], timeout: float = 60.0) -> Ending:
        """Order the supervisor to end; take the time until its children and it are gone.

        Raises Missing when something lives after `timeout` seconds.
        """
        with ExitStack() as stack:
            poller = select.epoll()
            stack.callback(poller.close)
            waiting: dict[int, bool] = {}  # pidfd -> whether it is of a child
            for pid in (self.process.pid, *self.below()):
                with suppress(ProcessLookupError):
                    pidfd = os.pidfd_open(pid)
                    stack.callback(os.close, pidfd)
                    self._ended.add(pid)
                    waiting[pidfd] = pid in children
                    poller.register(pidfd, select.EPOLLIN)
            began = time.monotonic()
            self.peer.end(self.process, self.directory)
            gone = {True: began, False: began}
            while waiting:
                ready = poller.poll(timeout)
                if not ready:
                    raise Missing(f"{self.peer.name}: {len(waiting)} processes do not end")
                for pidfd, _ in ready:
                    poller.unregister(pidfd)
                    gone[waiting.pop(pidfd)] = time.monotonic()
        return Ending(gone[True] - began, max(gone.values()) - began)


def _field(path: Path, name: str) -> str:
    """The first word after `name:` in a file of /proc."""
    for line in path.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return line.split()[1]
    raise Missing(f"no {name} in {path}")
