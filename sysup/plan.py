"""The plan that keeps a watcher as it is wanted: which slots start, stop, are replaced.

Level-triggered: `plan` compares what is wanted with what is and names the next steps. It
may be called at any time, again and again; when all is as wanted it has none. So a command
only changes the goal, and whatever happens meanwhile (a crash, another command, a
start cut short) the next plan leads on from there.

A watcher's options have a generation; a reload makes a new one. Slots of older
generations go as those of the new one prove themselves, within the rollout's bounds, so
a new generation that fails leaves the old one running.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from sysup.machine import Lifecycle, State, Want
from sysup.moves import Start, Stop

NOT_SERVING = frozenset({State.BACKOFF, State.FLAPPING, State.FAILED, State.DONE})
LOOPING = frozenset({State.FLAPPING, State.FAILED})


@dataclass
class Slot:
    """A place of a watcher. `generation` is that of the spec its process runs by."""

    wid: int
    generation: int
    life: Lifecycle


class Rollout(NamedTuple):
    """How a generation replaces the one before it.

    `surge`: processes above numprocesses meanwhile; `max_unavailable`: processes below it.
    """

    surge: int
    max_unavailable: int


@dataclass(frozen=True)
class Launch:
    """A new slot is to be made and started."""

    wid: int


@dataclass(frozen=True)
class Send:
    """An event for a slot."""

    wid: int
    event: Start | Stop


@dataclass(frozen=True)
class Forget:
    """A slot is empty and no longer needed."""

    wid: int


Step: TypeAlias = Launch | Send | Forget


class Goal(NamedTuple):
    """What a watcher is to be.

    `not_before`: no process is launched earlier than this (`warmup_delay`).
    `one_by_one`: launch one process for each call. `together`: the crash loop of one slot
    stops its siblings (`flapping.scope = watcher`).
    """

    want: Want
    numprocesses: int
    generation: int
    rollout: Rollout
    not_before: float = 0.0
    one_by_one: bool = False
    together: bool = False


class Plan(NamedTuple):
    """The next steps; `again_at`: when to plan again if nothing happens before."""

    steps: Sequence[Step]
    again_at: float | None = None


def plan(goal: Goal, slots: Iterable[Slot], now: float) -> Plan:
    """Name the next steps from what is to what is wanted."""
    spent, slots = _split_spent(slots)
    steps: list[Step] = [Forget(s.wid) for s in spent]
    wanted = [s for s in slots if s.life.want is Want.UP]
    if goal.want is Want.DOWN:
        return Plan(steps + [Send(s.wid, Stop()) for s in wanted])
    current = sorted((s for s in wanted if s.generation == goal.generation), key=_wid)
    old = [s for s in wanted if s.generation != goal.generation]
    surplus = current[goal.numprocesses :]
    current = current[: goal.numprocesses]
    if goal.together and any(s.life.state in LOOPING for s in current):
        calm = [s for s in current if s.life.state not in LOOPING]
        spare = _retire(goal, [], old, now)
        return Plan(steps + [Send(s.wid, Stop()) for s in (*surplus, *calm, *spare)])
    retired = _retire(goal, current, old, now)
    steps += [Send(s.wid, Stop()) for s in (*surplus, *retired)]
    missing = goal.numprocesses - len(current)
    rolling = any(s.generation != goal.generation for s in slots)  # though told to stop
    room = goal.numprocesses + goal.rollout.surge - len(slots) if rolling else missing
    again_at = _proof_due(current, now) if len(retired) < len(old) else None
    launches = max(0, min(missing, room))
    if launches and now < goal.not_before:
        return Plan(steps, min(again_at or goal.not_before, goal.not_before))
    wids = _free_wids(slots)
    if goal.one_by_one:
        launches = min(launches, 1)
    steps += [Launch(next(wids)) for _ in range(launches)]
    return Plan(steps, again_at)


def _wid(slot: Slot) -> int:
    return slot.wid


def _age(slot: Slot) -> float:
    return -slot.life.started


def _split_spent(slots: Iterable[Slot]) -> tuple[list[Slot], list[Slot]]:
    """The slots that are empty for good, and the others."""
    spent: list[Slot] = []
    rest: list[Slot] = []
    for slot in slots:
        life = slot.life
        gone = life.state is State.STOPPED and life.want is Want.DOWN
        (spent if gone else rest).append(slot)
    return spent, rest


def _retire(goal: Goal, current: list[Slot], old: list[Slot], now: float) -> list[Slot]:
    """Which slots of older generations can go now: what serves nobody, and what is spare.

    Unproven ones go first, the youngest of them first, and only proven ones make a proven
    one spare: a process that is up just now, between two crashes, is no reason to stop one
    that works.
    """
    if not old:
        return []
    useless = [s for s in old if s.life.state in NOT_SERVING]
    serving = [s for s in old if s.life.state not in NOT_SERVING]
    strong = [s for s in serving if s.life.proven(now)]
    weak = sorted((s for s in serving if not s.life.proven(now)), key=_age)
    least = goal.numprocesses - goal.rollout.max_unavailable
    proven = sum(s.life.proven(now) for s in current)
    spare = max(0, proven + len(serving) - least)
    weak = weak[:spare]
    spare_strong = max(0, min(spare - len(weak), proven + len(strong) - least))
    return useless + weak + strong[:spare_strong]


def _proof_due(current: list[Slot], now: float) -> float | None:
    due = [s.life.proven_at for s in current if s.life.state is State.RUNNING]
    return min((at for at in due if at > now), default=None)


def _free_wids(slots: Iterable[Slot]) -> Iterator[int]:
    taken = {s.wid for s in slots}
    wid = 0
    while True:
        wid += 1
        if wid not in taken:
            yield wid


# ---- the public view ---------------------------------------------------------------------


def public_state(want: Want, states: Set[State]) -> str:
    """Circus's word for a watcher whose slots are in these states."""
    if want is Want.DOWN:
        return "stopping" if states - {State.STOPPED} else "stopped"
    if states and states <= {State.FAILED, State.DONE, State.STOPPED}:
        return "stopped"
    return "starting" if states == {State.STARTING} else "active"
