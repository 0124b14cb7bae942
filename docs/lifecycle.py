"""Print docs/lifecycle.md: the state diagram and table of a slot, from the machine itself.

    python -m docs.lifecycle > docs/lifecycle.md

Each pair of the table is tried, with all that can make a difference to it, and what is
printed is where it led. Nothing here knows a rule.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from sysup.config import Restart, WatcherSpec
from sysup.machine import RULES, Lifecycle, State, Want
from sysup.moves import (
    EVENTS,
    Event,
    ExecFailed,
    Executed,
    Exited,
    Ready,
    Released,
    Signalled,
    Spawned,
    SpawnFailed,
)

HEAD = """\
# The lifecycle of a slot

Printed from `sysup/machine.py` by `docs/lifecycle.py`; a test compares the two.

A slot holds one process at a time. The diagram shows every way from one state to another;
the table shows every event in every state (`·` nothing changes, `x` cannot happen).
What each state means stands at the top of `sysup/machine.py`, each event in `sysup/moves.py`.
"""


def make(
    spec: WatcherSpec, state: State, want: Want, alive: bool, executed: bool, calm: bool
) -> Lifecycle:
    """A slot as it may be found in this state."""
    life = Lifecycle(spec, 0.0, lambda: 0.0)
    life.state, life.alive, life.want, life.serial = state, alive, want, 1
    life.executed = executed
    life.released = not alive and calm
    life.failures = 0 if calm else 5
    return life


def events(kind: Any) -> Iterator[Event]:
    """The event in its variants."""
    if kind is Exited:
        yield from (Exited(1, 0), Exited(1, 1), Exited(1, -9))
    elif kind is SpawnFailed:
        yield SpawnFailed("cannot")
    elif kind is Spawned:
        yield Spawned(2)
    elif kind is Signalled:
        yield Signalled(1, 15)
    elif kind is ExecFailed:
        yield ExecFailed(1, "cannot")
    elif kind in (Executed, Ready, Released):
        yield kind(1)
    else:
        yield kind()


def specs() -> Iterator[WatcherSpec]:
    """Options that lead different ways."""
    plain = WatcherSpec(name="web", cmd="web")
    for restart, attempts, retries, ready in itertools.product(
        Restart, (1, 100), (0, 5), ("spawn", "uptime:5")
    ):
        flapping = replace(plain.flapping, attempts=attempts, max_retry=retries)
        yield replace(plain, restart=restart, flapping=flapping, ready=ready)


def holds_process(state: State, kind: type[Event]) -> tuple[bool, ...]:
    """Whether a slot may hold a living process when this event comes."""
    match state:
        case State.STARTING:
            return (kind not in (Spawned, SpawnFailed),)
        case State.RUNNING:
            return (True,)
        case State.STOPPING:
            return (True,) if kind in (Executed, ExecFailed, Exited) else (True, False)
        case _:
            return (False,)


def has_executed(state: State, kind: type[Event]) -> tuple[bool, ...]:
    """Whether the process of such a slot may execute its program when this event comes."""
    if state not in (State.STARTING, State.STOPPING):
        return (True,)
    return (False,) if kind in (Executed, ExecFailed) else (True, False)


def outcomes(state: State, kind: type[Event]) -> set[State]:
    """Where this event leads from this state; raises AssertionError where it can't happen."""
    found = set()
    for spec, want, alive, executed, calm, event in itertools.product(
        specs(),
        Want,
        holds_process(state, kind),
        has_executed(state, kind),
        (True, False),
        events(kind),
    ):
        life = make(spec, state, want, alive, executed, calm)
        life.handle(event, 1.0)
        found.add(life.state)
    return found


def table() -> dict[tuple[State, type[Event]], set[State] | None]:
    """Every pair: where it leads, or None where it cannot happen."""
    rows: dict[tuple[State, type[Event]], set[State] | None] = {}
    for pair in RULES:
        try:
            rows[pair] = outcomes(*pair)
        except AssertionError:
            rows[pair] = None
    return rows


def page() -> str:
    """The whole page."""
    rows = table()
    arrows: dict[tuple[State, State], list[str]] = defaultdict(list)
    for (state, kind), targets in rows.items():
        for target in sorted(targets or ()):
            if target is not state:
                arrows[state, target].append(kind.__name__)
    lines = [HEAD, "```mermaid", "stateDiagram-v2", f"    [*] --> {State.STOPPED}"]
    lines += [
        f"    {source} --> {target}: {', '.join(names)}"
        for (source, target), names in sorted(arrows.items())
    ]
    lines += ["```", "", "| | " + " | ".join(k.__name__ for k in EVENTS) + " |"]
    lines += ["|---" * (len(EVENTS) + 1) + "|"]
    for state in State:
        cells = [cell(state, rows[state, kind]) for kind in EVENTS]
        lines.append(f"| **{state}** | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def cell(state: State, targets: set[State] | None) -> str:
    """A cell of the table."""
    if targets is None:
        return "x"
    if targets == {state}:
        return "·"
    return ", ".join(sorted(targets))


if __name__ == "__main__":
    print(page(), end="")
