"""Times as people type them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sysup.ctl import moments
from sysup.ctl.moments import LATEST, SECOND, parse

HOUR = 3600 * SECOND
NOW = 1_795_600_800 * SECOND + 250_000
"""2026-11-25 10:00:00.25 UTC, in Berlin an hour later."""


@pytest.fixture(autouse=True, scope="module")
def berlin() -> Iterator[None]:
    """A zone with summer time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", "Europe/Berlin")
        time.tzset()
        yield
    time.tzset()


def utc(*numbers: int) -> int:
    return round(datetime(*numbers, tzinfo=UTC).timestamp()) * SECOND  # type: ignore[misc,arg-type]


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("now", NOW),
        ("-1h", NOW - HOUR),
        ("- 1 hour", NOW - HOUR),
        ("+90min", NOW + 3 * HOUR // 2),
        ("-1h30min", NOW - 3 * HOUR // 2),
        ("1h 30min ago", NOW - 3 * HOUR // 2),
        ("  10   min  ago ", NOW - HOUR // 6),
        ("10 Min ago", NOW - HOUR // 6),
        ("1.5h ago", NOW - 3 * HOUR // 2),
        ("-0.000001", NOW - 1),
        ("-5", NOW - 5 * SECOND),
        ("5 ago", NOW - 5 * SECOND),
        ("2 days ago", NOW - 48 * HOUR),
        ("1w ago", NOW - 168 * HOUR),
        ("-1M", NOW - 2_629_800 * SECOND),
        ("-1m", NOW - 60 * SECOND),
        ("-1y", NOW - 31_557_600 * SECOND),
        ("-3ms 2us", NOW - 3_002),
        ("-1000y", 0),
        ("@1795600800", NOW - 250_000),
        ("@1795600800.25", NOW),
        ("@0.0000019", 1),
        ("today", utc(2026, 11, 24, 23)),
        ("yesterday", utc(2026, 11, 23, 23)),
        ("tomorrow", utc(2026, 11, 25, 23)),
        ("yesterday 08:30", utc(2026, 11, 24, 7, 30)),
        ("10:00", utc(2026, 11, 25, 9)),
        ("8:05:09.5", utc(2026, 11, 25, 7, 5, 9) + SECOND // 2),
        ("2026-11-25", utc(2026, 11, 24, 23)),
        ("2026-11-25 10:00", utc(2026, 11, 25, 9)),
        ("2026-11-25 10:00:59", utc(2026, 11, 25, 9, 0, 59)),
        ("2026-7-1 10:00", utc(2026, 7, 1, 8)),
        ("Wed 2026-11-25 10:00:00", utc(2026, 11, 25, 9)),
        ("wednesday 2026-11-25", utc(2026, 11, 24, 23)),
        ("2026-11-25 10:00:00 UTC", utc(2026, 11, 25, 10)),
        ("2026-11-25T10:00:00.123456789Z", utc(2026, 11, 25, 10) + 123_456),
        ("2026-11-25T10:00:00+02:00", utc(2026, 11, 25, 8)),
        ("2026-11-25 10:00 -0330", utc(2026, 11, 25, 13, 30)),
        ("2026-11-25 10:00 +02", utc(2026, 11, 25, 8)),
        ("23:30 UTC", utc(2026, 11, 25, 23, 30)),
    ],
)
def test_what_is_meant(text: str, moment: int) -> None:
    assert parse(text, NOW) == moment


def test_yesterday_has_its_own_clock() -> None:
    """The day after the end of summer time has 25 hours before its noon's noon."""
    after = utc(2026, 10, 25, 11)
    assert parse("yesterday 12:00", after) == after - 25 * HOUR


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "foo", "ago", "-", "1 h", "h ago", "1h", "-1parsec", "-1h ago", "--1h"),
        *("2026-13-01", "2026-02-30", "2026-11-25 24:00", "25:00", "10:60", "1000", "10:0"),
        *("Tue 2026-11-25", "Foo 2026-11-25", "Wed", "UTC", "@", "@x", "@-1", "@1 2"),
        *("today yesterday", "10:00 today", "2026-11-25 10:00 CET", "2026-11-25 10:00 +25:00"),
        *("\u0661:00", "-\u00b2h", "0001-01-01x", "1" * 100_000, "-" + "1h" * 1000 + "!"),
    ],
)
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(ValueError, match=r"^cannot read .* as a time: write it like one of 2026"):
        parse(text, NOW)


@pytest.mark.parametrize("text", ["@99999999999999", "+400000y"])
def test_what_is_too_late(text: str) -> None:
    with pytest.raises(ValueError, match="too late"):
        parse(text, NOW)


@given(st.text(alphabet="0123456789:-+. TZUCagohmindwyesrt@M", max_size=30) | st.text())
def test_any_text_is_a_time_or_refused(text: str) -> None:
    with suppress(ValueError):
        assert 0 <= parse(text, NOW) <= LATEST


@given(st.integers(0, utc(2999, 1, 1)))
def test_what_is_shown_can_be_typed(moment: int) -> None:
    typed = parse(moments.show(moment), NOW)
    hour_twice = HOUR  # when summer time ends an hour comes twice, and the first is meant
    assert moment // 1000 * 1000 - typed in (0, hour_twice)


@given(
    st.lists(
        st.tuples(st.integers(0, 9999), st.sampled_from(sorted(moments.UNITS.keys() - {""}))),
        min_size=1,
        max_size=5,
    ),
    st.sampled_from(["", " "]),
)
def test_spans_add_up(parts: list[tuple[int, str]], between: str) -> None:
    length = sum(number * moments.UNITS[unit] for number, unit in parts)
    span = between.join(f"{number}{between}{unit}" for number, unit in parts)
    assert parse(f"{span} ago", NOW) == max(0, NOW - length)
    assert parse(f"-{span}", NOW) == max(0, NOW - length)
