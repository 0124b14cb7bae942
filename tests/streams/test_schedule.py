"""When files are rotated by time: on days that the clock makes long or short, and others."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from zoneinfo import ZoneInfo, available_timezones

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sysup.streams.schedule import Schedule

FORMS = {"S": "%Y%m%d%H%M%S", "M": "%Y%m%d%H%M", "H": "%Y%m%d%H"}
LENGTHS = {"S": 1, "M": 60, "H": 3600}
DAYS = ("D", "MIDNIGHT", *(f"W{day}" for day in range(7)))
LORD_HOWE = ZoneInfo("Australia/Lord_Howe")
ST_JOHNS = ZoneInfo("America/St_Johns")

zones = st.sampled_from(sorted(available_timezones())).map(ZoneInfo)
moments = st.integers(0, 2**32)
intervals = st.one_of(st.just(1), st.integers(1, 60))
schedules = st.one_of(
    st.builds(Schedule, st.sampled_from(sorted(FORMS)), intervals),
    st.builds(Schedule, st.sampled_from(DAYS), intervals, st.integers(0, 86399)),
)


def at(zone: ZoneInfo, text: str, fold: int = 0) -> int:
    return round(datetime.fromisoformat(text).replace(tzinfo=zone, fold=fold).timestamp())


def name(schedule: Schedule, zone: ZoneInfo, moment: int) -> str:
    form = FORMS.get(schedule.when, "%Y%m%d")
    return datetime.fromtimestamp(moment, zone).strftime(form)


def shown(zone: ZoneInfo, moment: int) -> int:
    """The clock on the wall, in seconds."""
    wall = datetime.fromtimestamp(moment, zone).replace(tzinfo=UTC)
    return round(wall.timestamp())


# ---- what holds everywhere ---------------------------------------------------------------


@given(schedules, zones, moments, st.data())
@example(Schedule("M"), LORD_HOWE, 1775314800, None)
@example(Schedule("D"), ST_JOHNS, 562127460, None)
def test_a_period_is_the_same_seen_from_all_of_its_moments(
    schedule: Schedule, zone: ZoneInfo, now: int, data: st.DataObject | None
) -> None:
    end, suffix = schedule.next(now, now, zone)
    assert end > now
    later = data.draw(st.integers(now, end - 1)) if data else end - 1
    assert schedule.next(later, later, zone) == (end, suffix)
    assert schedule.next(later + 0.9, later + 0.5, zone) == (end, suffix)
    assert schedule.next(later, now, zone) == (end, suffix)


@given(schedules, zones, moments)
def test_the_next_period_begins_at_the_end_of_one(
    schedule: Schedule, zone: ZoneInfo, now: int
) -> None:
    end, _ = schedule.next(now, now, zone)
    following, suffix = schedule.next(end, end, zone)
    assert following > end
    assert suffix == name(schedule, zone, end)


@given(schedules, zones, moments, moments)
def test_what_was_last_written_in_an_earlier_period_is_due(
    schedule: Schedule, zone: ZoneInfo, one: int, other: int
) -> None:
    last, now = sorted((one, other))
    due, suffix = schedule.next(now, last, zone)
    assert (due, suffix) == schedule.next(last, last, zone)
    assert (due <= now) == (due != schedule.next(now, now, zone)[0])


@given(schedules, zones, moments, st.floats(0, 1e9))
def test_a_file_of_the_future_is_one_of_now(
    schedule: Schedule, zone: ZoneInfo, now: int, ahead: float
) -> None:
    assert schedule.next(now, now + ahead, zone) == schedule.next(now, now, zone)


@given(st.sampled_from(sorted(FORMS)), intervals, zones, moments)
def test_short_periods_end_at_marks_and_jumps_alone(
    when: str, interval: int, zone: ZoneInfo, now: int
) -> None:
    step = LENGTHS[when] * interval
    end, _ = Schedule(when, interval).next(now, now, zone)
    jumped = shown(zone, end) != shown(zone, end - 1) + 1
    assert jumped or shown(zone, end) % step == 0
    assert end - now <= step + 86400


@given(st.sampled_from(DAYS), st.integers(0, 86399), zones, moments)
def test_days_end_when_the_clock_first_shows_the_time(
    when: str, time_of_day: int, zone: ZoneInfo, now: int
) -> None:
    end, _ = Schedule(when, 1, time_of_day).next(now, now, zone)
    wall = shown(zone, end)
    jumped = wall != shown(zone, end - 1) + 1
    assert jumped or wall % 86400 == time_of_day
    assert shown(zone, end - 1) < wall
    if when.startswith("W") and not jumped:
        assert datetime.fromtimestamp(end, zone).weekday() == int(when[1])


# ---- examples ----------------------------------------------------------------------------

TABLE = """
zone              schedule        now                  end                  suffix
UTC               S               2024-05-17T10:20:30  2024-05-17T10:20:31  20240517102030
UTC               M               2024-05-17T10:20:30  2024-05-17T10:21     202405171020
UTC               M/15            2024-05-17T10:20:30  2024-05-17T10:30     202405171015
UTC               H               2024-05-17T10:20:30  2024-05-17T11:00     2024051710
Asia/Kolkata      H               2024-05-17T10:20:30  2024-05-17T11:00     2024051710
Asia/Tokyo        H/6             2024-05-17T10:20:30  2024-05-17T12:00     2024051706
Asia/Tokyo        D               2024-05-17T10:20:30  2024-05-18T00:00     20240517
UTC               D/2             2024-05-17T10:20:30  2024-05-19T00:00     20240517
UTC               MIDNIGHT@12600  2024-05-17T03:29:59  2024-05-17T03:30     20240516
UTC               MIDNIGHT@12600  2024-05-17T03:30:00  2024-05-18T03:30     20240517
UTC               W0              2024-05-17T10:20:30  2024-05-20T00:00     20240513
UTC               W6@3600         2024-05-17T10:20:30  2024-05-19T01:00     20240512
UTC               W4              2024-05-17T00:00:00  2024-05-24T00:00     20240517
UTC               W0/2            2024-05-17T10:20:30  2024-05-27T00:00     20240513
Europe/Berlin     D               2024-03-31T01:00:00  2024-04-01T00:00     20240331
Europe/Berlin     D               2024-10-27T01:00:00  2024-10-28T00:00     20241027
Europe/Berlin     H               2024-03-31T01:30:00  2024-03-31T03:00     2024033101
Europe/Berlin     MIDNIGHT@9000   2024-03-31T01:30:00  2024-03-31T03:00     20240330
America/Sao_Paulo D               2018-11-03T10:00:00  2018-11-04T01:00     20181103
America/Sao_Paulo D               2018-11-04T01:00:00  2018-11-05T00:00     20181104
Pacific/Apia      D               2011-12-29T10:00:00  2011-12-31T00:00     20111229
"""


def parsed(text: str) -> Schedule:
    match = re.fullmatch(r"(\w+)(?:/(\d+))?(?:@(\d+))?", text)
    assert match
    return Schedule(match[1], int(match[2] or 1), int(match[3]) if match[3] else None)


@pytest.mark.parametrize("line", TABLE.strip().splitlines()[1:])
def test_next(line: str) -> None:
    zone_name, schedule, now, end, suffix = line.split()
    zone = ZoneInfo(zone_name)
    moment = at(zone, now)
    assert parsed(schedule).next(moment, moment, zone) == (at(zone, end), suffix)


def test_a_doubled_hour_is_two_of_a_name() -> None:
    zone, schedule = ZoneInfo("Europe/Berlin"), Schedule("H")
    first, second = at(zone, "2024-10-27T02:00:00"), at(zone, "2024-10-27T02:00:00", 1)
    assert second - first == 3600
    assert schedule.next(first, first, zone) == (second, "2024102702")
    assert schedule.next(second, second, zone) == (second + 3600, "2024102702")


def test_a_doubled_midnight_counts_once() -> None:
    zone, schedule = ZoneInfo("America/Havana"), Schedule("D")
    first = at(zone, "2024-11-03T00:00:00")
    end = at(zone, "2024-11-04T00:00:00")
    assert end - first == 25 * 3600
    assert schedule.next(first, first, zone) == (end, "20241103")
    assert schedule.next(first + 3600, first + 3600, zone) == (end, "20241103")


def test_a_day_that_begins_twice_ends_once() -> None:
    """In 1987 the clocks of St John's went from 00:01 back to 23:01 of the day before."""
    schedule = Schedule("D")
    midnight = at(ST_JOHNS, "1987-10-25T00:00:00")
    again = at(ST_JOHNS, "1987-10-24T23:30:00", 1)
    end = at(ST_JOHNS, "1987-10-26T00:00:00")
    assert midnight < again < end
    for now in (midnight, again, end - 1):
        assert schedule.next(now, now, ST_JOHNS) == (end, "19871025")


def test_half_an_hour_back() -> None:
    schedule = Schedule("M", 30)
    again = at(LORD_HOWE, "2024-04-07T01:30:00", 1)
    assert schedule.next(again - 1, again - 1, LORD_HOWE) == (again, "202404070130")
    assert schedule.next(again, again, LORD_HOWE) == (again + 1800, "202404070130")


@pytest.mark.parametrize("when", ["S", "M", "H", "D", "W6"])
def test_the_longest_interval(when: str) -> None:
    end, _ = Schedule(when, 10**6, None, True).next(1.7e9, 1.7e9)
    assert end > 1.7e9


# ---- the zone of the process -------------------------------------------------------------


@pytest.fixture
def live_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    def move(zone: str) -> None:
        monkeypatch.setenv("TZ", zone)
        time.tzset()

    yield move
    monkeypatch.undo()
    time.tzset()


def test_local_time_is_that_of_the_process(live_in: Callable[[str], None]) -> None:
    live_in("CET-1CEST,M3.5.0,M10.5.0/3")
    zone = ZoneInfo("Europe/Berlin")
    for schedule in (Schedule("M", 20), Schedule("H", 5), Schedule("D"), Schedule("W3", 2, 7200)):
        for now in range(at(zone, "2024-03-30T00:00:00"), at(zone, "2024-11-01T00:00:00"), 5000):
            assert schedule.next(now, now) == schedule.next(now, now, zone)


def test_utc_is_utc_everywhere(live_in: Callable[[str], None]) -> None:
    live_in("CET-1CEST,M3.5.0,M10.5.0/3")
    now = at(ZoneInfo("UTC"), "2024-05-17T22:30:00")
    assert Schedule("D", utc=True).next(now, now) == (now + 5400, "20240517")
    assert Schedule("D").next(now, now) == (now + 23.5 * 3600, "20240518")


# ---- from the options --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "schedule"),
    [
        ({}, None),
        ({"rotate_when": None, "rotate_at": None, "rotate_interval": 3, "utc": True}, None),
        ({"rotate_when": "H"}, Schedule("H", 1, None, False)),
        ({"rotate_at": 0}, Schedule("MIDNIGHT", 1, 0, False)),
        (
            {"rotate_when": "W2", "rotate_interval": 4, "rotate_at": 60, "utc": True},
            Schedule("W2", 4, 60, True),
        ),
    ],
)
def test_of_options(options: dict[str, object], schedule: Schedule | None) -> None:
    assert Schedule.of(options) == schedule
