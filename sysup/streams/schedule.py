"""When a log is rotated by time, and what the rotated file is called.

Periods are aligned to the clock on the wall, so that a restart doesn't shift them. Of N periods
each the N-th counts, reckoned from Thursday, 1970-01-01 00:00 of that clock; weeks from
Monday, 1970-01-05.

The clock may jump. A mark that it skips is taken to be reached at the jump: a midnight that does
not exist, an hour at the beginning of summer. Of the marks that it shows twice,

- days and weeks count the first: a day of 25 hours is one period;
- seconds, minutes and hours count both, for else nothing would be rotated for an hour. The
  names are the same twice then.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from typing import Any

DAY = 86400
FIRST_MONDAY = 4
"""Days from 1970-01-01."""

SECONDS = {"S": 1, "M": 60, "H": 3600}
FORMATS = {"S": "%Y%m%d%H%M%S", "M": "%Y%m%d%H%M", "H": "%Y%m%d%H"}
DAY_FORMAT = "%Y%m%d"
"""Of the longer periods; all are those of Circus."""

Offset = Callable[[int], int]
"""By how many seconds a clock is ahead of UTC at an instant."""


@dataclass(frozen=True)
class Schedule:
    """When to rotate.

    Attributes:
        when: S, M, H, D, MIDNIGHT, or W0 (Monday) to W6.
        interval: rotate at each so many of them.
        at: of MIDNIGHT and the weekdays, seconds since the beginning of the day; None: 0.
        utc: reckon in UTC, not in local time.
    """

    when: str
    interval: int = 1
    at: int | None = None
    utc: bool = False

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Schedule | None:
        """What the options of a stream say; None: it isn't rotated by time."""
        at = options.get("rotate_at")
        when = options.get("rotate_when") or ("MIDNIGHT" if at is not None else None)
        if when is None:
            return None
        return cls(when, options.get("rotate_interval", 1), at, bool(options.get("utc")))

    def next(self, now: float, last: float, zone: tzinfo | None = None) -> tuple[int, str]:
        """The end of the period of `last`, in seconds since the epoch, and its suffix.

        The suffix tells when that period began. An end that is not after `now` is due at once.

        Args:
            last: when the file was begun, or last written to before it was opened; one that
                is after `now`, as when the clock was set back, counts as `now`.
            zone: of local time; None: the one of this process.
        """
        zone = UTC if self.utc else zone
        offset = _offset(zone)
        moment = math.floor(min(last, now))
        if step := SECONDS.get(self.when, 0) * self.interval:
            begin, end = _begin(offset, step, moment), _end(offset, step, moment)
        else:
            begin, end = self._days(offset, moment)
        return end, _text(begin, FORMATS.get(self.when, DAY_FORMAT), zone)

    def _days(self, offset: Offset, moment: int) -> tuple[int, int]:
        """Begin and end of a period of whole days."""
        step, first = DAY * self.interval, self.at or 0
        if self.when.startswith("W"):
            step, first = 7 * step, first + (FIRST_MONDAY + int(self.when[1])) * DAY
        mark = (moment + offset(moment) - first) // step * step + first
        while (end := _reached(offset, mark + step)) <= moment:
            mark += step
        return _reached(offset, mark), end


# ---- a clock and its jumps ---------------------------------------------------------------


def _offset(zone: tzinfo | None) -> Offset:
    if zone is None:
        return lambda moment: time.localtime(moment).tm_gmtoff
    if zone is UTC:
        return lambda _: 0
    return lambda moment: _seconds_ahead(datetime.fromtimestamp(moment, zone))


def _seconds_ahead(moment: datetime) -> int:
    ahead = moment.utcoffset()
    return round(ahead.total_seconds()) if ahead else 0


def _text(moment: int, form: str, zone: tzinfo | None) -> str:
    if zone is None:
        return time.strftime(form, time.localtime(moment))
    if zone is UTC:
        return time.strftime(form, time.gmtime(moment))
    return datetime.fromtimestamp(moment, zone).strftime(form)


def _jump(offset: Offset, after: int, until: int) -> int | None:
    """When the clock jumps first in (after, until]; two jumps of one day may go unseen."""
    while after < until:
        reach = min(after + DAY, until)
        if offset(reach) != (before := offset(after)):
            while reach - after > 1:
                middle = (after + reach) // 2
                after, reach = (after, middle) if offset(middle) != before else (middle, reach)
            return reach
        after = reach
    return None


def _last_jump(offset: Offset, after: int, until: int) -> int | None:
    """When it jumps last in (after, until]: the first jump for who goes back in time."""
    jump = _jump(lambda moment: offset(-moment), -until, -after)
    return None if jump is None else 1 - jump


def _reached(offset: Offset, mark: int) -> int:
    """When the clock shows `mark` or more for the first time."""
    moment = mark - DAY
    while (jump := _jump(offset, moment, mark - offset(moment))) is not None:
        if jump + offset(jump) >= mark:
            return jump
        moment = jump
    return mark - offset(moment)


def _end(offset: Offset, step: int, moment: int) -> int:
    """When the clock next shows a multiple of `step`, or skips one."""
    while True:
        ahead = offset(moment)
        mark = ((moment + ahead) // step + 1) * step
        jump = _jump(offset, moment, mark - ahead)
        if jump is None:
            return mark - ahead
        shown = jump + offset(jump)
        if shown >= mark or shown % step == 0:
            return jump
        moment = jump


def _begin(offset: Offset, step: int, moment: int) -> int:
    """When it last did so: the greatest of all ends that are not after `moment`."""
    while True:
        ahead = offset(moment)
        mark = (moment + ahead) // step * step
        jump = _last_jump(offset, mark - ahead, moment)
        if jump is None:
            return mark - ahead
        if jump - 1 + offset(jump - 1) < mark:
            return jump
        moment = jump - 1
