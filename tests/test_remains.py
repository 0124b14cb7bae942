"""What is done until nothing is left of a dead process."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import pytest

from sysup.body import Body
from sysup.process import Unclear
from sysup.protocol import SysupError
from sysup.remains import FIRST_LOOK, LAZY_LOOK, LOOK_SHARE
from tests.test_body import mould
from tests.world import World

KILL = signal.SIGKILL


def dead(world: World, **options: Any) -> Body:
    """A body whose process has ended and whose pipes are read out."""
    body = mould(world, **options).make(1)
    world.os.die(body.process.pid)
    world.os.close(body.process)
    return body


class Releases:
    """Notes who was released, and when."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.begun = world.loop.now
        self.seen: dict[int, float] = {}

    def __call__(self, serial: int) -> None:
        assert serial not in self.seen, "told twice"
        self.seen[serial] = self.world.loop.now - self.begun


@pytest.fixture
def releases(world: World) -> Releases:
    return Releases(world)


Clear = Callable[..., None]


@pytest.fixture
def clear(world: World, releases: Releases) -> Clear:
    def clear(body: Body, scope: str = "tree", awaited: bool = True) -> None:
        world.board.remains.clear(body, scope, releases, awaited=awaited)

    return clear


def test_the_group_is_killed_at_once(world: World, clear: Clear, releases: Releases) -> None:
    body = dead(world)
    clear(body)
    assert world.os.sent == [("group", 101, KILL)]
    world.run(world.board.remains.cleared())
    assert releases.seen == {body.serial: pytest.approx(FIRST_LOOK)}


@pytest.mark.parametrize(("scope", "killed"), [("main", 0), ("group", 1)])
def test_smaller_scopes_need_no_look(
    world: World, clear: Clear, releases: Releases, scope: str, killed: int
) -> None:
    body = dead(world)
    clear(body, scope)
    world.loop.settle()
    assert len(world.os.sent) == killed
    assert releases.seen == {body.serial: 0.0}
    assert world.os.looks == []


def test_one_look_serves_all_that_died_lately(world: World, clear: Clear) -> None:
    bodies = [dead(world) for _ in range(50)]
    for body in bodies[:25]:
        clear(body)
    world.loop.advance(FIRST_LOOK / 2)
    for body in bodies[25:]:
        clear(body)
    world.run(world.board.remains.cleared())
    assert world.os.looks == [{body.process.pid for body in bodies}]


def test_a_look_that_nobody_awaits_takes_its_time(world: World, clear: Clear) -> None:
    clear(dead(world), awaited=False)
    world.loop.advance(LAZY_LOOK - 0.01)
    assert world.os.looks == []
    world.loop.advance(0.02)
    assert len(world.os.looks) == 1


def test_who_waits_does_not_wait_for_a_lazy_look(world: World, clear: Clear) -> None:
    clear(dead(world), awaited=False)
    clear(dead(world), awaited=True)
    world.loop.advance(FIRST_LOOK)
    assert world.os.looks == [{101, 102}]
    world.loop.advance(LAZY_LOOK)
    assert len(world.os.looks) == 1


def test_looks_are_repeated_until_nothing_is_left(
    world: World, clear: Clear, releases: Releases
) -> None:
    one, other = dead(world), dead(world)
    world.os.left[101] = [{900, 901}, {902}, set()]
    clear(one)
    clear(other)
    world.run(world.board.remains.cleared())
    strays = [pid for what, pid, _ in world.os.sent if what == "stray"]
    assert strays == [900, 901, 902]
    assert world.os.looks == [{101, 102}, {101}, {101}]
    assert releases.seen[other.serial] < releases.seen[one.serial]


def test_long_looks_are_repeated_less_often(world: World, clear: Clear) -> None:
    world.os.cost = 0.0
    body = dead(world)
    world.os.cost = 0.1
    world.os.left[101] = [{900}, set()]
    clear(body)
    world.loop.advance(FIRST_LOOK + 0.1)
    assert len(world.os.looks) == 1
    world.loop.advance(0.1 * LOOK_SHARE - 0.05)
    assert len(world.os.looks) == 1
    world.loop.advance(0.1)
    assert len(world.os.looks) == 2


def test_what_may_not_be_killed_does_not_end_the_clearing(
    world: World, clear: Clear, releases: Releases, caplog: pytest.LogCaptureFixture
) -> None:
    body = dead(world)
    world.os.forbidden = {101, 900}
    world.os.left[101] = [{900, 901}, set()]
    clear(body)
    world.run(world.board.remains.cleared())
    assert ("stray", 901, KILL) in world.os.sent
    assert body.serial in releases.seen
    assert [r.getMessage() for r in caplog.records] == [
        "cannot signal group 101: not permitted",
        "cannot signal stray 900: not permitted",
    ]


def test_it_is_over_when_the_pipes_are_read_out(
    world: World, clear: Clear, releases: Releases
) -> None:
    body = mould(world).make(1)
    world.os.die(101, pipes=False)
    world.os.close(body.process)
    clear(body)
    world.loop.advance(5.0)
    assert body.tree_empty
    assert releases.seen == {}
    first, last = world.pump.streams[101]
    first.end()
    world.loop.settle()
    assert releases.seen == {}
    last.end()
    world.loop.settle()
    assert [*releases.seen] == [body.serial]


def test_pipes_that_end_before_the_process_do_not_release_it(
    world: World, releases: Releases
) -> None:
    body = mould(world).make(1)
    for stream in world.pump.streams[101]:
        stream.end()
    world.loop.settle()
    assert body.read_out
    assert releases.seen == {}


def test_abandoned_pipes_are_closed_and_nobody_is_waited_for(
    world: World, clear: Clear, releases: Releases
) -> None:
    body = mould(world).make(1)
    world.os.die(101, pipes=False)
    world.os.close(body.process)
    world.pump.streams[101][0].end()
    clear(body, "main")
    cleared = world.begin(world.board.remains.cleared())
    assert not cleared.done()
    world.board.remains.abandon(body)
    world.loop.settle()
    assert cleared.done()
    assert [stream.closed for stream in world.pump.streams[101]] == [False, True]


def test_who_was_met_in_flight_is_looked_for_again(
    world: World, clear: Clear, releases: Releases
) -> None:
    body = dead(world)
    pid = body.process.pid
    world.os.fleeing = [{pid}, {pid}, set()]
    clear(body)
    world.loop.advance(1.0)
    assert body.serial in releases.seen
    assert world.os.looks == [{pid}] * 3


def test_the_tree_of_the_abandoned_is_cleared_all_the_same(world: World, clear: Clear) -> None:
    """On a slow machine the deadline comes before the first look."""
    body = dead(world)
    world.os.left[101] = [{900}, {901}, set()]
    clear(body)
    world.board.remains.abandon(body)
    world.loop.advance(1.0)
    assert [pid for what, pid, _ in world.os.sent if what == "stray"] == [900, 901]
    assert world.board.remains.bodies == []


def test_cleared_waits_for_those_that_come_meanwhile(world: World, clear: Clear) -> None:
    world.run(world.board.remains.cleared())
    clear(dead(world))
    waiting = [world.begin(world.board.remains.cleared()) for _ in range(2)]
    late = dead(world)
    world.os.left[102] = [{900}, {900}, set()]
    clear(late)
    world.loop.advance(FIRST_LOOK)
    assert not any(task.done() for task in waiting)
    world.loop.advance(1.0)
    assert all(task.done() for task in waiting)


def test_what_may_not_be_killed_is_told_once_and_not_waited_for(
    world: World, clear: Clear, releases: Releases, caplog: pytest.LogCaptureFixture
) -> None:
    body = dead(world)
    world.os.left[body.process.pid] = [{900}] * 50
    world.os.forbidden = {900}
    clear(body)
    world.loop.advance(1.0)
    assert body.serial in releases.seen
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    "error", [SysupError("cannot read /proc: too many open files"), Unclear()], ids=str
)
def test_a_look_that_fails_is_taken_again(
    world: World,
    clear: Clear,
    releases: Releases,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    body = dead(world)
    looks = iter([error])
    look = world.os.leftovers

    def leftovers(*args: Any) -> dict[int, set[int]]:
        for error in looks:
            raise error
        return look(*args)

    monkeypatch.setattr(world.os, "leftovers", leftovers)
    clear(body)
    world.loop.advance(2.0)
    assert body.serial in releases.seen
