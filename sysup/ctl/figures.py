"""What `top` shows: the figures of processes as they come in, and the lines made of them.

Pure: messages and sizes in, text out. All that came from elsewhere is made clean before it is
measured, so no name or value can command the terminal or break a column.
"""

from __future__ import annotations

import unicodedata
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import click

from sysup.ctl.render import clean, clock_seconds, count, duration, number

HISTORY = 120
"""Figures that are remembered of a process."""
PATIENT = 3
"""Rounds without a word after which a process is taken to have gone: a message may be lost."""
END = "stat.circus"
"""The topic that ends a round."""
BLOCKS = " ▁▂▃▄▅▆▇█"
PLAIN_BLOCKS = " .:-=+*#"
GRAPH = 12
"""Cells of a graph, where there is room for it."""
GOES_UP = frozenset({"name", "pid", "user"})
"""Sorted with the least first, which of figures is the other way round."""


class Process:
    """A process of a watcher."""

    def __init__(self, watcher: str, pid: int) -> None:
        self.watcher = watcher
        self.pid = pid
        self.info: Mapping[str, Any] = {}
        self.silent = 0
        """Rounds since it was heard of."""
        self.cpu: deque[float] = deque(maxlen=HISTORY)
        self.memory: deque[float] = deque(maxlen=HISTORY)

    def take(self, info: Mapping[str, Any]) -> None:
        """Its newest figures."""
        self.info = info
        self.silent = 0
        self.cpu.append(max(0.0, number(info.get("cpu"))))
        self.memory.append(max(0.0, number(info.get("mem"))))

    @property
    def name(self) -> str:
        """`web.1`."""
        wid = self.info.get("wid")
        return clean(self.watcher if wid is None else f"{self.watcher}.{wid}")

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return {"watcher": self.watcher, **self.info}


ORDERS: dict[str, Callable[[Process], Any]] = {
    "cpu": lambda p: number(p.info.get("cpu")),
    "mem": lambda p: number(p.info.get("mem")),
    "time": lambda p: clock_seconds(p.info.get("ctime")),
    "age": lambda p: number(p.info.get("age")),
    "name": lambda p: (p.watcher.lower(), number(p.info.get("wid"))),
    "pid": lambda p: p.pid,
    "user": lambda p: str(p.info.get("username")),
}
"""What processes can be sorted by."""


class Figures:
    """All processes of those watchers (empty: of all)."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._names = frozenset(name.lower() for name in names)
        self._processes: dict[tuple[str, int], Process] = {}
        self.daemon: Mapping[str, Any] = {}
        """Figures of the daemon itself."""
        self.rounds = 0

    def take(self, topic: str, told: Any) -> bool:
        """Note a message; whether it ends a round. What has another shape is passed over."""
        if not isinstance(told, Mapping):
            return False
        if topic == END:
            self._end_round()
            return True
        _, _, rest = topic.partition(".")
        name, _, pid = rest.rpartition(".")
        if not name or not pid.isdecimal() or name == "sockets":
            return False
        if name == "circus":
            self.daemon = told if told.get("name") == "circusd" else self.daemon
            return False
        watcher = str(told.get("watcher", name))
        if not self._names or watcher.lower() in self._names:
            key = watcher, int(pid)
            self._processes.setdefault(key, Process(*key)).take(told)
        return False

    def _end_round(self) -> None:
        self.rounds += 1
        for key, process in list(self._processes.items()):
            process.silent += 1
            if process.silent > PATIENT:
                del self._processes[key]

    def sorted(self, order: str, *, reverse: bool = False) -> list[Process]:
        """The processes, the largest figure or the first name first."""
        found = sorted(self._processes.values(), key=lambda p: (p.watcher, p.pid))
        down = (order not in GOES_UP) is not reverse
        return sorted(found, key=ORDERS[order], reverse=down)

    def summary(self) -> str:
        """All together, in a line."""
        all_of_them = self._processes.values()
        cpu = sum(max(0.0, number(p.info.get("cpu"))) for p in all_of_them)
        memory = sum(max(0.0, number(p.info.get("mem"))) for p in all_of_them)
        words = [
            count(len(self._processes), "process"),
            f"cpu {cpu:.1f}%",
            f"memory {memory:.1f}%",
        ]
        if self.daemon:
            own = clean(self.daemon.get("mem_info1", "?"))
            words.append(f"sysupd {number(self.daemon.get('cpu')):.1f}% {own}")
        return ", ".join(words)


# ---- lines -------------------------------------------------------------------------------

COLUMNS = ("NAME", "PID", "USER", "CPU%", "", "RSS", "MEM%", "", "CTIME", "AGE", "COMMAND")
RIGHT = frozenset({1, 3, 5, 6, 8, 9})
GRAPHS = (4, 7)
NAME_WIDTH, USER_WIDTH = 24, 12
"""The most that is shown of them."""
HOT = 80.0
"""Per cent of a CPU from which a figure stands out."""


def table(
    processes: Sequence[Process], width: int | None = None, blocks: str = BLOCKS
) -> list[str]:
    """A line for each process; with a `width` cut to it, and with graphs if they fit."""
    graph = GRAPH if width is not None and width >= 80 + 2 * GRAPH else 0
    rows = [[*COLUMNS], *(_row(process, graph, blocks) for process in processes)]
    shown = [at for at in range(len(COLUMNS)) if graph or at not in GRAPHS]
    widths = {at: max(cells(row[at]) for row in rows) for at in shown}
    if width is not None:
        widths[0] = min(widths[0], NAME_WIDTH)
    lines = []
    for at, row in enumerate(rows):
        parts = [pad(row[c], widths[c], right=c in RIGHT) for c in shown]
        line = "  ".join(parts).rstrip()
        line = line if width is None else fit(line, width)
        lines.append(_styled(line, None if at == 0 else processes[at - 1]))
    return lines


def _row(process: Process, graph: int, blocks: str) -> list[str]:
    info = process.info
    age = number(info.get("age"))
    return [
        process.name,
        str(process.pid),
        fit(clean(info.get("username", "-")), USER_WIDTH),
        decimal(info.get("cpu")),
        sparkline(process.cpu, graph, 100.0, blocks),
        clean(info.get("mem_info1", "-")),
        decimal(info.get("mem")),
        sparkline(process.memory, graph, 0.0, blocks),
        clean(info.get("ctime", "-")),
        duration(age) if age >= 0 else "-",
        clean(info.get("cmdline", "-")) or "-",
    ]


def _styled(line: str, process: Process | None) -> str:
    if process is None:
        return click.style(line, bold=True)
    if process.silent > 1:
        return click.style(line, dim=True)
    hot = number(process.info.get("cpu")) >= HOT
    return click.style(line, fg="yellow") if hot else line


def decimal(value: object) -> str:
    """A figure with one decimal; what is none as it came."""
    found = number(value)
    return f"{found:.1f}" if found >= 0 else clean("-" if value is None else value)


def sparkline(values: Sequence[float], width: int, top: float, blocks: str = BLOCKS) -> str:
    """The last values as so many small bars, the newest at the right; the highest is `top` or
    the largest among them."""
    if not width:
        return ""
    shown = list(values)[-width:]
    highest = max(top, *shown, 1e-9)
    steps = len(blocks) - 1
    bars = (blocks[min(steps, -int(-value * steps // highest))] for value in shown)
    return "".join(bars).rjust(width)


def cells(text: str) -> int:
    """How many cells of a terminal clean text takes."""
    if text.isascii():
        return len(text)
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def fit(text: str, width: int) -> str:
    """Clean text cut to so many cells."""
    if cells(text) <= width:
        return text
    kept, room = [], width
    for character in text:
        room -= cells(character)
        if room < 0:
            break
        kept.append(character)
    return "".join(kept)


def pad(text: str, width: int, *, right: bool = False) -> str:
    """Clean text in so many cells."""
    text = fit(text, width)
    blanks = " " * (width - cells(text))
    return blanks + text if right else text + blanks
