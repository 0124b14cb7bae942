"""What is measured. Each scenario takes a supervisor and returns figures by name.

A figure's name ends in its unit. Smaller is better, but for those in MORE_IS_BETTER.
"""

from __future__ import annotations

import os
import random
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.bench.peers import Peer
from tests.bench.run import NS, Missing, Run

Figures = dict[str, float]

MORE_IS_BETTER = frozenset({"MB/s"})
NOT_COMPARED = frozenset({"kills", "starts"})

SETTLE = 3.0
"""Seconds after the start before anything is measured: more than any supervisor asks of a
process that is to count as started."""
LINE = 100
"""Bytes of a line that the child writes."""


@dataclass(frozen=True)
class Scale:
    """How much is measured."""

    children: int = 200
    many: int = 1000
    kills: int = 100
    killing: float = 30.0
    watching: float = 20.0
    writers: int = 100
    lines: int = 20_000


QUICK = Scale(20, 50, 10, 5.0, 3.0, 10, 2_000)


@dataclass(frozen=True)
class Tools:
    """The compiled helpers."""

    child: Path
    verify: Path


def restart(peer: Peer, tools: Tools, scale: Scale) -> Figures:
    """SIGKILL one child after the other; the time to the successor's first instruction."""
    delays: list[float] = []
    with Run(peer, tools.child, ("sleep",), scale.children) as run:
        pids = [report.pid for report in run.all_up()]
        time.sleep(SETTLE)
        before = run.cost()
        deadline = time.monotonic() + scale.killing
        for pid in pids[: scale.kills]:
            time.sleep(random.uniform(0.005, 0.030))  # not in step with anybody's timer
            killed = time.monotonic_ns()
            os.kill(pid, signal.SIGKILL)
            delays.append((run.report(20.0).time - killed) / 1e6)
            if time.monotonic() > deadline:
                break
        cpu = run.cost().cpu - before.cpu
    return {
        "p50 ms": statistics.median(delays),
        "p99 ms": sorted(delays)[max(0, round(len(delays) * 0.99) - 1)],
        "CPU ms/kill": 1000 * cpu / len(delays),
        "kills": len(delays),
    }


def idle(peer: Peer, tools: Tools, scale: Scale) -> Figures:
    """Sleeping children, and nothing to do."""
    with Run(peer, tools.child, ("sleep",), scale.children) as run:
        run.all_up()
        time.sleep(SETTLE)
        before = run.cost()
        time.sleep(scale.watching)
        after = run.cost()
    return {
        "wake-ups/s": (after.switches - before.switches) / scale.watching,
        "CPU ms/s": 1000 * (after.cpu - before.cpu) / scale.watching,
        "PSS MB": after.pss / 1e6,
    }


def start_stop(peer: Peer, tools: Tools, scale: Scale) -> Figures:
    """Some children: until all have begun; after the order to end, until all is gone."""
    return _start_stop(peer, tools, scale.children)


def start_stop_many(peer: Peer, tools: Tools, scale: Scale) -> Figures:
    """The same with many children."""
    return _start_stop(peer, tools, scale.many)


def _start_stop(peer: Peer, tools: Tools, children: int) -> Figures:
    with Run(peer, tools.child, ("sleep",), children) as run:
        reports = run.all_up()
        started = run.cost()
        time.sleep(SETTLE)
        ending = run.end({report.pid for report in reports})
    return {
        "start s": (max(report.time for report in reports) - run.began) / NS,
        "start CPU s": started.cpu,
        "children gone s": ending.children,
        "all gone s": ending.all,
    }


def crash_loop(peer: Peer, tools: Tools, scale: Scale) -> Figures:
    """A command that fails at once, under defaults."""
    starts = 1
    with Run(peer, tools.child, ("fail",), 1) as run:
        run.all_up()
        before = run.cost()
        deadline = time.monotonic() + scale.watching
        try:
            while True:
                run.report(deadline - time.monotonic())
                starts += 1
        except Missing:
            cpu = run.cost().cpu - before.cpu
    return {"starts": starts, "CPU ms/s": 1000 * cpu / scale.watching}


def one_log(peer: Peer, tools: Tools, scale: Scale) -> Figures:
    """Many children write lines to one file, each line by a write of its own."""
    with tempfile.TemporaryDirectory() as directory:
        gate = Path(directory, "gate")
        os.mkfifo(gate)
        mode = ("lines", str(scale.lines), str(gate))
        with Run(peer, tools.child, mode, scale.writers, log=True) as run:
            run.all_up()
            before = run.cost()
            began = time.monotonic()
            opened = os.open(gate, os.O_WRONLY)
            ended = _until_still(run.log, scale.writers * scale.lines * LINE)
            os.close(opened)
            cpu = run.cost().cpu - before.cpu
            written = run.log.stat().st_size
            counts = subprocess.run(
                [tools.verify, run.log], check=True, capture_output=True, text=True
            )
    whole, torn, disordered = map(int, counts.stdout.split())
    return {
        "MB/s": written / 1e6 / (ended - began),
        "CPU s/GB": cpu / (written / 1e9),
        "lost": scale.writers * scale.lines - whole,
        "torn": torn,
        "order": disordered,
    }


def _until_still(path: Path, size: int) -> float:
    """Wait until a file has `size` bytes, or has not grown for two seconds.

    Returns the monotonic time of its last growth.
    """
    last, grown = -1, time.monotonic()
    while last < size and time.monotonic() < grown + 2.0:
        time.sleep(0.01)
        now = path.stat().st_size if path.exists() else 0
        if now != last:
            last, grown = now, time.monotonic()
    return grown


SCENARIOS: dict[str, Callable[[Peer, Tools, Scale], Figures]] = {
    "restart": restart,
    "idle": idle,
    "start_stop": start_stop,
    "start_stop_many": start_stop_many,
    "crash_loop": crash_loop,
    "one_log": one_log,
}
