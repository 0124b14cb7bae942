"""Reads back what writers wrote, and counts what is wrong with it.

A writer says in memory of its own how many lines it has written (writer.c), so what is to be
there does not depend on what is.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from tests.lab import Container

FILLER = 90
FILLERS = tuple("x" * length for length in range(FILLER))
LONG, LONGER = 50, 111
"""As in writer.c."""
FIELD = re.compile(rb"(?m)^([A-Z_]+)=(.*)$")


class Found(NamedTuple):
    """A line that was found, and for one of the journal: whose it is said to be, and when it came
    in, by the monotonic clock."""

    text: str
    wid: str = ""
    pid: str = ""
    time: float = 0.0


@dataclass
class Tally:
    """Lines that are right, and those that are not."""

    lines: int = 0
    lost: int = 0
    torn: int = 0
    doubled: int = 0
    disordered: int = 0

    misnamed: int = 0
    """Entries of the journal that name another process than wrote them."""
    gaps: list[tuple[float, float, int]] = field(default_factory=list)
    """When the lines before and after some that are lost came in, and how many these are."""
    told: list[str] = field(default_factory=list)
    """Whose lines are lost, and which."""

    def add(self, other: Tally) -> None:
        """Count the two together."""
        self.lines += other.lines
        self.lost += other.lost
        self.torn += other.torn
        self.doubled += other.doubled
        self.disordered += other.disordered
        self.misnamed += other.misnamed
        self.gaps += other.gaps
        self.told += other.told


def count(written: Mapping[str, int], found: Iterable[Found], *, killed: bool = False) -> Tally:
    """Hold what was found against how many lines each process wrote.

    Args:
        killed: processes were, so each may have written one line more than it says.
    """
    tally = Tally()
    seen: dict[str, Counter[int]] = {name: Counter() for name in written}
    latest = dict.fromkeys(written, 0)
    times: dict[str, dict[int, float]] = {name: {} for name in written}
    for line in found:
        name, number = parse(line.text)
        if name not in seen or number > written[name] + killed:
            tally.torn += 1
            continue
        if line.pid and name.rsplit(".", 2)[1:] != [line.wid, line.pid]:
            tally.misnamed += 1
        tally.lines += 1
        tally.disordered += number < latest[name] and not seen[name][number]
        latest[name] = max(latest[name], number)
        seen[name][number] += 1
        times[name].setdefault(number, line.time)
    for name, number in written.items():
        tally.doubled += seen[name].total() - len(seen[name])
        lost = [n for n in range(1, number + 1) if n not in seen[name]]
        tally.lost += len(lost)
        if lost:
            tally.told.append(f"{name}: {len(lost)} of {number} are lost, {lost[0]} to {lost[-1]}")
        tally.gaps += gaps(lost, times[name])
    return tally


def parse(line: str) -> tuple[str, int]:
    """Who wrote it, and its number; an empty name if it is not whole."""
    name, _, rest = line.partition(" ")
    number, _, filler = rest.partition(" ")
    if not number.isdecimal():
        return "", 0
    wanted = FILLERS[int(number) % FILLER]
    if filler != wanted and (int(number) % LONG or filler != wanted * LONGER):
        return "", 0
    return name, int(number)


def gaps(lost: list[int], times: Mapping[int, float]) -> Iterator[tuple[float, float, int]]:
    """Runs of lost lines: when those around came in, and how many were lost."""
    for place, number in enumerate(lost):
        if place == 0 or lost[place - 1] != number - 1:
            begin = number
        if place + 1 == len(lost) or lost[place + 1] != number + 1:
            before = times.get(begin - 1, 0.0)
            yield before, times.get(number + 1, float("inf")), number - begin + 1


def of_files(directory: Path, name: str) -> Iterator[Found]:
    """The lines of a file and of its rotated parts, the oldest part first."""
    parts = directory.glob(f"{name}*")
    for path in sorted(parts, key=lambda path: -int(path.name[len(name) + 1 :] or 0)):
        text = path.read_text(errors="replace")
        yield from map(Found, text.removesuffix("\n").split("\n") if text else ())


def of_journal(machine: Container, app: str, watcher: str) -> Iterator[Found]:
    """The entries of a watcher, in the order of the journal."""
    match = f"SYSUP_APP={app} SYSUP_WATCHER={watcher} SYSUP_STREAM=stdout"
    fields = "MESSAGE,SYSUP_WID,SYSLOG_PID"
    machine.run(["journalctl", "--sync"], timeout=120)
    machine.run(
        ["sh", "-c", f"journalctl -qo export --output-fields={fields} {match} >/root/{watcher}"],
        timeout=600,
    )
    with machine.path(f"/root/{watcher}").open("rb") as file:
        entry: list[bytes] = []
        for line in file:
            if line == b"\n":
                yield parse_entry(b"".join(entry))
                entry.clear()
            else:
                entry.append(line)
    machine.path(f"/root/{watcher}").unlink()


def parse_entry(entry: bytes) -> Found:
    """One that is text; of a binary one there is no message."""
    fields = {key: value.decode(errors="replace") for key, value in FIELD.findall(entry)}
    return Found(
        fields.get(b"MESSAGE", ""),
        fields.get(b"SYSUP_WID", ""),
        fields.get(b"SYSLOG_PID", ""),
        int(fields.get(b"__MONOTONIC_TIMESTAMP", "0")) / 1e6,
    )
