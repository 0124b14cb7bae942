"""The lifecycle of a process slot: its states, and what leads from one to another.

A slot is one place of a watcher; it holds one process at a time. `Lifecycle` is its state
machine: one event in, a list of actions out. It is pure: it starts nothing, sends nothing,
reads no clock. The shell (watcher.py) performs the actions and reports back.

    stopped    nothing runs and nothing is to
    starting   spawned, on the way to its program, or not yet ready
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
from enum import StrEnum
from typing import Any, TypeAlias

from sysup.config import WatcherSpec
from sysup.moves import (
    EVENTS,
    Abandon,
    Action,
    Clear,
    Event,
    ExecFailed,
    Executed,
    Exited,
    Kill,
    Publish,
    Signal,
    Signalled,
    Spawn,
    Spawned,
    SpawnFailed,
    Start,
)
from sysup.policy import (
    Answer,
    History,
    after_death,
    counts,
    describe_exit,
    exec_timeout,
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
        *("alive", "delay", "entered", "executed", "expected", "expected_until", "failures"),
        *("history", "last_exit", "rand", "ran", "reason", "released", "restarts", "serial"),
        *("spec", "stage", "started", "state", "want"),
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
        self.executed = False
        """Whether the process executes its program, or did."""
        self.ran = False
        """Whether any process did."""
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
        life.ran = life.executed = bool(record["serial"])  # unless it is known better
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
        before = self._phase()
        self.state, actions = RULES[self.state, type(event)](self, event, now)
        if self._phase() != before:
            self.entered = now
        return actions

    def _phase(self) -> tuple[State, int, bool, bool]:
        """What a deadline is counted from the beginning of."""
        return self.state, self.stage, self.alive, self.executed

    @property
    def deadline(self) -> float | None:
        """When Timeout is due; None: nothing is waited for but events."""
        match self.state:
            case State.STARTING | State.STOPPING if self.alive and not self.executed:
                stopping = self.state is State.STOPPING
                return self.entered + exec_timeout(self.stage, stopping=stopping)
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
        self.serial = event.serial
        self.alive, self.executed, self.released = True, False, False
        self.started = now
        self.stage = 0
        self.expected = frozenset()
        return State.STARTING, []

    def _spawn_failed(self, event: SpawnFailed, now: float) -> tuple[State, list[Action]]:
        self.reason = event.reason
        self.last_exit = None
        return self._after_death(now, 0.0)

    def _executed(self, event: Executed, now: float) -> tuple[State, list[Action]]:
        self.restarts += self.ran
        self.executed = self.ran = True
        self.started = now
        if self.state is State.STOPPING or ready_delay(self.spec) > 0:
            return self.state, []
        return State.RUNNING, []

    def _exec_failed(self, event: ExecFailed, now: float) -> tuple[State, list[Action]]:
        self.alive = False
        self.reason = event.reason
        self.last_exit = None
        state, actions = self._after_death(now, 0.0)
        return state, [Clear(), *actions]

    def _exec_failed_stopping(self, event: ExecFailed, now: float) -> tuple[State, list[Action]]:
        self.alive = False
        self.reason = "stopped" if self.want is Want.DOWN else event.reason
        return State.STOPPING, [Clear()]

    def _ready(self, event: Event, now: float) -> tuple[State, list[Action]]:
        if not self.alive or not self.executed:
            return self.state, []
        return State.RUNNING, [Publish("ready")]

    def _late(self, event: Event, now: float) -> tuple[State, list[Action]]:
        """While starting: it has run long enough, or has taken too long to execute."""
        if self.alive and not self.executed:
            self.stage += 1
            return State.STARTING, [Kill()]
        return self._ready(event, now)

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
        if self.stage < len(self.spec.stop_signal) and self.executed:
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
#   Start          Stop            Recycle         Spawned       SpawnFailed   Executed
#   ExecFailed     Ready           Signalled       Exited        Released      Timeout
_TABLE: dict[State, tuple[Rule, ...]] = {
    State.STOPPED: (
        *(_L._start, _ignore, _ignore, _never, _never, _never),
        *(_never, _ignore, _ignore, _never, _ignore, _ignore),
    ),
    State.STARTING: (
        *(_ignore, _L._stop, _L._end, _L._spawned, _L._spawn_failed, _L._executed),
        *(_L._exec_failed, _L._ready, _L._note_signal, _L._died, _L._released, _L._late),
    ),
    State.RUNNING: (
        *(_ignore, _L._stop, _L._end, _never, _never, _never),
        *(_never, _ignore, _L._note_signal, _L._died, _ignore, _ignore),
    ),
    State.STOPPING: (
        *(_L._change_mind, _L._change_mind, _ignore, _never, _never, _L._executed),
        *(_L._exec_failed_stopping, _ignore, _ignore),
        *(_L._died_stopping, _L._cleared, _L._next_stage),
    ),
    State.BACKOFF: (
        *(_L._start, _L._stop, _ignore, _never, _never, _never),
        *(_never, _ignore, _ignore, _never, _L._released, _L._retry),
    ),
    State.FLAPPING: (
        *(_L._start, _L._stop, _ignore, _never, _never, _never),
        *(_never, _ignore, _ignore, _never, _L._released, _L._spawn),
    ),
    State.FAILED: (
        *(_L._start, _L._stop, _ignore, _never, _never, _never),
        *(_never, _ignore, _ignore, _never, _L._released, _ignore),
    ),
    State.DONE: (
        *(_L._start, _L._stop, _ignore, _never, _never, _never),
        *(_never, _ignore, _ignore, _never, _L._released, _ignore),
    ),
}

RULES: dict[tuple[State, type[Event]], Rule] = {
    (state, event): rule
    for state, row in _TABLE.items()
    for event, rule in zip(EVENTS, row, strict=True)
}
