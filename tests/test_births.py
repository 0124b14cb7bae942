"""Processes that take their time until they execute their program, and what comes meanwhile."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from sysup.config import Rlimit
from sysup.machine import State
from sysup.pace import CROWD, CROWDED, Crowd
from sysup.policy import EXEC_TIMEOUT, EXEC_TIMEOUT_STOPPING
from sysup.protocol import SysupError
from sysup.turns import Superseded
from sysup.watcher import Watcher
from tests.world import World


def slow(world: World, **options: Any) -> Watcher:
    """A watcher whose process 101 is on the way to its program."""
    world.os.slow = {"web"}
    watcher = world.watcher(**options)
    watcher.begin_start()
    world.loop.settle()
    return watcher


def state(watcher: Watcher) -> State:
    (place,) = watcher.slots.places.values()
    return place.life.state


def test_a_start_ends_when_the_program_is_executed(world: World) -> None:
    world.os.slow = {"web"}
    watcher = world.watcher()
    start = world.begin(watcher.start())
    world.loop.advance(5.0)
    assert (state(watcher), start.done(), world.told("spawn")) == (State.STARTING, False, [])
    world.os.execute(101)
    world.loop.settle()
    assert start.result()["started"] == [101]
    assert (state(watcher), len(world.told("spawn"))) == (State.RUNNING, 1)


def test_nobody_else_waits(world: World) -> None:
    slow(world)
    other = world.watcher("db")
    assert world.run(other.start())["started"] == [102]
    assert world.run(other.stop())["stopped"] == [102]


def test_uptime_and_readiness_count_from_then(world: World) -> None:
    watcher = slow(world, ready="uptime:2")
    world.loop.advance(5.0)
    world.os.execute(101)
    world.loop.settle()
    assert state(watcher) is State.STARTING
    world.loop.advance(1.9)
    assert state(watcher) is State.STARTING
    world.loop.advance(0.2)
    assert state(watcher) is State.RUNNING


def test_what_can_not_execute_is_tried_again_and_leaves_nothing(world: World) -> None:
    watcher = slow(world)
    world.os.fail(101, "cannot execute web: gone")
    world.loop.settle()
    assert world.os.looks == [], "it has run nothing that could have left something"
    world.os.fail(102, "cannot execute web: gone")
    world.loop.settle()
    (place,) = watcher.slots.places.values()
    assert place.life.reason == "cannot execute web: gone"
    assert (place.life.state, place.life.restarts) == (State.FLAPPING, 0)
    assert (world.told("spawn"), world.told("reap")) == ([], [])
    assert watcher.slots.newest == {}
    world.os.slow = set()
    world.loop.advance(30.0)
    assert (state(watcher), place.life.restarts) == (State.RUNNING, 0)


def test_what_takes_too_long_is_killed(world: World) -> None:
    watcher = slow(world)
    world.loop.advance(EXEC_TIMEOUT - 0.1)
    assert world.os.sent == []
    world.loop.advance(0.2)
    assert world.os.sent[0] == ("process", 101, signal.SIGKILL)
    (place,) = watcher.slots.places.values()
    assert place.life.reason == "no answer"
    assert place.life.alive, "it is tried again"


def test_a_stop_does_not_wait_for_long(world: World) -> None:
    watcher = slow(world)
    stop = world.begin(watcher.stop())
    world.loop.advance(EXEC_TIMEOUT_STOPPING - 0.1)
    assert (stop.done(), world.os.sent) == (False, [])
    world.loop.advance(0.2)
    assert stop.result()["stopped"] == [101]
    assert world.os.sent[0] == ("process", 101, signal.SIGKILL)
    assert watcher.slots.places == {}


def test_a_stop_is_for_the_program(world: World) -> None:
    watcher = slow(world)
    stop = world.begin(watcher.stop())
    world.os.execute(101)
    world.loop.advance(0.1)
    assert world.os.sent[0] == ("process", 101, signal.SIGTERM)
    assert stop.result()["stopped"] == [101]


def test_a_program_that_is_executed_late_has_its_whole_time_to_stop(world: World) -> None:
    watcher = slow(world, graceful_timeout=10.0)
    world.os.deaf = {signal.SIGTERM}
    stop = world.begin(watcher.stop())
    world.loop.advance(EXEC_TIMEOUT_STOPPING / 2)
    world.os.execute(101)
    world.loop.advance(9.9)
    assert not stop.done()
    world.loop.advance(0.2)
    assert stop.done()


def test_a_start_that_is_stopped_ends(world: World) -> None:
    world.os.slow = {"web"}
    watcher = world.watcher()
    start = world.begin(watcher.start())
    world.run(watcher.stop())
    with pytest.raises(Superseded):
        start.result()


def test_limits_that_are_changed_meanwhile_hold(world: World) -> None:
    """The process sets those that it was made with."""
    watcher = slow(world, rlimits=(Rlimit("nofile", 10, 10),))
    task = world.begin(watcher.set_options({"rlimit_nofile": 20}))
    assert task.result() == {"rlimit_nofile": "limits"}
    world.os.limits.clear()
    world.os.execute(101)
    world.loop.settle()
    assert world.os.limits == [(101, "nofile", 20, 20)]


def test_one_that_is_forgotten_is_born_all_the_same(world: World) -> None:
    watcher = slow(world)
    birth = world.os.living[101].birth
    watcher.forget_processes()
    assert birth
    world.loop.advance(1.0)
    world.os.living[101].pidfd = world.pump.event  # the fake's own descriptor is closed
    world.os.execute(101)
    world.loop.settle()
    assert world.os.living.pop(101).birth is None


def test_old_processes_go_when_new_ones_are_there(world: World) -> None:
    watcher = world.watcher()
    world.run(watcher.start())
    world.os.slow = {"new"}
    reload = world.begin(watcher.set_options({"cmd": "new"}))
    world.loop.advance(5.0)
    assert world.os.sent == []
    world.os.fail(102, "cannot execute new: gone")
    world.loop.settle()
    world.os.fail(103, "cannot execute new: gone")
    world.loop.settle()
    with pytest.raises(SysupError, match="cannot execute new: gone; the old processes run on"):
        reload.result()


# ---- many at once ------------------------------------------------------------------------


def test_more_than_a_crowd_wait_for_some_of_it(world: World) -> None:
    world.os.slow = {"web"}
    watcher = world.watcher(numprocesses=CROWD + 2)
    world.begin(watcher.start())
    assert len(world.os.born) == CROWD
    world.os.execute(101)
    world.loop.settle()
    assert len(world.os.born) == CROWD + 1
    for pid in range(102, 102 + CROWD):
        world.os.execute(pid)
    world.loop.settle()
    assert len(world.os.born) == CROWD + 2


def test_but_not_for_those_that_do_not_answer(world: World) -> None:
    world.os.slow = {"web"}
    watcher = world.watcher(numprocesses=CROWD + 2)
    world.begin(watcher.start())
    world.loop.advance(CROWDED + 0.001)
    assert len(world.os.born) == CROWD + 2


def test_a_crowd_calls_each_once(world: World) -> None:
    crowd, called = Crowd(world.loop), list[str]()
    for number in range(CROWD):
        crowd.join(number)
    crowd.when_thin(lambda: called.append("a"))
    crowd.when_thin(lambda: called.append("b"))
    world.loop.settle()
    assert called == []
    crowd.leave(0)
    crowd.leave(1)
    world.loop.advance(1.0)
    assert called == ["a", "b"]


def test_successors_of_a_thousand_dead_are_a_crowd_too(world: World) -> None:
    watcher = world.watcher(numprocesses=3 * CROWD)
    world.run(watcher.start())
    world.os.slow = {"web"}
    for pid in list(world.os.living):
        world.os.die(pid)
    world.loop.settle()
    assert len(world.os.born) == 4 * CROWD
    world.loop.advance(1.0)
    assert len(world.os.born) == 6 * CROWD
