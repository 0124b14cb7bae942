"""The lifecycle of a process slot: its states, and what leads from one to another.

A slot is one place of a watcher; it holds one process at a time. `Lifecycle` is its state
machine: one event in, a list of actions out. It is pure: it starts nothing, sends nothing,
reads no clock. The shell (watcher.py) performs the actions and reports back.

    stopped    nothing runs and nothing is to
    starting   spawned, not yet ready (or being spawned this very moment)
    running    ready
    stopping   told to stop; or dead already, while its tree and its pipes are cleared away
    backoff    died; waits `delay` before it is started again
    flapping   died too often too fast; waits `delay`, which doubles with each try
    failed     gave up after the last try; only a command starts it again
    done       ended, and the restart policy says that this is the end

Three things are kept apart. What is *wanted* (`want`, changed by Start, Stop and Recycle),
what *is* (`state`, changed by `handle` alone) and *why* (`reason`, for people). Everything
that can happen in every state stands in RULES, a total table keyed by name; a pair that
is missing there is a bug and a test finds it; docs/lifecycle.md is printed from it.

Time is an argument, in monotonic seconds. A deadline is derived from the state, when it was
entered, and the spec, so a restored slot needs no timer to be restored. Events that
speak of a process carry its `serial`; one of an earlier process is stale and dropped in one
place, so no rule needs to think of it.

Whether a death counts, after which delay it is answered, and how long to wait for what, is
arithmetic of its own (policy.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TypeAlias, get_args

from sysup.config import WatcherSpec
from sysup.policy import (
    Answer,
    History,
    after_death,
    counts,
    describe_exit,
    is_stable,
    ready_delay,
    restarts,
    stage_timeout,
)


class State(StrEnum):
    """What a slot is doing."""

    STOPPED = "stopped"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    BACKOFF = "backoff"
    FLAPPING = "flapping"
    FAILED = "failed"
    DONE = "done"


class Want(StrEnum):
    """What is asked of a slot or a watcher."""

    UP = "up"
    DOWN = "down"


# ---- events ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Start:
    """Be up. By a command (`afresh`) earlier deaths are forgotten."""

    afresh: bool = True


@dataclass(frozen=True)
class Stop:
    """Be down."""


@dataclass(frozen=True)
class Recycle:
    """End the process, if there is one, and start a fresh one; the death does not count."""


@dataclass(frozen=True)
class Spawned:
    """The process executes its program."""

    serial: int


@dataclass(frozen=True)
class SpawnFailed:
    """There is no process, and this is why."""

    reason: str


@dataclass(frozen=True)
class Ready:
    """The process says, or was seen, to be ready."""

    serial: int


@dataclass(frozen=True)
class Signalled:
    """A client had `signum` sent to the process: dying of it would be no crash."""

    serial: int
    signum: int


@dataclass(frozen=True)
class Exited:
    """The process ended: an exit code, -N for signal N, or None when nobody could tell."""

    serial: int
    status: int | None


@dataclass(frozen=True)
class Released:
    """Of a dead process nothing is left: its tree is empty, its pipes are read to the end."""

    serial: int


@dataclass(frozen=True)
class Timeout:
    """The deadline has come."""


Event: TypeAlias = (
    Start | Stop | Recycle | Spawned | SpawnFailed | Ready | Signalled | Exited | Released | Timeout
)
EVENTS: tuple[type[Event], ...] = get_args(Event)


# ---- actions -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Spawn:
    """Start a process; answer with Spawned or SpawnFailed before anything else."""


@dataclass(frozen=True)
class Signal:
    """Send `signum` to the process (and, by the watcher's options, to its children)."""

    signum: int


@dataclass(frozen=True)
class Kill:
    """Send SIGKILL to all that belongs to the process."""


@dataclass(frozen=True)
class Clear:
    """The process is dead: clear its tree and pipes away, then answer Released."""


@dataclass(frozen=True)
class Abandon:
    """The time for clearing away is over: close the pipes though somebody holds them."""


@dataclass(frozen=True)
class Publish:
    """Tell the subscribers."""

    event: str
    fields: dict[str, Any] = field(default_factory=dict)


Action: TypeAlias = Spawn | Signal | Kill | Clear | Abandon | Publish


# ---- the machine -------------------------------------------------------------------------


UNRECORDED = frozenset({"spec", "rand", "history"})

Rule: TypeAlias = Callable[["Lifecycle", Any, float], tuple[State, list[Action]]]


class Lifecycle:
    """One slot. Call `handle` with each event and perform what it returns.

    Args:
        spec: the watcher's options; may be replaced at any time.
        now: monotonic seconds.
        rand: numbers in [0, 1) for jitter.
        history: shared between the slots of a watcher under `flapping.scope = watcher`.
    """

    __slots__ = (
        *("alive", "delay", "entered", "expected", "expected_until", "failures", "history"),
        *("last_exit", "rand", "reason", "released", "restarts", "serial", "spec", "stage"),
        *("started", "state", "want"),
    )

    def __init__(
        self,
        spec: WatcherSpec,
        now: float,
        rand: Callable[[], float],
        history: History | None = None,
    ) -> None:
        self.spec = spec
        self.rand = rand
        self.history = history or History()
        self.state = State.STOPPED
        self.entered = now
        self.want = Want.DOWN
        self.reason = ""
        self.serial = 0
        self.alive = False
        self.released = True
        self.started = now
        self.stage = 0
        self.delay = 0.0
        self.failures = 0
        self.restarts = 0
        self.expected: frozenset[int] = frozenset()
        self.expected_until = now
        self.last_exit: int | None = None

    def __repr__(self) -> str:
        return f"<{self.state} want={self.want} serial={self.serial} alive={self.alive}>"

    def record(self) -> dict[str, Any]:
        """All that is known of the slot, but for its spec, as JSON can say it."""
        facts = {name: getattr(self, name) for name in self.__slots__ if name not in UNRECORDED}
        return {**facts, "expected": sorted(self.expected), "history": self.history.record()}

    @classmethod
    def restored(
        cls,
        spec: WatcherSpec,
        rand: Callable[[], float],
        record: Mapping[str, Any],
        history: History | None = None,
    ) -> Lifecycle:
        """From a `record`; stamps of monotonic time hold until the machine is booted anew."""
        life = cls(spec, 0.0, rand, history or History.restored(record["history"]))
        for name in cls.__slots__:
            if name in record and name != "history":
                setattr(life, name, record[name])
        life.state, life.want = State(life.state), Want(life.want)
        life.expected = frozenset(life.expected)
        return life

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take one event; return what is to be done, in order."""
        serial = getattr(event, "serial", self.serial)
        if serial != self.serial and not isinstance(event, Spawned):
            return []
        before, stage, alive = self.state, self.stage, self.alive
        self.state, actions = RULES[self.state, type(event)](self, event, now)
        if (self.state, self.stage, self.alive) != (before, stage, alive):
            self.entered = now
        return actions

    @property
    def deadline(self) -> float | None:
        """When Timeout is due; None: nothing is waited for but events."""
        match self.state:
            case State.STARTING if self.alive:
                return self.entered + ready_delay(self.spec)
            case State.BACKOFF | State.FLAPPING:
                return self.entered + self.delay
            case State.STOPPING if self.alive:
                return self.entered + stage_timeout(self.spec, self.stage)
            case State.STOPPING:
                return self.entered + self.spec.drain_timeout
            case _:
                return None

    def uptime(self, now: float) -> float | None:
        """Seconds since the process was started; None without one."""
        return now - self.started if self.alive else None

    def proven(self, now: float) -> bool:
        """Whether the process may take over from one of an older generation.

        Ready is not enough where ready means no more than spawned: a program that ends
        at once must not cost the one that works.
        """
        done = self.state is State.DONE
        return done or (self.state is State.RUNNING and now >= self.proven_at)

    @property
    def proven_at(self) -> float:
        """When a running process counts as proven."""
        return self.started + (self.spec.flapping.window if not ready_delay(self.spec) else 0.0)

    # ---- rules: (event, now) -> next state, actions --------------------------------------

    def _ignore(self, event: Event, now: float) -> tuple[State, list[Action]]:
        return self.state, []

    def _never(self, event: Event, now: float) -> tuple[State, list[Action]]:
        raise AssertionError(f"{type(event).__name__} cannot happen when {self.state}")

    def _spawn(self, event: Event, now: float) -> tuple[State, list[Action]]:
        self.delay = 0.0
        return State.STARTING, [Spawn()]

    def _retry(self, event: Event, now: float) -> tuple[State, list[Action]]:
        self.history.waited += self.delay
        return self._spawn(event, now)

    def _start(self, event: Start, now: float) -> tuple[State, list[Action]]:
        self.want = Want.UP
        if event.afresh:
            self.failures = 0
            self.history.forget()
        return self._spawn(event, now)

    def _spawned(self, event: Spawned, now: float) -> tuple[State, list[Action]]:
        self.restarts += 1 if self.serial else 0
        self.serial = event.serial
        self.alive, self.released = True, False
        self.started = now
        self.expected = frozenset()
        if ready_delay(self.spec) > 0:
            return State.STARTING, []
        return State.RUNNING, []

    def _spawn_failed(self, event: SpawnFailed, now: float) -> tuple[State, list[Action]]:
        self.reason = event.reason
        self.last_exit = None
        return self._after_death(now, 0.0)

    def _ready(self, event: Event, now: float) -> tuple[State, list[Action]]:
        if not self.alive:
            return self.state, []
        return State.RUNNING, [Publish("ready")]

    def _note_signal(self, event: Signalled, now: float) -> tuple[State, list[Action]]:
        self.expected |= {event.signum}
        self.expected_until = now + self.spec.graceful_timeout
        return self.state, []

    def _stop(self, event: Event, now: float) -> tuple[State, list[Action]]:
        self.want = Want.DOWN
        return self._end(event, now)

    def _end(self, event: Event, now: float) -> tuple[State, list[Action]]:
        """From any state but stopping: begin to end what is there."""
        self.delay = 0.0
        if self.alive:
            self.stage = 0
            return State.STOPPING, [Signal(self.spec.stop_signal[0].signum)]
        return (State.STOPPED if self.released else State.STOPPING), []

    def _change_mind(self, event: Event, now: float) -> tuple[State, list[Action]]:
        """While stopping: what is wanted afterwards changes, the stop goes on."""
        self.want = Want.UP if isinstance(event, Start) else Want.DOWN
        return State.STOPPING, []

    def _next_stage(self, event: Event, now: float) -> tuple[State, list[Action]]:
        """While stopping: the process, or what it left, took too long."""
        if not self.alive:
            return self._over(now, [Abandon()])
        self.stage += 1
        if self.stage < len(self.spec.stop_signal):
            return State.STOPPING, [Signal(self.spec.stop_signal[self.stage].signum)]
        return State.STOPPING, [Kill()]

    def _died(self, event: Exited, now: float) -> tuple[State, list[Action]]:
        """An end that nobody commanded, as far as is known."""
        self._note_exit(event)
        state = State.DONE
        actions: list[Action] = [Publish("done", self._facts())]
        if restarts(self.spec, event.status):
            expected = self.expected if now <= self.expected_until else frozenset()
            if counts(self.spec, event.status, expected, now - self.started):
                state, actions = self._after_death(now, now - self.started)
            else:
                state, actions = self._spawn(event, now)
        return state, [Clear(), *actions]

    def _died_stopping(self, event: Exited, now: float) -> tuple[State, list[Action]]:
        self._note_exit(event)
        self.reason = "stopped" if self.want is Want.DOWN else self.reason
        return State.STOPPING, [Clear()]

    def _released(self, event: Event, now: float) -> tuple[State, list[Action]]:
        self.released = True
        return self.state, []

    def _cleared(self, event: Event, now: float) -> tuple[State, list[Action]]:
        if self.alive:  # a stale pipe ended; the process itself has not
            return State.STOPPING, []
        return self._over(now, [])

    def _over(self, now: float, actions: list[Action]) -> tuple[State, list[Action]]:
        """A stop is over; what is wanted may have changed meanwhile."""
        self.released = True
        self.stage = 0
        if self.want is Want.UP:
            return State.STARTING, [*actions, Spawn()]
        return State.STOPPED, actions

    # ---- what the rules share ------------------------------------------------------------

    def _note_exit(self, event: Exited) -> None:
        self.alive = False
        self.last_exit = event.status
        self.reason = describe_exit(event.status)

    def _after_death(self, now: float, uptime: float) -> tuple[State, list[Action]]:
        """Restart at once, wait, or give up, as the policy says after a death that counts."""
        if is_stable(self.spec, uptime):
            self.failures = 0
            self.history.forget()
        self.failures += 1
        answer, delay = after_death(self.spec, self.history, self.failures, now, uptime, self.rand)
        if answer is Answer.RETRY:
            return State.STARTING, [Spawn()]
        if answer is Answer.GIVE_UP:
            return State.FAILED, [Publish("gave_up", self._facts())]
        self.delay = delay
        state = State.BACKOFF if answer is Answer.WAIT else State.FLAPPING
        return state, [Publish(str(state), self._facts())]

    def _facts(self) -> dict[str, Any]:
        return {
            "exit_code": self.last_exit,
            "reason": self.reason,
            "deaths": self.failures,
            "tries": self.history.tries,
            "retry_in": round(self.delay, 3),
        }


_L = Lifecycle
_ignore, _never = _L._ignore, _L._never

# A row a state, in the order of EVENTS:
#   Start          Stop            Recycle         Spawned       SpawnFailed
#   Ready          Signalled       Exited          Released      Timeout
_TABLE: dict[State, tuple[Rule, ...]] = {
    State.STOPPED: (
        *(_L._start, _ignore, _ignore, _never, _never),
        *(_ignore, _ignore, _never, _ignore, _ignore),
    ),
    State.STARTING: (
        *(_ignore, _L._stop, _L._end, _L._spawned, _L._spawn_failed),
        *(_L._ready, _L._note_signal, _L._died, _L._released, _L._ready),
    ),
    State.RUNNING: (
        *(_ignore, _L._stop, _L._end, _never, _never),
        *(_ignore, _L._note_signal, _L._died, _ignore, _ignore),
    ),
    State.STOPPING: (
        *(_L._change_mind, _L._change_mind, _ignore, _never, _never),
        *(_ignore, _ignore, _L._died_stopping, _L._cleared, _L._next_stage),
    ),
    State.BACKOFF: (
        *(_L._start, _L._stop, _ignore, _never, _never),
        *(_ignore, _ignore, _never, _L._released, _L._retry),
    ),
    State.FLAPPING: (
        *(_L._start, _L._stop, _ignore, _never, _never),
        *(_ignore, _ignore, _never, _L._released, _L._spawn),
    ),
    State.FAILED: (
        *(_L._start, _L._stop, _ignore, _never, _never),
        *(_ignore, _ignore, _never, _L._released, _ignore),
    ),
    State.DONE: (
        *(_L._start, _L._stop, _ignore, _never, _never),
        *(_ignore, _ignore, _never, _L._released, _ignore),
    ),
}

RULES: dict[tuple[State, type[Event]], Rule] = {
    (state, event): rule
    for state, row in _TABLE.items()
    for event, rule in zip(EVENTS, row, strict=True)
}
