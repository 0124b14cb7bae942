"""A watcher when things cross: commands that fail half-way, changes during others, removals."""

from __future__ import annotations

import signal
from dataclasses import replace

import pytest

from sysup.config import FlappingSpec, Impact
from sysup.machine import State
from sysup.protocol import MessageError, SysupError
from sysup.turns import Superseded
from tests.test_watcher import pids, up
from tests.world import World

CALM = FlappingSpec(active=False)


def test_commands_end_though_a_new_generation_fails_for_ever(world: World) -> None:
    watcher = up(world, flapping=CALM)
    world.os.fails["bad"] = "cannot execute bad: gone"
    with pytest.raises(SysupError, match="cannot replace web"):
        world.run(watcher.set_options({"cmd": "bad"}))
    assert world.run(watcher.scale(1)) == 2
    world.run(watcher.start())
    assert 101 in pids(watcher)


def test_a_reload_that_fails_is_not_told_as_one(world: World) -> None:
    watcher = up(world)
    world.os.fails["web"] = "cannot execute web: gone"
    with pytest.raises(SysupError, match="the old processes run on"):
        world.run(watcher.reload())
    assert world.told("reload") == []


def test_set_ends_when_the_number_is_reached(world: World) -> None:
    watcher = up(world, warmup_delay=1.0)
    world.run(watcher.set_options({"numprocesses": 3}))
    assert len(pids(watcher)) == 3


def test_a_sequential_reload_of_one_never_has_two(world: World) -> None:
    watcher = up(world)
    world.os.left[101] = [{900}, {900}, set()]
    world.run(watcher.reload(sequential=True))
    assert pids(watcher) == [102]
    names = [name for name, _ in world.events]
    assert names.index("reap") < len(names) - 1 - names[::-1].index("spawn")


def test_a_shorter_warmup_holds_at_once(world: World) -> None:
    watcher = world.watcher(numprocesses=3, warmup_delay=3600.0)
    start = world.begin(watcher.start())
    assert len(pids(watcher)) == 1
    watcher.apply(replace(watcher.spec, warmup_delay=0.0), {Impact.LIVE}, {})
    world.loop.settle()
    assert len(pids(watcher)) == 3
    assert start.done()


def test_a_start_that_was_asked_for_as_the_watcher_went_starts_nothing(world: World) -> None:
    watcher = up(world)
    world.run(watcher.stop())
    watcher.close()
    with pytest.raises(Superseded):
        world.run(watcher.start())
    world.loop.advance(60.0)
    assert len(world.os.born) == 1


@pytest.mark.parametrize("window", [0.0, 1.0])
def test_what_cannot_be_spawned_is_never_stable(world: World, window: float) -> None:
    flapping = FlappingSpec(window=window)
    watcher = world.watcher(stable_after=0.0, flapping=flapping, max_retry=0)
    world.os.fails["web"] = "cannot execute web: gone"
    world.run(watcher.start())
    assert [p.life.state for p in watcher.slots.places.values()] == [State.FAILED]


def test_a_group_gets_a_stop_signal_once(world: World) -> None:
    watcher = up(world, stop_scope="group", stop_children=True)
    world.run(watcher.stop())
    assert world.os.sent[0] == ("group", 101, signal.SIGTERM)
    assert ("process", 101, signal.SIGTERM) not in world.os.sent


def test_what_one_watcher_raises_keeps_no_other_from_its_turn(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken, sound = world.watcher("broken"), world.watcher("sound")

    def act(until: float) -> bool:
        raise ZeroDivisionError

    monkeypatch.setattr(broken, "act", act)
    world.board.wake(broken)
    sound.begin_start()
    world.loop.settle()
    assert len(pids(sound)) == 1
    assert [type(p["exception"]) for p in world.loop.problems] == [ZeroDivisionError]
    world.loop.problems.clear()


def test_there_can_be_too_many(world: World) -> None:
    watcher = up(world)
    with pytest.raises(MessageError, match="numprocesses: 1000000001 is more than"):
        world.run(watcher.scale(10**9))
    assert len(pids(watcher)) == 1


def test_commands_take_effect_as_they_were_asked_not_as_they_were_begun(world: World) -> None:
    watcher = up(world)
    first = watcher.set_options({"priority": 1})
    assert not watcher.is_stopped
    second = world.begin(watcher.set_options({"priority": 2}))
    assert not second.done(), "it waits for the first, which others may keep from its beginning"
    world.run(first)
    world.loop.settle()
    assert (second.done(), watcher.spec.priority) == (True, 2)


def test_who_is_cancelled_in_the_queue_holds_nobody_up(world: World) -> None:
    watcher = up(world)
    first, second = watcher.scale(1), watcher.set_options({"priority": 1})
    waiting = [world.begin(second), world.begin(watcher.set_options({"priority": 2}))]
    waiting[0].cancel()
    world.run(first)
    world.loop.settle()
    assert (waiting[0].cancelled(), waiting[1].done(), watcher.spec.priority) == (True, True, 2)
