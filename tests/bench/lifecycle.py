"""Scenarios of processes: starting, restarting, idling, stopping.

Each takes a supervisor and returns its figures.
"""

from __future__ import annotations

import os
import random
import signal
import statistics
import time

from tests.bench.peers import Peer
from tests.bench.run import NS, SETTLE, Figures, Missing, Run, Scale, Tools


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
