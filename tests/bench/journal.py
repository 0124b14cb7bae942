"""Ways into the journal beside each other, in one run: python -m tests.bench.journal

Children write lines of 100 bytes; what reads them passes them to a journald of the benchmark's
own (tests/journald.py). Compared are JournalStream and plain C that sends the same
(journal_sender.c), each with fields and by journald's stream protocol; and ways that need no
reader: JournalDirect, systemd-cat. Printed: messages a second from the start of the children
until all are stored, and the CPU microseconds a message of the reader (for JournalDirect: of
sysupd) and of journald. Rounds are interleaved; compare rows of one run only.
"""

from __future__ import annotations

import argparse
import ast
import os
import resource
import select
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from sysup.config import StreamSpec
from sysup.streams import Pump, Sink, Source, open_sink
from tests.bench.install import compile_c
from tests.e2e.harness import Daemon, until
from tests.journald import Journald

NS = 1_000_000_000
PEERS = {"sysup": "C", "sysup, fields = no": "C, stream", "JournalDirect": "systemd-cat"}
"""What each is to be compared with."""


@dataclass(frozen=True)
class Case:
    """So many children, each so many lines, in writes of `chunk` bytes (0: a line each)."""

    name: str
    children: int
    lines: int
    chunk: int

    @property
    def messages(self) -> int:
        return self.children * self.lines


CASES = (
    Case("1 child, 200,000 lines, 4 KiB writes", 1, 200_000, 4096),
    Case("50 children x 4,000 lines, a write a line", 50, 4000, 0),
)


class Figures(NamedTuple):
    """Messages a second; CPU microseconds a message, of the sender and of journald."""

    rate: float
    cpu: float
    journald: float


class Tools(NamedTuple):
    """The compiled programs."""

    writer: str
    sender: str


@dataclass(frozen=True)
class Work:
    """One measurement to be taken, in a directory of its own."""

    case: Case
    tools: Tools
    journald: Journald
    directory: Path

    def writer(self, number: int) -> list[str]:
        """A child's command; it begins when its standard input ends."""
        return [self.tools.writer, f"w{number}", str(self.case.lines), str(self.case.chunk)]


Way = Callable[[Work], tuple[float, float]]
"""Lets the children begin, and returns once they and the sender are done: the time of the
beginning, and the CPU seconds of the sender."""


def send_out(directory: str, options: dict[str, object], fds: list[int]) -> None:
    """What the measured process does; prints what journal_sender.c prints."""
    from sysup.streams import journal

    journal.DIRECTORY = directory
    before = resource.getrusage(resource.RUSAGE_SELF)
    pump = Pump()
    options = {"identifier": "web", **options}
    sink = open_sink(pump, StreamSpec("JournalStream", options), Source("stdout", "web", "bench"))
    assert isinstance(sink, Sink)
    for fd in fds:
        pump.add(fd, os.getpid(), sink, tail=2048)
    sink.close()
    while pump.places:
        select.select([pump], [], [])
        pump.dispatch()
    now = time.monotonic()
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"{now:.6f} {cpu:.6f}")
    pump.stop(1)


def by_reader(command: Callable[[Work], list[str]]) -> Way:
    """A program that reads the children's pipes, whose numbers follow its arguments."""

    def run(work: Work) -> tuple[float, float]:
        gate, opened = os.pipe()
        pipes = [os.pipe() for _ in range(work.case.children)]
        writers = [
            subprocess.Popen(work.writer(n), stdin=gate, stdout=end)
            for n, (_, end) in enumerate(pipes)
        ]
        fds = [begin for begin, _ in pipes]
        reader = subprocess.Popen(
            [*command(work), *map(str, fds)], pass_fds=fds, stdout=subprocess.PIPE, text=True
        )
        for fd in (gate, *(fd for pair in pipes for fd in pair)):
            os.close(fd)
        time.sleep(0.5)  # until the reader is ready, however long Python takes to start
        begun = time.monotonic()
        os.close(opened)
        output, _ = reader.communicate()
        if reader.returncode or any([writer.wait() for writer in writers]):
            raise SystemExit("a reader or a writer failed")
        return begun, float(output.split()[1])

    return run


def by_systemd_cat(work: Work) -> tuple[float, float]:
    gate, opened = os.pipe()
    cat = ["systemd-cat", "--identifier=web"]
    writers = [
        work.journald.popen([*cat, *work.writer(n)], stdin=gate) for n in range(work.case.children)
    ]
    os.close(gate)
    time.sleep(0.5)
    begun = time.monotonic()
    os.close(opened)
    for process in writers:
        process.wait()
    return begun, 0.0


def by_journal_direct(work: Work) -> tuple[float, float]:
    """A real sysupd, whose children begin together."""
    gate = work.directory / "gate"
    os.mkfifo(gate)
    script = work.directory / "script"
    script.write_text(f"exec {' '.join(work.writer(0))} <{gate}\n")
    ini = (
        f"[watcher:web]\ncmd = sh {script}\nnumprocesses = {work.case.children}\n"
        "restart = never\nstdout_stream.class = JournalDirect\n"
    )
    held = os.open(gate, os.O_RDWR)  # so that nobody waits to open it, and nobody reads its end
    with Daemon(work.directory, work.directory, ini, inside=work.journald.inside) as daemon:
        until(lambda: len(daemon.pids("web")) == work.case.children, "all are started")
        ends = [os.pidfd_open(pid) for pid in daemon.pids("web")]
        time.sleep(0.5)
        before = cpu_seconds(daemon.pid)
        begun = time.monotonic()
        os.close(held)
        for pidfd in ends:
            select.select([pidfd], [], [])
            os.close(pidfd)
        return begun, cpu_seconds(daemon.pid) - before


def cpu_seconds(pid: int) -> float:
    """What all threads of a process have used."""
    stats = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/schedstat")]
    return sum(int(stat.split()[0]) for stat in stats) / NS


def pump(**options: object) -> Way:
    module = [sys.executable, "-m", "tests.bench.journal"]
    return by_reader(
        lambda work: [*module, "--send", str(work.journald.directory), repr(options)],
    )


def plain(mode: str) -> Way:
    return by_reader(lambda work: [work.tools.sender, mode, str(work.journald.directory)])


WAYS: dict[str, Way] = {
    "C": plain("native"),
    "sysup": pump(),
    "C, stream": plain("lines"),
    "C, stream in blocks": plain("blocks"),
    "sysup, fields = no": pump(fields=False),
    "systemd-cat": by_systemd_cat,
    "JournalDirect": by_journal_direct,
}


def measure(way: Way, case: Case, tools: Tools) -> Figures:
    """With a journald of its own; raises SystemExit if not every line is stored."""
    directory = Path(tempfile.mkdtemp(prefix="j"))
    try:
        with Journald() as journald:
            before = cpu_seconds(journald.pid)
            begun, cpu = way(Work(case, tools, journald, directory))
            journald.sync()
            seconds = time.monotonic() - begun
            busy = cpu_seconds(journald.pid) - before
            stored = sum(1 for _ in journald.entries("SYSLOG_IDENTIFIER=web", fields=("_PID",)))
    finally:
        shutil.rmtree(directory)
    if stored != case.messages:
        raise SystemExit(f"{case.name}: {stored} of {case.messages} messages are stored")
    each = 1e6 / case.messages
    return Figures(case.messages / seconds, cpu * each, busy * each)


def show(case: Case, results: dict[str, list[Figures]]) -> None:
    print(f"\n{case.name:43} messages/s  CPU us  journald us")
    medians = {
        name: Figures(*map(statistics.median, zip(*figures, strict=True)))
        for name, figures in results.items()
    }
    for name, (rate, cpu, journald) in medians.items():
        print(f"  {name:41} {rate:10,.0f} {cpu:7.2f} {journald:12.2f}", flush=True)
    for name, peer in PEERS.items():
        if name in medians and peer in medians:
            ours, theirs = medians[name], medians[peer]
            ratio = f"messages/s x {ours.rate / theirs.rate:.2f}"
            if theirs.cpu:
                ratio += f", CPU x {ours.cpu / theirs.cpu:.2f}"
            print(f"  {name} : {peer} = {ratio}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=WAYS, default=list(WAYS), metavar="WAY")
    parser.add_argument("--send", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.send:
        directory, options, *fds = arguments.send
        send_out(directory, ast.literal_eval(options), [int(fd) for fd in fds])
        return
    with tempfile.TemporaryDirectory() as name:
        tools = Tools(*(compile_c(tool, Path(name)) for tool in ("writer", "journal_sender")))
        for case in CASES:
            results: dict[str, list[Figures]] = {name: [] for name in arguments.only}
            for _ in range(arguments.runs):
                for name, figures in results.items():
                    figures.append(measure(WAYS[name], case, tools))
            show(case, results)


if __name__ == "__main__":
    main()
