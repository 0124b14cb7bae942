"""How long the loop was blocked at most."""

from __future__ import annotations

import asyncio
import selectors
import signal
import time
from collections.abc import Generator, Iterator
from functools import partial
from itertools import pairwise
from typing import Any

import pytest

from sysup import pace
from sysup.pace import LATELY, TOGETHER, TURN, Backlog, Crowd, Loop, Pace, gathered, in_turns
from tests.world import World


class Clock:
    """Stands still but for what is done and waited for."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    return clock


@pytest.fixture
def paced(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pace]:
    def select(_: Pace, timeout: float | None = None) -> list[object]:
        clock.now += timeout or 0.0
        return []

    monkeypatch.setattr(selectors.EpollSelector, "select", select)
    paced = Pace()
    yield paced
    paced.close()


def turn(paced: Pace, clock: Clock, work: float, wait: float = 0.0) -> None:
    clock.now += work
    paced.select(wait)


def test_the_longest_turn_is_known_and_waiting_is_none(paced: Pace, clock: Clock) -> None:
    for work in (0.01, 0.3, 0.02):
        turn(paced, clock, work, wait=5.0)
    assert paced.longest == pytest.approx(0.3)
    assert paced.lately == pytest.approx(0.3)


def test_what_is_long_ago_is_not_lately(paced: Pace, clock: Clock) -> None:
    turn(paced, clock, 0.3, wait=LATELY)
    turn(paced, clock, 0.1)
    assert paced.lately == pytest.approx(0.3), "within the last minute or two"
    clock.now += LATELY
    paced.select(LATELY)  # a turn of a minute, in which nothing else could be
    assert paced.lately == pytest.approx(LATELY)
    turn(paced, clock, 0.1)
    turn(paced, clock, 0.1, wait=LATELY)
    turn(paced, clock, 0.1)
    assert paced.lately == pytest.approx(0.1)
    assert paced.longest == pytest.approx(LATELY)


def test_a_silence_is_no_turn(paced: Pace, clock: Clock) -> None:
    turn(paced, clock, 0.3, wait=10 * LATELY)
    assert paced.lately == 0.0
    assert paced.longest == pytest.approx(0.3)


def test_what_was_before_somebody_could_wait_does_not_count(paced: Pace, clock: Clock) -> None:
    turn(paced, clock, 0.3)
    clock.now += 0.2
    paced.begin()
    turn(paced, clock, 0.1)
    assert paced.longest == paced.lately == pytest.approx(0.1)


def test_a_loop_tells_it() -> None:
    loop = Loop()
    try:
        loop.run_until_complete(asyncio.sleep(0))
        told = pace.figures(loop)
    finally:
        loop.close()
    assert told.keys() == {"loop_blocked", "loop_blocked_lately"}
    assert 0 <= told["loop_blocked_lately"] <= told["loop_blocked"]


def test_another_loop_does_not() -> None:
    loop = asyncio.new_event_loop()
    assert pace.figures(loop) == {}
    loop.close()


def test_long_work_lets_others_have_their_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    turns = 0

    def work() -> Generator[None, None, str]:
        nonlocal now
        for _ in range(100):
            now += TURN / 10
            yield
        return "done"

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def both() -> str:
        other = asyncio.ensure_future(count())
        done = await in_turns(work())
        other.cancel()
        return done

    assert asyncio.run(both()) == "done"
    assert 9 <= turns <= 12


def test_many_long_works_at_once_make_no_long_turn(clock: Clock) -> None:
    step, number = TURN / 10, 20

    def work() -> Generator[None, None, None]:
        for _ in range(50):
            clock.now += step
            yield

    async def all_of_them() -> None:
        await asyncio.gather(*(in_turns(work()) for _ in range(number)))

    loop = Loop()
    try:
        loop.run_until_complete(all_of_them())
        assert loop.pace.longest <= TURN + (number + 1) * step
    finally:
        loop.close()


def test_many_works_are_begun_in_several_turns() -> None:
    begun: list[int] = []
    seen: list[int] = []

    async def work(number: int) -> int:
        begun.append(number)
        await asyncio.sleep(0)
        if number % 2:
            raise ValueError(number)
        return number

    async def look() -> None:
        while True:
            seen.append(len(begun))
            await asyncio.sleep(0)

    async def both() -> list[Any]:
        other = asyncio.ensure_future(look())
        results = await gathered([work(number) for number in range(3 * TOGETHER)])
        other.cancel()
        return results

    results = asyncio.run(both())
    assert begun == [*range(3 * TOGETHER)]
    assert max(b - a for a, b in pairwise(seen)) <= TOGETHER
    assert results[::2] == begun[::2]
    assert [error.args for error in results[1::2]] == [(number,) for number in begun[1::2]]


def test_when_it_is_cancelled_all_of_it_is() -> None:
    ended: list[int] = []

    async def work(number: int) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(number)

    async def both() -> None:
        task = asyncio.ensure_future(gathered([work(number) for number in range(3 * TOGETHER)]))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0)

    asyncio.run(both())
    assert ended == [*range(len(ended))]
    assert len(ended) < 3 * TOGETHER, "the others never began"


# ---- a backlog ---------------------------------------------------------------------------


def test_a_backlog_is_done_in_order_some_in_each_turn(world: World) -> None:
    backlog, done, turns = Backlog(world.loop, Crowd(world.loop)), list[int](), list[int]()

    def piece(number: int) -> None:
        world.loop.now += TURN / 4
        done.append(number)
        if number == 9:
            backlog.put(partial(piece, 10))

    def turn() -> None:
        turns.append(len(done))
        if backlog:
            world.loop.call_soon(turn)

    for number in range(10):
        backlog.put(partial(piece, number))
    turn()
    world.loop.settle()
    assert done == [*range(11)]
    assert turns == [0, 4, 8, 11]


def test_what_one_piece_raises_does_not_stop_the_others(world: World) -> None:
    backlog, done = Backlog(world.loop, Crowd(world.loop)), list[int]()
    backlog.put(partial(int, "x"))
    backlog.put(partial(done.append, 1))
    world.loop.settle()
    assert done == [1]
    (problem,) = world.loop.problems
    assert isinstance(problem["exception"], ValueError)
    world.loop.problems.clear()


def test_work_beside_the_loop_is_done_by_a_thread_without_signals() -> None:
    """Who waits in the loop would not be woken by what another thread gets."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())

    async def blocked() -> set[int]:
        return set(await asyncio.to_thread(signal.pthread_sigmask, signal.SIG_BLOCK, ()))

    with asyncio.Runner(loop_factory=Loop) as runner:
        deaf = {signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD, signal.SIGUSR1, signal.SIGUSR2}
        assert deaf <= runner.run(blocked())
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask
