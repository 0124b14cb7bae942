"""Requests beyond the rate: held back in order, none lost, and of one connection alone."""

from __future__ import annotations

import pytest

from sysup import throttle
from sysup.throttle import BURST, MOST_HELD, RATE, Throttle
from tests.world import World


class Desk:
    """Requests that are numbers, by connection, and when they were answered."""

    def __init__(self, world: World) -> None:
        self.loop = world.loop
        self.throttle: Throttle[tuple[int, int]] = Throttle(self.loop, self._answer)
        self.answered: dict[int, list[int]] = {}
        self.cost = 0.0

    def _answer(self, request: tuple[int, int]) -> None:
        fd, number = request
        self.loop.now += self.cost
        self.answered.setdefault(fd, []).append(number)

    def ask(self, fd: int, *numbers: int, size: int = 10) -> int:
        """So many of these are taken."""
        return sum(self.throttle.take(fd, (fd, number), size) for number in numbers)


@pytest.fixture
def desk(world: World) -> Desk:
    return Desk(world)


def test_what_is_within_the_rate_is_answered_at_once(desk: Desk) -> None:
    for number in range(3 * BURST):
        desk.ask(1, number)
        assert desk.answered[1][-1] == number
        desk.loop.advance(1 / RATE)


def test_what_is_beyond_waits_and_is_not_lost(desk: Desk) -> None:
    numbers = range(BURST + MOST_HELD)
    assert desk.ask(1, *numbers) == len(numbers)
    assert desk.answered[1] == [*range(BURST)]
    half = MOST_HELD // 2
    desk.loop.advance(half / RATE)
    assert half - throttle.SOON * RATE - 1 <= len(desk.answered[1]) - BURST <= half
    desk.loop.advance(1.0)
    assert desk.answered[1] == [*numbers]


def test_who_waits_is_answered_in_order(desk: Desk) -> None:
    desk.ask(1, *range(BURST + 1))
    desk.loop.advance(throttle.SOON / 2)
    desk.ask(1, BURST + 1)
    desk.loop.advance(1.0)
    assert desk.answered[1] == [*range(BURST + 2)]


def test_no_more_than_the_rate_in_a_second(desk: Desk) -> None:
    desk.ask(1, *range(BURST))
    for _ in range(1000):
        desk.ask(1, *range(10))
        desk.loop.advance(0.001)
    assert RATE - throttle.SOON * RATE <= len(desk.answered[1]) - BURST <= RATE


def test_too_many_that_wait_are_refused(desk: Desk) -> None:
    numbers = range(BURST + MOST_HELD + 5)
    assert desk.ask(1, *numbers) == BURST + MOST_HELD
    assert desk.ask(2, 0) == 1
    desk.loop.advance(1.0)
    assert desk.ask(1, 7) == 1
    assert desk.answered[1] == [*numbers[:-5], 7]


def test_bytes_that_wait_are_bounded_for_all_together(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(throttle, "MOST_BYTES", 25)
    for fd in (1, 2):
        desk.ask(fd, *range(BURST))
    assert [desk.ask(1, 0), desk.ask(2, 0), desk.ask(1, 1), desk.ask(2, 1)] == [1, 1, 0, 0]
    assert desk.ask(3, 5) == 1
    desk.loop.advance(1.0)
    assert [desk.ask(fd, *range(BURST + 2)) for fd in (1, 2)] == [BURST + 2, BURST]


def test_a_flood_keeps_nobody_else_waiting(desk: Desk) -> None:
    desk.ask(1, *range(BURST + MOST_HELD))
    desk.ask(2, 5)
    assert desk.answered[2] == [5]
    desk.ask(2, *range(BURST + 2))
    desk.loop.advance(throttle.SOON)
    assert desk.answered[2][-1] == BURST + 1, "those that wait have turns, one each"


def test_what_waits_does_not_block_the_loop(desk: Desk) -> None:
    desk.ask(1, *range(BURST + MOST_HELD))
    desk.cost, desk.loop.now = 0.001, desk.loop.now + 1.0
    desk.throttle._let()
    assert len(desk.answered[1]) - BURST <= throttle.SLICE / desk.cost + 1
    desk.loop.advance(1.0)
    assert desk.answered[1] == [*range(BURST + MOST_HELD)]


def test_of_many_that_wait_each_has_its_turn(desk: Desk) -> None:
    for fd in range(20):
        desk.ask(fd, *range(BURST + 50))
    desk.cost, desk.loop.now = 0.001, desk.loop.now + 1.0
    for _ in range(4):
        before = sum(map(len, desk.answered.values()))
        desk.throttle._let()
        assert sum(map(len, desk.answered.values())) - before <= throttle.SLICE / desk.cost + 1
    assert all(len(numbers) > BURST for numbers in desk.answered.values())


def test_what_was_silent_for_long_is_forgotten(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throttle, "REMEMBERED", 3)
    desk.ask(9, *range(BURST))
    for fd in range(3):
        desk.ask(fd, 0)
    desk.loop.advance(2 / RATE)
    desk.ask(5, 0)
    assert desk.throttle._buckets.keys() == {5, 9}


def test_nothing_is_answered_after_the_end(desk: Desk) -> None:
    desk.ask(1, *range(BURST + 1))
    desk.throttle.close()
    desk.loop.advance(1.0)
    assert len(desk.answered[1]) == BURST
