"""Figures of processes, from /proc, in the shape that Circus's clients know.

One pass through /proc serves all processes of one question, so what it costs grows with the
number of processes and not with its square. It is made in steps of one process each, some tens of
microseconds, between which whoever drives it may do other things. Parsing takes text; only
`Stats` and the functions at the end read files.
"""

from __future__ import annotations

import os
import pwd
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Generator
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias, TypeVar

T = TypeVar("T")
Steps: TypeAlias = Generator[None, None, T]
"""Work in small steps, and what comes of it."""
Infos: TypeAlias = dict[int, dict[str, Any] | str]
"""What is told of processes, by pid."""

TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
REMEMBERED = 16384
"""Processes whose last CPU time is kept, for the rate since then."""
NAMED_FOR = 5.0
"""Seconds for which the user and the program of a process, if it looks like the same, are known."""
UNITS = "KMGTPEZY"
GONE = "No such process (stopped?)"
NOT_KNOWN = "N/A"
"""As Circus words them."""


class Figures(NamedTuple):
    """What /proc/PID/stat tells (proc(5)); times in seconds, sizes in bytes."""

    pid: int
    comm: str
    ppid: int
    nice: int
    cpu_time: float
    start: float
    """Seconds from boot to its start."""
    virtual: int
    resident: int


Read: TypeAlias = tuple[Figures, float]
"""Figures, and when they were read: a pass may take its time."""


class Seen(NamedTuple):
    """A process as it was when it was last looked at."""

    cpu_time: float
    at: float
    comm: str
    owner: str
    program: str
    read_at: float
    """When the last two were read, which takes as long as all else."""


def parse_stat(text: str) -> Figures:
    """Read a line of /proc/PID/stat. Raises ValueError when it is none."""
    head, _, tail = text.rpartition(")")
    fields = tail.split(maxsplit=22)
    if len(fields) < 22:
        raise ValueError("not a line of /proc/PID/stat")
    pid, _, comm = head.partition(" (")
    return Figures(
        pid=int(pid),
        comm=comm,
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


def parse_ppid(text: str) -> int:
    """The parent alone, of a line of /proc/PID/stat. Raises ValueError when it is none."""
    _, _, tail = text.rpartition(")")
    _, ppid, _ = tail.split(maxsplit=2)
    return int(ppid)


def human_bytes(number: int) -> str:
    """A size as Circus writes it: 1.46M."""
    at = min((number.bit_length() - 1) // 10, len(UNITS))
    if at <= 0:
        return f"{number}B"
    return f"{round(number / (1 << 10 * at), 2)}{UNITS[at - 1]}"


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
        self._seen: dict[tuple[int, float], Seen] = {}

    def info(self, pid: int, wall: float) -> dict[str, Any] | str:
        """Figures of one process, its children left out; GONE when there is none.

        `wall` is the present time, in seconds since the epoch.
        """
        figures = figures_of(pid)
        return GONE if figures is None else self._describe(figures, self._clock(), wall)

    def infos(self, pids: Collection[int], wall: float) -> Steps[Infos]:
        """Figures of several processes and their children; GONE for those that are."""
        found, below = yield from read_all(frozenset(pids), self._clock)
        answer: Infos = {}
        for pid in pids:
            if pid not in found:
                answer[pid] = GONE
                continue
            info = self._describe(*found[pid], wall)
            info["children"] = [self._describe(*child, wall) for child in below.get(pid, ())]
            answer[pid] = info
            yield
        return answer

    def _describe(self, figures: Figures, now: float, wall: float) -> dict[str, Any]:
        age = max(0.0, now - figures.start)
        seen, rate = self._look(figures, now)
        return {
            "mem_info1": human_bytes(figures.resident),
            "mem_info2": human_bytes(figures.virtual),
            "cpu": rate,
            "mem": round(100 * figures.resident / self._memory, 3),
            "ctime": clock_time(figures.cpu_time),
            "pid": figures.pid,
            "username": seen.owner,
            "nice": figures.nice,
            "create_time": round(wall - age, 2),
            "age": round(age, 2),
            "cmdline": seen.program,
            "children": [],
        }

    def _look(self, figures: Figures, now: float) -> tuple[Seen, float]:
        """A process as it is, and its per cent of one CPU since the last look; 0 at the first."""
        pid, comm, cpu_time = figures.pid, figures.comm, figures.cpu_time
        key = (pid, figures.start)
        before = self._seen.pop(key, None)
        if before is None or before.comm != comm or now - before.read_at >= NAMED_FOR:
            seen = Seen(cpu_time, now, comm, owner(pid), program(pid), now)
        else:
            seen = Seen(cpu_time, now, comm, before.owner, before.program, before.read_at)
        self._seen[key] = seen
        if len(self._seen) > REMEMBERED:
            del self._seen[next(iter(self._seen))]
        if before is None or now <= before.at:
            return seen, 0.0
        return seen, round(100 * (cpu_time - before.cpu_time) / (now - before.at), 1)


def whole(work: Steps[T]) -> T:
    """Do all steps at once."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            result: T = end.value
            return result


def figures_of(pid: int) -> Figures | None:
    """Figures of one process; None when it has gone."""
    text = stat_line(pid)
    return parse_stat(text) if text else None


def stat_line(pid: int) -> str:
    """Of /proc/PID/stat; empty when the process has gone."""
    try:
        return read(f"/proc/{pid}/stat")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def read_all(
    pids: Collection[int], clock: Callable[[], float]
) -> Steps[tuple[dict[int, Read], dict[int, list[Read]]]]:
    """Look at every process: figures of these by pid, and of their children by parent."""
    found: dict[int, Read] = {}
    below: dict[int, list[Read]] = defaultdict(list)
    for name in os.listdir("/proc"):
        if not name.isdecimal():
            continue
        text = stat_line(pid := int(name))
        if text and pid in pids:
            found[pid] = parse_stat(text), clock()
        if text and (ppid := parse_ppid(text)) in pids:
            below[ppid].append(found.get(pid) or (parse_stat(text), clock()))
        yield
    return found, below


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
