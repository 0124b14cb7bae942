"""Scenarios of what children print: from their pipes into one file, in whole lines.

Each takes a supervisor or a logger and returns its figures. MB/s are from the opening of the
gate to the last write to the file, as its time of modification tells.
"""

from __future__ import annotations

import subprocess
import time
from dataclasses import dataclass

from tests.bench.peers import Peer
from tests.bench.run import SETTLE, Cost, Figures, Missing, Run, Scale, Tools

LINE = 100
"""Bytes of a line that the child writes."""
BLOCK = 4096
QUIET = 2.0
"""Seconds without a byte after which no more is taken to come."""
PACE = 50
"""Lines a second of each child in `steady`."""


@dataclass(frozen=True)
class Load:
    """So many children, each so many lines, in writes of so many bytes."""

    children: int
    lines: int
    write: int

    @property
    def mode(self) -> tuple[str, ...]:
        """The arguments of the child."""
        return ("lines", str(self.lines), str(self.write))


def bulk(peer: Peer, tools: Tools, scale: Scale) -> Figures:
    """One child that writes as fast as it can."""
    return _write(peer, tools, Load(1, scale.bulk, BLOCK))


def lines(peer: Peer, tools: Tools, scale: Scale) -> Figures:
    """The same, each line by a write of its own."""
    return _write(peer, tools, Load(1, scale.bulk, LINE))


def many(peer: Peer, tools: Tools, scale: Scale) -> Figures:
    """Many children at once, each line by a write of its own."""
    return _write(peer, tools, Load(scale.writers, scale.lines, LINE))


def many_bulk(peer: Peer, tools: Tools, scale: Scale) -> Figures:
    """Many children at once, in writes that end in the midst of lines."""
    return _write(peer, tools, Load(scale.writers, scale.lines, BLOCK))


def stamped(peer: Peer, tools: Tools, scale: Scale) -> Figures:
    """One child in bulk; each line is to have something before it."""
    return _write(peer, tools, Load(1, scale.bulk, BLOCK), stamped=True)


def rotation(peer: Peer, tools: Tools, scale: Scale) -> Figures:
    """One child in bulk, into files of a bounded size."""
    return _write(peer, tools, Load(1, scale.bulk, BLOCK), rotated=True)


def _write(
    peer: Peer, tools: Tools, load: Load, *, stamped: bool = False, rotated: bool = False
) -> Figures:
    with Run(peer, tools.child, load.mode, load.children, log=True) as run:
        run.all_up()
        before = run.cost()
        began = time.time_ns()
        run.open_gate()
        _await_bytes(run, None if stamped else load.children * load.lines * LINE)
        cpu = run.cost().cpu - before.cpu
        parts = run.parts()
        if not parts:
            raise Missing(f"{peer.name}: no log")
        elapsed = (parts[-1].stat().st_mtime_ns - began) / 1e9
        verify = [str(tools.verify), str(int(stamped)), *map(str, parts)]
        counts = subprocess.run(verify, check=True, capture_output=True, text=True).stdout
    whole, torn, disordered, cut = map(int, counts.split())
    arrived = whole * LINE / 1e6  # without stamps, so that they count as work
    return {
        "MB/s": arrived / elapsed,
        "CPU s/GB": 1000 * cpu / arrived if arrived else 0.0,
        "lost": load.children * load.lines - whole,
        "torn": torn,
        "out of order": disordered,
        **({"cut": cut, "files": len(parts)} if rotated else {}),
    }


def _await_bytes(run: Run, size: int | None) -> None:
    """Wait until the log has so many bytes, or has not grown for a while."""
    last, grown = -1, time.monotonic()
    while (size is None or last < size) and time.monotonic() < grown + QUIET:
        time.sleep(0.02)
        try:
            now = sum(path.stat().st_size for path in run.parts())
        except FileNotFoundError:  # rotated meanwhile
            continue
        if now != last:
            last, grown = now, time.monotonic()


def steady(peer: Peer, tools: Tools, scale: Scale) -> Figures:
    """Many children that write a line now and then; its age when it is in the file."""
    count = round(PACE * scale.watching)
    mode = ("paced", str(count), str(1_000_000_000 // PACE))
    with Run(peer, tools.child, mode, scale.writers, log=True) as run:
        run.all_up()
        time.sleep(SETTLE)
        run.log.touch()  # for those that open it with the first line
        total = scale.writers * count
        follow = [str(tools.follow), str(run.log), str(total), str(round(1000 * QUIET))]
        with subprocess.Popen(follow, stdout=subprocess.PIPE, text=True) as reader:
            assert reader.stdout
            reader.stdout.readline()
            before = run.cost()
            began = time.monotonic()
            run.open_gate()
            found = reader.stdout.read()
            after = run.cost()
            elapsed = time.monotonic() - began
    if not found:
        raise Missing(f"{peer.name}: no line came")
    arrived, p50, p99, most = map(int, found.split())
    return {
        "CPU ms/s": 1000 * (after.cpu - before.cpu) / elapsed,
        "p50 ms": p50 / 1e6,
        "p99 ms": p99 / 1e6,
        "most ms": most / 1e6,
        "wake-ups/s": (after.switches - before.switches) / elapsed,
        "lost": total - arrived,
    }


def memory(peer: Peer, tools: Tools, scale: Scale) -> Figures:
    """Children with two pipes each that are silent, and after a line in each.

    The slope between few and many of them, so the supervisor's own size is not in it, but
    what it keeps of a process is.
    """
    few, many = scale.silent
    silent_few, spoken_few, _ = _silence(peer, tools, few, 0.0)
    silent_many, spoken_many, wake_ups = _silence(peer, tools, many, scale.watching)
    streams = 2 * (many - few)
    return {
        "silent KiB/stream": (silent_many.pss - silent_few.pss) / 1024 / streams,
        "after a line": (spoken_many.pss - spoken_few.pss) / 1024 / streams,
        "silent MB": silent_many.pss / 1e6,
        "wake-ups/s": wake_ups,
    }


def _silence(peer: Peer, tools: Tools, children: int, watching: float) -> tuple[Cost, Cost, float]:
    """Cost before and after each child has written, and wake-ups a second before."""
    with Run(peer, tools.child, ("say",), children, log=True, errors=True) as run:
        run.all_up(240.0)
        time.sleep(SETTLE)
        silent = run.cost()
        time.sleep(watching)
        switches = run.cost().switches - silent.switches
        run.open_gate()
        _await_bytes(run, children * LINE)
        time.sleep(SETTLE)
        return silent, run.cost(), switches / watching if watching else 0.0
