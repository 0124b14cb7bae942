"""The options of the built-in stream classes: where output goes, and what is done to it.

As in specs.py an option is declared once, in the table of the classes that have it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from sysup.config.declare import Option
from sysup.config.kinds import (
    Choice,
    Flag,
    Kind,
    Octal,
    Seconds,
    Size,
    Text,
    Whole,
    string,
)
from sysup.config.values import Account
from sysup.config.words import split

PRIORITIES = ("emerg", "alert", "crit", "err", "warning", "notice", "info", "debug")
"""Of syslog(3), by their numbers."""
WEEKDAYS = tuple(f"W{day}" for day in range(7))
PERIODS = ("S", "M", "H", "D", "MIDNIGHT", *WEEKDAYS)
COLORS = ("red", "green", "yellow", "blue", "magenta", "cyan", "white")
DAY_TIME = "%Y-%m-%d %H:%M:%S"
MAX_LINE = 65536
LONGEST_LINE = 16 << 20
LARGEST_BUFFER = 256 << 20


@dataclass(frozen=True, slots=True)
class Rate:
    """So many lines in so many seconds."""

    lines: int
    seconds: float


class RateLimit(Kind[Rate]):
    """A number of lines in a time."""

    label = "lines per time (`1000/s`, `100/m`, `5000/30s`)"
    _form = re.compile(r"(\d{1,12})\s*/\s*(\d{0,9}(?:\.\d{1,6})?)\s*(ms|s|m|h|d)?", re.ASCII | re.I)

    def text(self, text: str) -> Rate:
        match = self._form.fullmatch(text.strip())
        if not match or not (match[2] or match[3]):
            raise ValueError(f"'{text}' is not a rate (such as 1000/s)")
        seconds = Seconds().text(f"{match[2] or 1}{match[3] or 's'}")
        if int(match[1]) < 1 or seconds <= 0:
            raise ValueError(f"'{text}' lets nothing pass: select is for that")
        return Rate(int(match[1]), seconds)

    def plain(self, value: Rate) -> Any:
        return f"{value.lines}/s" if value.seconds == 1 else f"{value.lines}/{value.seconds:g}s"


class Patterns(Kind[tuple[str, ...]]):
    """Patterns of lines, split like a shell's words; a list on the wire is taken as it is."""

    label = "patterns"

    def __init__(self, signs: str) -> None:
        self._signs = signs

    def text(self, text: str) -> tuple[str, ...]:
        try:
            return self._checked(split(text))
        except ValueError as error:
            raise ValueError(f"cannot split it: {str(error).lower()}") from None

    def wire(self, value: object) -> tuple[str, ...]:
        if isinstance(value, list):
            return self._checked([string(item) for item in value])
        return self.text(string(value))

    def _checked(self, words: list[str]) -> tuple[str, ...]:
        if any("\n" in word for word in words):
            raise ValueError("a line has no newline in it")
        return tuple(word if word[:1] in self._signs else self._signs[0] + word for word in words)

    def plain(self, value: tuple[str, ...]) -> Any:
        return list(value)


class DayTime(Kind[int]):
    """A time of the day, in seconds since its beginning."""

    label = "time of day (`03:30`)"

    def text(self, text: str) -> int:
        match = re.fullmatch(r"(\d{1,2}):(\d\d)(?::(\d\d))?", text, re.ASCII)
        if not match:
            raise ValueError(f"'{text}' is not a time of day (such as 03:30)")
        hours, minutes, seconds = (int(part or 0) for part in match.groups())
        if hours > 23 or minutes > 59 or seconds > 59:
            raise ValueError(f"'{text}' is not a time of day (such as 03:30)")
        return hours * 3600 + minutes * 60 + seconds

    def plain(self, value: int) -> Any:
        return f"{value // 3600:02}:{value // 60 % 60:02}:{value % 60:02}"


TEXT = Text()
PATH = Text(r"(?s).+", "a path")
LINES = (
    Option(
        "max_line",
        Size(1, LONGEST_LINE),
        MAX_LINE,
        "a longer line is passed on in pieces of this size",
    ),
    Option(
        "select",
        Patterns("+-"),
        (),
        "which lines to take: for each line `+PATTERN` and `-PATTERN` are tried in turn and"
        " the last one that fits decides (`*`: any text without the character that follows"
        " it); if the first one is a `+`, other lines are left out",
    ),
    Option("deselect", Patterns("-"), (), "patterns of lines to leave out, after `select`"),
    Option("rate", RateLimit(), None, "the most lines that all processes of the watcher may write"),
    Option("rate_burst", Whole(1, 10**9), None, "lines at once; default: those of `rate`"),
)
FULL = (
    Option(
        "on_full",
        Choice("block", "drop"),
        "block",
        "where nothing can be written: let the processes wait, or leave lines out and count them",
    ),
    Option(
        "buffer",
        Size(4096, LARGEST_BUFFER),
        1 << 17,
        "bytes that are held for it before it counts as full",
    ),
)
PACE = (
    Option(
        "refresh_time",
        Seconds(),
        0.0,
        "how long bytes may wait to be written together (0: not at all)",
    ),
)
FORM = (
    Option(
        "format",
        Choice("raw", "prefix", "json"),
        "raw",
        "`prefix`: watcher, wid and pid before each line; `json`: an object a line",
    ),
    Option(
        "time_format",
        TEXT,
        None,
        "stamp before each line: strftime(3), `iso` (ISO 8601, microseconds) or `tai64n`",
    ),
)
DAY = Option("time_format", TEXT, DAY_TIME, FORM[1].doc)
FILENAME = Option("filename", PATH, None, "the file (required)")
OWNER = (
    Option("owner", Account(), None, "owner of the file"),
    Option("group", Account(), None, "group of the file"),
    Option("mode", Octal(), None, "mode of the file; default: 666 less the daemon's umask"),
)
BACKUPS = Option(
    "backup_count",
    Whole(0, 10000),
    0,
    "rotated files to keep; 0: no rotation by size or age, and with `rotate_when` all",
)
SIZE = (
    Option("max_bytes", Size(), 0, "rotate before the file grows larger than this (0: never)"),
    Option("rotate_age", Seconds(), 0.0, "rotate when the file is older than this (0: never)"),
)
WHEN = (
    Option(
        "rotate_when",
        Choice(*PERIODS),
        None,
        "rotate each second, minute, hour, day, at midnight, or on a weekday (W0: Monday)",
    ),
    Option("rotate_interval", Whole(1, 10**6), 1, "at each so many of them"),
    Option("rotate_at", DayTime(), None, "time of day for MIDNIGHT (implied) and weekdays"),
    Option("utc", Flag(), False, "reckon in UTC"),
)
AFTER = (
    Option("compress", Choice("gzip", "zstd"), None, "compress rotated files"),
    Option(
        "fsync",
        Choice("never", "rotate", "interval"),
        "never",
        "have the disk keep what was written: at rotation, or at intervals too",
    ),
    Option("fsync_interval", Seconds(), 1.0, "how often, with `fsync = interval`"),
)
COMMON = (*LINES, *FULL, *PACE)
FILE = (FILENAME, *FORM, *COMMON, *OWNER)
COLOR = Option("color", Choice(*COLORS), None, "colour of the lines; default: by chance")
JOURNAL = (
    Option(
        "identifier",
        Text(r"[^\s/\x00-\x1f]+", "an identifier"),
        None,
        "SYSLOG_IDENTIFIER; default: the watcher",
    ),
    Option(
        "priority",
        Choice(*PRIORITIES),
        None,
        "of a line without a `<N>` before it; default: info, and warning for stderr",
    ),
    Option("level_prefix", Flag(), True, "whether `<N>` before a line is its priority"),
)
FIELDS = Option(
    "fields",
    Flag(),
    True,
    "whether entries have SYSUP_WATCHER and so on; without them less work is to be done",
)
_CLASSES: dict[str, tuple[Option, ...]] = {
    "FileStream": (*FILE, *SIZE, BACKUPS, *WHEN, *AFTER),
    "WatchedFileStream": FILE,
    "TimedRotatingFileStream": (*FILE, *SIZE, BACKUPS, *WHEN, *AFTER),
    "StdoutStream": (*FORM, *COMMON),
    "FancyStdoutStream": (COLOR, DAY, *COMMON),
    "QueueStream": (*LINES, *FULL),
    "JournalStream": (*JOURNAL, FIELDS, *COMMON),
    "JournalDirect": JOURNAL,
}
STREAMS = {cls: {option.name: option for option in options} for cls, options in _CLASSES.items()}
"""The options of each class, by name."""
