"""The slot machine under any order of events, against its invariants.

A model system runs beside it: it starts, kills and buries processes as the actions say, and
lets them die, and time pass, whenever hypothesis likes.
"""

from __future__ import annotations

from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sysup.config import Restart, StopStage, WatcherSpec
from sysup.machine import Lifecycle, State, Want
from sysup.moves import (
    Abandon,
    Clear,
    Event,
    ExecFailed,
    Executed,
    Exited,
    Kill,
    Ready,
    Recycle,
    Released,
    Signal,
    Signalled,
    Spawn,
    Spawned,
    SpawnFailed,
    Start,
    Stop,
    Timeout,
)

DEAD_STATES = {State.STOPPED, State.BACKOFF, State.FLAPPING, State.FAILED, State.DONE}
WAITING_STATES = {State.BACKOFF, State.FLAPPING, State.STOPPING}

SPECS = st.builds(
    lambda restart, attempts, tries, ready, stages: replace(
        WatcherSpec(name="web", cmd="web"),
        restart=restart,
        ready=ready,
        stop_signal=stages,
        flapping=replace(
            WatcherSpec(name="web", cmd="web").flapping, attempts=attempts, max_retry=tries
        ),
    ),
    st.sampled_from(Restart),
    st.integers(1, 4),
    st.integers(0, 3),
    st.sampled_from(["spawn", "uptime:2"]),
    st.sampled_from([(StopStage(15, None),), (StopStage(3, 5.0), StopStage(15, 2.0))]),
)


class SlotMachine(RuleBasedStateMachine):
    """One slot and a system in which anything may happen."""

    @initialize(spec=SPECS)
    def begin(self, spec: WatcherSpec) -> None:
        self.now = 0.0
        self.life = Lifecycle(spec, self.now, lambda: 0.5)
        self.serials = 0
        self.living: set[int] = set()
        self.buried: set[int] = set()
        self.spawns_work = True
        self.execs_at_once = True
        self.commanded = False
        self.commanded_until = 0.0

    def give(self, event: Event) -> None:
        for action in self.life.handle(event, self.now):
            match action:
                case Spawn():
                    self.spawn()
                case Signal() | Kill():
                    assert self.life.serial in self.living
                case Clear():
                    assert self.life.serial not in self.living or self.life.alive
                case Abandon():
                    self.buried.add(self.life.serial)

    def spawn(self) -> None:
        if not self.spawns_work:
            self.give(SpawnFailed("cannot"))
            return
        self.serials += 1
        self.living.add(self.serials)
        self.commanded = False
        self.give(Spawned(self.serials))
        if self.execs_at_once:
            self.give(Executed(self.serials))

    @rule()
    def start(self) -> None:
        self.give(Start())

    @rule()
    def stop(self) -> None:
        self.give(Stop())

    @rule()
    def recycle(self) -> None:
        self.give(Recycle())

    @rule(works=st.booleans())
    def programs_come_and_go(self, works: bool) -> None:
        self.spawns_work = works

    @rule(at_once=st.booleans())
    def programs_are_near_or_far(self, at_once: bool) -> None:
        self.execs_at_once = at_once

    @precondition(lambda self: self.life.alive and not self.life.executed)
    @rule()
    def execute(self) -> None:
        self.give(Executed(self.life.serial))

    @precondition(lambda self: self.life.alive and not self.life.executed)
    @rule()
    def fail_to_execute(self) -> None:
        self.living.remove(self.life.serial)
        self.give(ExecFailed(self.life.serial, "no such file"))

    @precondition(lambda self: self.living)
    @rule(signum=st.sampled_from([9, 15, 10]))
    def signalled(self, signum: int) -> None:
        self.commanded = signum in (9, 15)
        self.commanded_until = self.now + self.life.spec.graceful_timeout
        self.give(Signalled(self.life.serial, signum))

    @precondition(lambda self: self.living)
    @rule(status=st.sampled_from([0, 1, -9, -11, None]), after=st.floats(0.0, 100.0))
    def die(self, status: int | None, after: float) -> None:
        self.now += after
        failures, before = self.life.failures, self.life.state
        self.living.remove(self.life.serial)
        self.give(Exited(self.life.serial, status))
        in_time = self.commanded and self.now <= self.commanded_until
        if in_time or before is State.STOPPING:
            working = self.spawns_work or before is State.STOPPING
            assert not working or self.life.failures == failures, "a commanded exit counted"

    @precondition(lambda self: not self.life.released and not self.life.alive)
    @rule()
    def released(self) -> None:
        self.give(Released(self.life.serial))

    @rule(serial=st.integers(0, 3))
    def late_reports(self, serial: int) -> None:
        if serial < self.life.serial:
            before = repr(self.life)
            self.give(Exited(serial, 1))
            self.give(Released(serial))
            self.give(Ready(serial))
            assert repr(self.life) == before

    @precondition(lambda self: self.life.deadline is not None)
    @rule()
    def time_passes(self) -> None:
        deadline = self.life.deadline
        assert deadline is not None
        self.now = max(self.now, deadline)
        self.give(Timeout())

    @invariant()
    def never_two_processes(self) -> None:
        assert len(self.living) <= 1
        assert self.life.alive == bool(self.living)
        if self.life.alive:
            assert self.living == {self.life.serial}

    @invariant()
    def states_know_whether_they_hold_a_process(self) -> None:
        if self.life.state in DEAD_STATES:
            assert not self.life.alive
        if self.life.state is State.RUNNING:
            assert self.life.alive
            assert self.life.executed

    @invariant()
    def a_waiting_state_has_a_deadline(self) -> None:
        if self.life.state in WAITING_STATES:
            assert self.life.deadline is not None
        if self.life.state is State.STARTING:
            assert self.life.deadline is not None
        if self.life.state in (State.FLAPPING, State.BACKOFF):
            most = self.life.spec.flapping.retry_max * (1 + self.life.spec.backoff_jitter)
            assert self.life.deadline is not None
            assert self.life.deadline - self.life.entered <= most

    @invariant()
    def unwanted_and_dead_means_stopped(self) -> None:
        life = self.life
        if life.want is Want.DOWN and not life.alive and life.released:
            assert life.state is State.STOPPED
        if life.state is State.STOPPED:
            assert life.want is Want.DOWN

    def teardown(self) -> None:
        """Left alone, with programs that end at once, a slot comes to a final state."""
        if not hasattr(self, "life"):
            return
        for _ in range(100):
            if self.life.alive:
                self.living.remove(self.life.serial)
                self.give(Exited(self.life.serial, 1))
            elif self.life.deadline is not None:
                self.time_passes()
        assert self.life.state in (State.STOPPED, State.FAILED, State.DONE), self.life


TestSlotMachine = SlotMachine.TestCase
TestSlotMachine.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
