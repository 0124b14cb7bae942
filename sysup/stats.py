"""Figures of processes, from /proc, in the shape that Circus's clients know.

One pass through /proc serves all processes of one question, so what it costs grows with the
number of processes and not with its square. Parsing takes text; only `Stats` reads files.
"""

from __future__ import annotations

import os
import pwd
import time
from collections import defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
REMEMBERED = 16384
"""Processes whose last CPU time is kept, for the rate since then."""
GONE = "No such process (stopped?)"
NOT_KNOWN = "N/A"
"""As Circus words them."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What /proc/PID/stat tells (proc(5)); times in seconds, sizes in bytes."""

    pid: int
    ppid: int
    nice: int
    cpu_time: float
    start: float
    """Seconds from boot to its start."""
    virtual: int
    resident: int


def parse_stat(text: str) -> Figures:
    """Read a line of /proc/PID/stat. Raises ValueError when it is none."""
    head, _, tail = text.rpartition(")")
    fields = tail.split()
    if len(fields) < 22:
        raise ValueError("not a line of /proc/PID/stat")
    return Figures(
        pid=int(head.partition(" ")[0]),
        ppid=int(fields[1]),
        nice=int(fields[16]),
        cpu_time=(int(fields[11]) + int(fields[12])) / TICKS,
        start=int(fields[19]) / TICKS,
        virtual=int(fields[20]),
        resident=int(fields[21]) * PAGE,
    )


def parse_memory(text: str) -> int:
    """Bytes of memory that /proc/meminfo tells the machine has. Raises ValueError if it doesn't."""
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        if name == "MemTotal":
            return int(rest.split()[0]) * 1024
    raise ValueError("no MemTotal in /proc/meminfo")


def human_bytes(number: int) -> str:
    """A size as Circus writes it: 1.46M."""
    for at, unit in reversed(list(enumerate("KMGTPEZY", start=1))):
        if number >= 1 << 10 * at:
            return f"{round(number / (1 << 10 * at), 2)}{unit}"
    return f"{number}B"


def clock_time(seconds: float) -> str:
    """CPU time as Circus writes it: minutes, seconds and hundredths, 0:00.34."""
    hundredths = int(seconds * 100)
    return f"{hundredths // 6000}:{hundredths // 100 % 60:02d}.{hundredths % 100:02d}"


@lru_cache(1024)
def user_name(uid: int) -> str:
    """The name of a user, or its number."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def read(path: str) -> str:
    """The beginning of a file of /proc, where all is that is asked for here.

    One read(2), which gives one state of the process; half the time of a file object.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, PAGE).decode("utf-8", "replace")
    finally:
        os.close(fd)


def since_boot() -> float:
    """Seconds since the machine was started, asleep or not: the clock of `Figures.start`."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Stats:
    """Answers questions, and remembers CPU times from one to the next.

    Args:
        clock: seconds since boot.
    """

    def __init__(self, clock: Callable[[], float] = since_boot) -> None:
        self._clock = clock
        self._memory = parse_memory(read("/proc/meminfo"))
        self._last: dict[tuple[int, float], tuple[float, float]] = {}

    def info(self, pid: int, wall: float) -> dict[str, Any] | str:
        """Figures of one process, its children left out; GONE when there is none.

        `wall` is the present time, in seconds since the epoch.
        """
        figures = figures_of(pid)
        return GONE if figures is None else self._describe(figures, self._clock(), wall)

    def infos(self, pids: Collection[int], wall: float) -> dict[int, dict[str, Any] | str]:
        """Figures of several processes and their children, by pid; GONE for those that are."""
        figures = read_all()
        below: dict[int, list[Figures]] = defaultdict(list)
        for each in figures.values():
            below[each.ppid].append(each)
        now = self._clock()
        answer: dict[int, dict[str, Any] | str] = {}
        for pid in pids:
            if pid not in figures:
                answer[pid] = GONE
                continue
            info = self._describe(figures[pid], now, wall)
            info["children"] = [self._describe(c, now, wall) for c in below.get(pid, ())]
            answer[pid] = info
        return answer

    def _describe(self, figures: Figures, now: float, wall: float) -> dict[str, Any]:
        age = max(0.0, now - figures.start)
        pid = figures.pid
        return {
            "mem_info1": human_bytes(figures.resident),
            "mem_info2": human_bytes(figures.virtual),
            "cpu": self._rate(figures, now),
            "mem": round(100 * figures.resident / self._memory, 3),
            "ctime": clock_time(figures.cpu_time),
            "pid": pid,
            "username": owner(pid),
            "nice": figures.nice,
            "create_time": round(wall - age, 2),
            "age": round(age, 2),
            "cmdline": program(pid),
            "children": [],
        }

    def _rate(self, figures: Figures, now: float) -> float:
        """Per cent of one CPU since the last question; 0 at the first."""
        key = (figures.pid, figures.start)
        cpu_time, at = self._last.pop(key, (figures.cpu_time, now))
        self._last[key] = (figures.cpu_time, now)
        if len(self._last) > REMEMBERED:
            del self._last[next(iter(self._last))]
        if now <= at:
            return 0.0
        return round(100 * (figures.cpu_time - cpu_time) / (now - at), 1)


def figures_of(pid: int) -> Figures | None:
    """Figures of one process; None when it has gone."""
    try:
        return parse_stat(read(f"/proc/{pid}/stat"))
    except (FileNotFoundError, ProcessLookupError):
        return None


def read_all() -> dict[int, Figures]:
    """Figures of every process, by pid."""
    pids = [int(name) for name in os.listdir("/proc") if name.isdecimal()]
    return {pid: found for pid in pids if (found := figures_of(pid)) is not None}


def owner(pid: int) -> str:
    """The (effective) user of a process, who owns its directory in /proc.

    The files in there may be root's instead (proc(5), on dumpable), the directory never is.
    """
    try:
        return user_name(os.stat(f"/proc/{pid}").st_uid)
    except FileNotFoundError:
        return NOT_KNOWN


def program(pid: int) -> str:
    """The last part of what a process was started as; a zombie does not tell."""
    try:
        return os.path.basename(read(f"/proc/{pid}/cmdline").partition("\0")[0]) or NOT_KNOWN
    except OSError:
        return NOT_KNOWN
