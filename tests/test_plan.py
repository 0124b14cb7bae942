"""The plan: scaling, replacement and removal, each as steps from what is."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sysup.config import WatcherSpec
from sysup.machine import Lifecycle, State, Want
from sysup.moves import Executed, Exited, Spawned, SpawnFailed, Start, Stop
from sysup.plan import Forget, Goal, Launch, Plan, Rollout, Send, Slot, plan, public_state

SPEC = WatcherSpec(name="web", cmd="web")
GRACEFUL = Rollout(surge=99, max_unavailable=0)
SEQUENTIAL = Rollout(surge=0, max_unavailable=1)
NOW = 1000.0


def goal(number: int, generation: int = 1, rollout: Rollout = GRACEFUL, **more: object) -> Goal:
    return Goal(Want.UP, number, generation, rollout, **more)  # type: ignore[arg-type]


def running(wid: int, generation: int = 1, started: float = 0.0) -> Slot:
    life = Lifecycle(SPEC, started, lambda: 0.0)
    life.handle(Start(), started)
    life.handle(Spawned(wid), started)
    life.handle(Executed(wid), started)
    return Slot(wid, generation, life)


def stopping(wid: int, generation: int = 1) -> Slot:
    slot = running(wid, generation)
    slot.life.handle(Stop(), NOW)
    return slot


def failing(wid: int, generation: int = 1) -> Slot:
    life = Lifecycle(replace(SPEC, max_retry=0), NOW, lambda: 0.0)
    life.handle(Start(), NOW)
    life.handle(SpawnFailed("cannot"), NOW)
    life.handle(SpawnFailed("cannot"), NOW)
    assert life.state is State.FAILED
    return Slot(wid, generation, life)


def spent(wid: int) -> Slot:
    return Slot(wid, 1, Lifecycle(SPEC, 0.0, lambda: 0.0))


def test_nothing_to_do_when_all_is_as_wanted() -> None:
    assert plan(goal(2), [running(1), running(2)], NOW) == Plan([])


def test_missing_ones_are_launched_in_the_lowest_free_places() -> None:
    assert plan(goal(4), [running(2)], NOW).steps == [Launch(1), Launch(3), Launch(4)]


def test_surplus_goes_from_the_highest_place_and_survivors_are_not_touched() -> None:
    slots = [running(3), running(1), running(2)]
    assert plan(goal(1), slots, NOW).steps == [Send(2, Stop()), Send(3, Stop())]


def test_what_is_given_up_is_not_launched_again() -> None:
    assert plan(goal(2), [running(1), failing(2)], NOW).steps == []


def test_empty_places_are_forgotten() -> None:
    assert plan(goal(1), [running(1), spent(2)], NOW).steps == [Forget(2)]


def test_down_stops_all() -> None:
    down = goal(2)._replace(want=Want.DOWN)
    slots = [running(1), stopping(2), spent(3)]
    assert plan(down, slots, NOW).steps == [Forget(3), Send(1, Stop())]


def test_warmup_launches_one_at_a_time_and_says_when_to_come_back() -> None:
    first = goal(3, one_by_one=True)
    assert plan(first, [], NOW).steps == [Launch(1)]
    waiting = plan(first._replace(not_before=NOW + 2), [running(1)], NOW)
    assert waiting == Plan([], NOW + 2)


def test_a_graceful_reload_has_all_new_ones_before_an_old_one_goes() -> None:
    old = [running(1), running(2)]
    assert plan(goal(2, 2), old, NOW).steps == [Launch(3), Launch(4)]
    fresh = [running(3, 2, NOW), running(4, 2, NOW)]
    waiting = plan(goal(2, 2), old + fresh, NOW)
    assert waiting == Plan([], NOW + SPEC.flapping.window)
    proven = plan(goal(2, 2), old + fresh, NOW + SPEC.flapping.window)
    assert proven.steps == [Send(1, Stop()), Send(2, Stop())]


def test_an_old_one_goes_for_each_new_one_that_is_proven() -> None:
    slots = [running(1), running(2), running(3, 2), running(4, 2, NOW)]
    assert plan(goal(2, 2), slots, NOW).steps == [Send(1, Stop())]


def test_a_new_generation_that_fails_leaves_the_old_one_running() -> None:
    slots = [running(1), running(2), failing(3, 2), failing(4, 2)]
    assert plan(goal(2, 2), slots, NOW).steps == []


def test_one_that_is_up_between_two_crashes_is_no_reason_to_stop_one_that_works() -> None:
    slots = [running(1), running(2), running(3, 2, NOW), running(4, 2, NOW)]
    assert plan(goal(2, 3), slots, NOW).steps[:2] == [Send(3, Stop()), Send(4, Stop())]


def test_old_ones_that_serve_nobody_go_at_once() -> None:
    slots = [failing(1), running(2)]
    assert plan(goal(2, 2), slots, NOW).steps[0] == Send(1, Stop())


def test_a_sequential_reload_replaces_one_after_the_other() -> None:
    way = goal(3, 2, SEQUENTIAL)
    assert plan(way, [running(1), running(2), running(3)], NOW).steps == [Send(1, Stop())]
    assert plan(way, [stopping(1), running(2), running(3)], NOW).steps == []
    assert plan(way, [running(2), running(3)], NOW).steps == [Launch(1)]
    fresh = running(1, 2, NOW)
    assert plan(way, [fresh, running(2), running(3)], NOW).steps == []
    assert plan(way, [fresh, running(2), running(3)], NOW + 5).steps == [Send(2, Stop())]


def test_the_places_of_a_reload_alternate() -> None:
    taken = [running(3, 2), running(4, 2)]
    assert plan(goal(2, 3), taken, NOW).steps == [Launch(1), Launch(2)]


def test_a_reload_to_nothing() -> None:
    assert plan(goal(0, 2), [running(1)], NOW).steps == [Send(1, Stop())]


def test_together_a_crash_loop_stops_the_siblings_and_launches_none() -> None:
    slots = [running(1), failing(2)]
    assert plan(goal(3, together=True), slots, NOW).steps == [Send(1, Stop())]


@pytest.mark.parametrize("generation", [1, 2])
def test_steps_lead_to_rest(generation: int) -> None:
    """Carried out again and again, the plan ends, with what was wanted."""
    slots = {slot.wid: slot for slot in (running(1), running(2), failing(3))}
    now = NOW
    for _ in range(20):
        planned = plan(goal(2, generation), slots.values(), now)
        for step in planned.steps:
            match step:
                case Launch(wid):
                    slots[wid] = running(wid, generation, now)
                case Send(wid, event):
                    life = slots[wid].life
                    life.handle(event, now)
                    if life.alive:
                        life.handle(Exited(life.serial, 0), now)
                    life.handle(type(event)(), now)
                    now = life.deadline or now
                    life.state = State.STOPPED
                case Forget(wid):
                    del slots[wid]
        now = planned.again_at or now
    assert [s.generation for s in slots.values()] == [generation] * 2
    assert all(s.life.state is State.RUNNING for s in slots.values())


@pytest.mark.parametrize(
    ("want", "slots", "word"),
    [
        (Want.DOWN, [], "stopped"),
        (Want.DOWN, [stopping(1)], "stopping"),
        (Want.UP, [], "active"),
        (Want.UP, [running(1), failing(2)], "active"),
        (Want.UP, [failing(1)], "stopped"),
    ],
)
def test_circus_words(want: Want, slots: list[Slot], word: str) -> None:
    assert public_state(want, {slot.life.state for slot in slots}) == word
