"""Figures of processes, from /proc, in the shape that Circus's clients know.

One pass through /proc serves all processes of one question, so what it costs grows with the
number of processes and not with its square. It is made in steps of some processes each, less than
half a millisecond, between which whoever drives it may do other things. What the kernel tells of
each is read by a function in C, which comes as an argument.
"""

from __future__ import annotations

import os
import pwd
from collections import defaultdict
from collections.abc import Callable, Collection, Generator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias, TypeVar

T = TypeVar("T")
Steps: TypeAlias = Generator[None, None, T]
"""Work in small steps, and what comes of it."""
Infos: TypeAlias = dict[int, dict[str, Any] | str]
"""What is told of processes, by pid."""

TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
NS = 1_000_000_000
REMEMBERED = 16384
"""Processes whose last CPU time is kept, for the rate since then."""
BATCH = 32
"""Processes that are looked at in one step."""
NAMED_FOR = 5.0
"""Seconds for which the user and the program of a process, if it looks like the same, are known."""
UNITS = "KMGTPEZY"
GONE = "No such process (stopped?)"
NOT_KNOWN = "N/A"
"""As Circus words them."""


class Figures(NamedTuple):
    """What /proc/PID/stat tells (proc(5)), as the kernel counts it."""

    pid: int
    ppid: int
    nice: int
    comm: bytes
    start: int
    """Clock ticks from boot to its start."""
    cpu: int
    """Clock ticks."""
    virtual: int
    """Bytes."""
    resident: int
    """Pages."""
    read_at: int
    """Nanoseconds from boot to when this was read: a pass may take its time."""


Look: TypeAlias = Callable[[Sequence[int]], list[tuple[Any, ...]]]
"""Takes pids, and gives the fields of Figures of those that are there. Raises OSError."""


class Seen(NamedTuple):
    """A process as it was when it was last looked at."""

    cpu_time: float
    at: float
    comm: bytes
    owner: str
    program: str
    read_at: float
    """When the last two were read, which takes as long as all else."""


def parse_memory(text: str) -> int:
    """Bytes of memory that /proc/meminfo tells the machine has. Raises ValueError if it doesn't."""
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        if name == "MemTotal":
            return int(rest.split()[0]) * 1024
    raise ValueError("no MemTotal in /proc/meminfo")


@lru_cache(4096)
def human_bytes(number: int) -> str:
    """A size as Circus writes it: 1.46M."""
    at = min((number.bit_length() - 1) // 10, len(UNITS))
    if at <= 0:
        return f"{number}B"
    return f"{round(number / (1 << 10 * at), 2)}{UNITS[at - 1]}"


@lru_cache(4096)
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


class Stats:
    """Answers questions, and remembers CPU times from one to the next.

    Args:
        look: reads what the kernel tells.
    """

    def __init__(self, look: Look) -> None:
        self._look_at = look
        self._memory = parse_memory(read("/proc/meminfo"))
        self._seen: dict[tuple[int, int], Seen] = {}

    def info(self, pid: int, wall: float) -> dict[str, Any] | str:
        """Figures of one process, its children left out; GONE when there is none.

        `wall` is the present time, in seconds since the epoch.
        """
        found = self._look_at([pid])
        return self._describe(Figures(*found[0]), wall) if found else GONE

    def infos(self, pids: Collection[int], wall: float) -> Steps[Infos]:
        """Figures of several processes and their children; GONE for those that are."""
        found, below = yield from read_all(frozenset(pids), self._look_at)
        answer: Infos = {}
        for pid in pids:
            if pid not in found:
                answer[pid] = GONE
                continue
            info = self._describe(found[pid], wall)
            info["children"] = [self._describe(child, wall) for child in below.get(pid, ())]
            answer[pid] = info
            yield
        return answer

    def _describe(self, figures: Figures, wall: float) -> dict[str, Any]:
        now = figures.read_at / NS
        age = max(0.0, now - figures.start / TICKS)
        cpu_time, resident = figures.cpu / TICKS, figures.resident * PAGE
        seen, rate = self._look(figures, cpu_time, now)
        return {
            "mem_info1": human_bytes(resident),
            "mem_info2": human_bytes(figures.virtual),
            "cpu": rate,
            "mem": round(100 * resident / self._memory, 3),
            "ctime": clock_time(cpu_time),
            "pid": figures.pid,
            "username": seen.owner,
            "nice": figures.nice,
            "create_time": round(wall - age, 2),
            "age": round(age, 2),
            "cmdline": seen.program,
            "children": [],
        }

    def _look(self, figures: Figures, cpu_time: float, now: float) -> tuple[Seen, float]:
        """A process as it is, and its per cent of one CPU since the last look; 0 at the first."""
        pid, comm = figures.pid, figures.comm
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


def read_all(
    pids: Collection[int], look: Look
) -> Steps[tuple[dict[int, Figures], dict[int, list[Figures]]]]:
    """Look at every process: figures of these by pid, and of their children by parent."""
    found: dict[int, Figures] = {}
    below: dict[int, list[Figures]] = defaultdict(list)
    everybody = [int(name) for name in os.listdir("/proc") if name.isdecimal()]
    for at in range(0, len(everybody), BATCH):
        for row in look(everybody[at : at + BATCH]):
            pid, ppid = row[:2]
            if pid in pids:
                found[pid] = Figures(*row)
            if ppid in pids:
                below[ppid].append(Figures(*row))
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
