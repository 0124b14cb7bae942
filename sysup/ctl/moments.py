"""Moments as people type them, for `--since` and `--until`: most of what systemd.time(7) reads.

Pure: what time it is now is an argument. Days without a zone are those of the local one.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta, timezone

SECOND = 1_000_000
"""Microseconds, in which all is counted here, from the epoch."""
LATEST = (1 << 63) - 1
EXAMPLES = "2026-11-25 10:00, 10:00, yesterday, -1h, 10 min ago, @1795600800"

SPELLINGS = {
    1: "us usec µs μs",
    1_000: "ms msec",
    SECOND: "s sec secs second seconds",
    60 * SECOND: "m min mins minute minutes",
    3_600 * SECOND: "h hr hrs hour hours",
    86_400 * SECOND: "d day days",
    7 * 86_400 * SECOND: "w week weeks",
    2_629_800 * SECOND: "M month months",
    31_557_600 * SECOND: "y year years",
}
UNITS = {"": SECOND, **{word: n for n, words in SPELLINGS.items() for word in words.split()}}
"""How long each is; a number alone is seconds."""
DAYS = {"yesterday": -1, "today": 0, "tomorrow": 1}
WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")

PART = r"(\d+(?:\.\d+)?) ?([a-zA-Zµμ]*)"
SPAN = r"(?:\d+(?:\.\d+)? ?[a-zA-Zµμ]+ ?)*\d+(?:\.\d+)? ?[a-zA-Zµμ]*"
RELATIVE = re.compile(rf"(?P<sign>[-+]) ?(?P<span>{SPAN})|(?P<past>{SPAN}) ago", re.ASCII)
DATE = re.compile(
    r"(?:(?P<weekday>[A-Za-z]{3,9}),? )?"
    r"(?:(?P<year>\d{4})-(?P<month>\d\d?)-(?P<day>\d\d?)|(?P<word>yesterday|today|tomorrow))?"
    r"(?:(?:^|[ T])(?P<hour>\d\d?):(?P<minute>\d\d)(?::(?P<second>\d\d)(?:\.(?P<fraction>\d+))?)?)?"
    r"(?: ?(?P<zone>Z|UTC|[-+]\d\d(?::?\d\d)?))?",
    re.ASCII,
)


def parse(text: str, now: int) -> int:
    """The moment that is meant, in microseconds since the epoch; ValueError says why none is."""
    words = " ".join(text.split())
    try:
        moment = _parse(words, now)
    except (ValueError, OverflowError):
        moment = None
    if moment is None:
        raise ValueError(f"cannot read {text!r} as a time: write it like one of {EXAMPLES}")
    if moment > LATEST:
        raise ValueError(f"cannot read {text!r} as a time: it is too late")
    return max(0, moment)


def _parse(words: str, now: int) -> int | None:
    if words == "now":
        return now
    if found := re.fullmatch(r"@(\d+)(?:\.(\d{1,6})\d*)?", words, re.ASCII):
        return int(found[1]) * SECOND + int((found[2] or "").ljust(6, "0"))
    if found := RELATIVE.fullmatch(words):
        length = _length(found["span"] or found["past"])
        return now + (length if found["sign"] == "+" else -length)
    if words and (found := DATE.fullmatch(words)):
        return _absolute(found, now)
    return None


def _length(span: str) -> int:
    """`1h 30min` in microseconds. Raises ValueError for a unit that is none."""
    total = 0
    for number, unit in re.findall(PART, span, re.ASCII):
        known = UNITS.get(unit) or UNITS.get(unit.lower())
        if known is None:
            raise ValueError(unit)
        whole, _, fraction = number.partition(".")
        total += int(whole) * known
        total += int(fraction or 0) * known // 10 ** len(fraction)
    return total


def _absolute(found: re.Match[str], now: int) -> int | None:
    """Of a date, a time or both. Raises ValueError for those that are not in the calendar."""
    if not found["year"] and not found["word"] and not found["hour"]:
        return None
    zone = _zone(found["zone"])
    if found["year"]:
        day = date(int(found["year"]), int(found["month"]), int(found["day"]))
    else:
        today = datetime.fromtimestamp(now // SECOND, zone).date()
        day = today + timedelta(days=DAYS.get(found["word"] or "", 0))
    if found["weekday"] and found["weekday"].lower()[:3] != WEEKDAYS[day.weekday()]:
        return None
    hour, minute, second = (int(found[name] or 0) for name in ("hour", "minute", "second"))
    moment = datetime(day.year, day.month, day.day, hour, minute, second, tzinfo=zone)
    fraction = int((found["fraction"] or "")[:6].ljust(6, "0"))
    return round(moment.timestamp()) * SECOND + fraction


def _zone(text: str | None) -> timezone | None:
    """None is the local one."""
    if not text:
        return None
    if text in ("Z", "UTC"):
        return UTC
    hours, minutes = int(text[1:3]), int(text[3:].lstrip(":") or 0)
    offset = timedelta(hours=hours, minutes=minutes)
    return timezone(-offset if text[0] == "-" else offset)


def show(moment: int) -> str:
    """A moment as `parse` reads it, in local time, to the millisecond."""
    whole, rest = divmod(moment, SECOND)
    return f"{datetime.fromtimestamp(whole):%Y-%m-%d %H:%M:%S}.{rest // 1000:03}"
