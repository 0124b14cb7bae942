"""The slot machine: policy by example, and the table as a whole."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from docs import lifecycle
from sysup.config import FlappingSpec, Restart, StopStage, WatcherSpec
from sysup.machine import RULES, Lifecycle, State, Want
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
from sysup.policy import (
    EXEC_TIMEOUT,
    EXEC_TIMEOUT_STOPPING,
    KILL_AGAIN,
    History,
    describe_exit,
    is_commanded,
    jittered,
    restarts,
)

SPEC = WatcherSpec(name="web", cmd="web", backoff_jitter=0.0)


class Bench:
    """A slot, a clock, and a system where every spawn works unless told otherwise."""

    def __init__(self, spec: WatcherSpec = SPEC, history: History | None = None) -> None:
        self.now = 100.0
        self.life = Lifecycle(spec, self.now, lambda: 0.0, history)
        self.serial = 0
        self.spawn_error: str | None = None
        self.executes = True
        self.actions: list[Action] = []

    def give(self, event: Event) -> list[Action]:
        actions = self.life.handle(event, self.now)
        self.actions += actions
        if Spawn() in actions:
            if self.spawn_error is not None:
                return self.give(SpawnFailed(self.spawn_error))
            self.serial += 1
            self.give(Spawned(self.serial))
            return self.give(Executed(self.serial)) if self.executes else actions
        return actions

    def exit(self, status: int | None, after: float = 0.0) -> None:
        self.now += after
        self.give(Exited(self.life.serial, status))

    def wait(self) -> float:
        """Let the time pass to the deadline."""
        deadline = self.life.deadline
        assert deadline is not None
        waited = deadline - self.now
        self.now = deadline
        self.give(Timeout())
        return waited

    def state(self) -> State:
        return self.life.state

    def last(self) -> Action:
        return self.actions[-1]

    def published(self) -> list[str]:
        return [a.event for a in self.actions if isinstance(a, Publish)]


def up(spec: WatcherSpec = SPEC) -> Bench:
    bench = Bench(spec)
    bench.give(Start())
    return bench


def flapping(**changes: Any) -> WatcherSpec:
    return replace(SPEC, flapping=replace(SPEC.flapping, **changes))


# ---- the table ---------------------------------------------------------------------------


def test_every_pair_is_decided() -> None:
    assert set(RULES) == {(state, event) for state in State for event in EVENTS}


def test_the_table_has_a_rule_for_each_event_it_may_meet() -> None:
    bench = Bench()
    with pytest.raises(AssertionError, match="Spawned cannot happen when stopped"):
        bench.give(Spawned(1))


def test_the_page_is_what_the_machine_does() -> None:
    committed = (Path(__file__).parents[1] / "docs" / "lifecycle.md").read_text()
    assert committed == lifecycle.page(), "run: python -m docs.lifecycle > docs/lifecycle.md"


# ---- life --------------------------------------------------------------------------------


def test_a_slot_starts_and_is_running_as_soon_as_it_is_spawned() -> None:
    bench = up()
    assert bench.state() is State.RUNNING
    assert bench.life.deadline is None
    assert bench.life.alive


def test_ready_after_an_uptime() -> None:
    bench = up(replace(SPEC, ready="uptime:5"))
    assert bench.state() is State.STARTING
    assert bench.wait() == 5.0
    assert bench.state() is State.RUNNING


def test_start_when_running_does_nothing() -> None:
    bench = up()
    assert bench.give(Start()) == []
    assert bench.life.serial == 1


def test_a_stop_signals_waits_kills_and_ends_when_all_is_gone() -> None:
    bench = up()
    assert bench.give(Stop()) == [Signal(15)]
    assert bench.wait() == SPEC.graceful_timeout
    assert bench.last() == Kill()
    bench.exit(-9)
    assert bench.last() == Clear()
    assert bench.state() is State.STOPPING
    bench.give(Released(1))
    assert bench.state() is State.STOPPED


def test_stop_signals_in_stages() -> None:
    stages = (StopStage(3, 30.0), StopStage(15, 5.0))
    bench = up(replace(SPEC, stop_signal=stages))
    assert bench.give(Stop()) == [Signal(3)]
    assert bench.wait() == 30.0
    assert bench.last() == Signal(15)
    assert bench.wait() == 5.0
    assert bench.last() == Kill()
    assert bench.wait() == KILL_AGAIN
    assert bench.last() == Kill()


def test_a_stop_is_over_though_somebody_holds_the_pipe() -> None:
    bench = up()
    bench.give(Stop())
    bench.exit(0)
    assert bench.wait() == SPEC.drain_timeout
    assert bench.last() == Abandon()
    assert bench.state() is State.STOPPED


def test_a_start_during_a_stop_starts_again_when_the_stop_is_over() -> None:
    bench = up()
    bench.give(Stop())
    bench.give(Start())
    bench.exit(0)
    bench.give(Released(1))
    assert bench.state() is State.RUNNING
    assert bench.life.serial == 2


def test_a_second_stop_takes_the_start_back() -> None:
    bench = up()
    for event in (Stop(), Start(), Stop()):
        bench.give(event)
    bench.exit(0)
    bench.give(Released(1))
    assert bench.state() is State.STOPPED


def test_recycle_ends_and_starts_and_counts_nothing() -> None:
    bench = up()
    assert bench.give(Recycle()) == [Signal(15)]
    bench.exit(1)
    bench.give(Released(1))
    assert bench.state() is State.RUNNING
    assert bench.life.failures == 0
    assert not bench.life.history.deaths


def test_late_events_of_an_earlier_process_are_dropped() -> None:
    bench = up()
    bench.exit(1, after=60.0)
    assert bench.life.serial == 2
    assert bench.give(Exited(1, 1)) == []
    assert bench.give(Released(1)) == []
    assert bench.state() is State.RUNNING
    assert not bench.life.released


def test_stop_while_waiting_is_over_once_the_dead_is_cleared_away() -> None:
    bench = up(flapping(attempts=1))
    bench.exit(1)
    assert bench.state() is State.FLAPPING
    bench.give(Stop())
    assert bench.state() is State.STOPPING
    bench.give(Released(1))
    assert bench.state() is State.STOPPED


# ---- restart policy ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "status", "again"),
    [
        (Restart.ALWAYS, 0, True),
        (Restart.ALWAYS, 1, True),
        (Restart.ON_FAILURE, 0, False),
        (Restart.ON_FAILURE, 1, True),
        (Restart.ON_FAILURE, -9, True),
        (Restart.ON_FAILURE, None, True),
        (Restart.NEVER, 1, False),
    ],
)
def test_policy(policy: Restart, status: int | None, again: bool) -> None:
    assert restarts(replace(SPEC, restart=policy), status) is again


def test_success_codes_and_restart_prevent() -> None:
    spec = replace(
        SPEC,
        restart=Restart.ON_FAILURE,
        success_codes=frozenset({0, 7}),
        restart_prevent=frozenset({100, -15}),
    )
    assert [restarts(spec, status) for status in (7, 100, -15, 8)] == [False, False, False, True]


def test_done_is_the_end() -> None:
    bench = up(replace(SPEC, restart=Restart.NEVER))
    bench.exit(3)
    assert bench.state() is State.DONE
    assert bench.published()[-1] == "done"
    assert bench.life.deadline is None
    bench.give(Start())
    assert bench.state() is State.RUNNING


def test_the_first_death_after_a_stable_run_is_answered_at_once() -> None:
    bench = up()
    bench.exit(1, after=60.0)
    assert bench.state() is State.RUNNING
    bench.exit(1, after=60.0)
    assert bench.state() is State.RUNNING


def test_further_deaths_wait_longer_and_longer_and_a_stable_run_forgives() -> None:
    bench = up()
    waited = []
    for _ in range(10):
        bench.exit(1, after=2.0)
        if bench.state() is State.BACKOFF:
            waited.append(bench.wait())
    assert waited == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]
    bench.exit(1, after=SPEC.stable_after)
    assert bench.state() is State.RUNNING


def test_commanded_exits_never_count() -> None:
    bench = up(flapping(attempts=1))
    for _ in range(5):
        bench.give(Signalled(bench.life.serial, 9))
        bench.exit(-9)
        assert bench.state() is State.RUNNING
    assert bench.life.failures == 0


def test_a_signal_of_long_ago_explains_nothing() -> None:
    bench = up(flapping(attempts=1))
    bench.give(Signalled(bench.life.serial, 1))
    bench.exit(-11, after=SPEC.graceful_timeout + 1)
    assert bench.life.state is State.FLAPPING


@pytest.mark.parametrize(
    ("status", "sent", "commanded"),
    [
        (-9, {9}, True),
        (0, {15}, True),
        (143, {15}, True),
        (-10, {10}, True),
        (1, {10}, False),
        (-11, {15}, True),
        (-11, set(), False),
        (None, {10}, False),
    ],
)
def test_what_a_command_explains(status: int | None, sent: set[int], commanded: bool) -> None:
    assert is_commanded(status, frozenset(sent)) is commanded


# ---- flapping ----------------------------------------------------------------------------


def test_a_command_that_dies_at_once_flaps_retries_and_is_given_up() -> None:
    bench = up()
    waits = []
    while bench.state() is not State.FAILED:
        bench.exit(1, after=0.01)
        if bench.state() is State.FLAPPING:
            waits.append(round(bench.wait(), 6))
    assert waits == [7.0, 14.0, 28.0, 56.0, 112.0]
    assert [e for e in bench.published() if e != "ready"] == ["flapping"] * 5 + ["gave_up"]
    assert bench.life.reason == "exit code 1"
    assert bench.life.deadline is None


def test_a_missing_program_goes_the_same_way_without_a_busy_loop() -> None:
    bench = Bench()
    bench.spawn_error = "cannot execute nosuch: no such file or directory"
    bench.give(Start())
    assert bench.actions.count(Spawn()) == 2
    assert bench.state() is State.FLAPPING
    while bench.state() is State.FLAPPING:
        bench.wait()
    assert bench.state() is State.FAILED
    assert bench.actions.count(Spawn()) == 7
    assert bench.life.reason == bench.spawn_error


def test_deaths_outside_the_window_are_no_crash_loop() -> None:
    bench = up()
    bench.exit(1, after=1.5)
    bench.exit(1, after=1.5)
    assert bench.state() is State.BACKOFF


@pytest.mark.parametrize("attempts", [3, 4, 8])
def test_back_off_does_not_hide_a_crash_loop(attempts: int) -> None:
    bench = up(flapping(attempts=attempts))
    for _ in range(attempts):
        bench.exit(1, after=0.01)
        if bench.state() is State.BACKOFF:
            bench.wait()
    assert bench.state() is State.FLAPPING


def test_a_try_that_lives_longer_than_the_window_is_out_of_the_loop() -> None:
    bench = up()
    bench.exit(1, after=0.1)
    bench.exit(1, after=0.1)
    assert bench.state() is State.FLAPPING
    bench.wait()
    bench.exit(1, after=5.0)
    assert bench.state() is State.BACKOFF


def test_a_stable_run_forgives_the_tries() -> None:
    bench = up()
    bench.exit(1, after=0.1)
    bench.exit(1, after=0.1)
    bench.wait()
    assert bench.life.history.tries == 1
    bench.exit(1, after=60.0)
    assert bench.life.history.tries == 0
    assert bench.state() is State.RUNNING


def test_no_retry_at_all() -> None:
    bench = up(flapping(max_retry=0))
    bench.exit(1)
    bench.exit(1)
    assert bench.state() is State.FAILED


def test_retry_for_ever_stays_bounded() -> None:
    bench = up(flapping(max_retry=-1))
    for _ in range(200):
        bench.exit(1)
        if bench.state() is State.FLAPPING:
            assert bench.wait() <= 300.0 + 1e-6
    assert bench.state() is State.RUNNING


def test_max_retry_of_the_watcher_stands_in() -> None:
    bench = up(replace(SPEC, max_retry=1))
    bench.exit(1)
    bench.exit(1)
    bench.wait()
    bench.exit(1)
    assert bench.state() is State.FAILED


def test_switched_off_it_only_backs_off() -> None:
    bench = up(flapping(active=False))
    for _ in range(50):
        bench.exit(1)
        if bench.state() is State.BACKOFF:
            bench.wait()
    assert "flapping" not in bench.published()


def test_a_command_ends_flapping_and_clears_the_record() -> None:
    bench = up()
    bench.exit(1)
    bench.exit(1)
    bench.give(Start())
    assert bench.state() is State.RUNNING
    assert bench.life.history == History()


def test_jitter_only_adds_and_stays_within_its_share() -> None:
    spec = replace(SPEC, backoff_jitter=0.5)
    assert 7.0 <= jittered(spec, 7.0, lambda: 0.999) < 10.5


def test_slots_may_share_their_history() -> None:
    history = History()
    spec = replace(SPEC, flapping=FlappingSpec(scope="watcher"))
    one, two = Bench(spec, history), Bench(spec, history)
    for bench in (one, two):
        bench.give(Start(afresh=False))
    one.exit(1)
    assert one.state() is State.RUNNING
    two.exit(1)
    assert two.state() is State.FLAPPING


# ---- words -------------------------------------------------------------------------------


def test_exits_in_words() -> None:
    words = [describe_exit(status) for status in (0, 3, -9, -64, None)]
    assert words == [
        "exit code 0",
        "exit code 3",
        "killed by SIGKILL",
        "killed by SIGRTMAX",
        "ended, nobody knows how",
    ]
    assert describe_exit(-63) == "killed by signal 63"


def test_repr_tells_what_matters() -> None:
    assert repr(up().life) == "<running want=up serial=1 alive=True>"


def test_a_slot_knows_its_uptime() -> None:
    bench = up()
    assert bench.life.uptime(bench.now + 2.0) == 2.0
    bench.give(Stop())
    bench.exit(0)
    assert bench.life.uptime(bench.now) is None
    assert bench.life.want is Want.DOWN


# ---- on the way to its program -----------------------------------------------------------


def on_the_way() -> Bench:
    bench = Bench()
    bench.executes = False
    bench.give(Start())
    return bench


def test_what_can_not_execute_while_it_is_stopped_is_stopped() -> None:
    bench = on_the_way()
    assert bench.give(Stop()) == [Signal(15)]
    assert bench.give(ExecFailed(1, "no such file")) == [Clear()]
    assert (bench.state(), bench.life.reason) == (State.STOPPING, "stopped")
    bench.give(Released(1))
    assert bench.state() is State.STOPPED


def test_what_is_late_is_killed_again_and_again() -> None:
    bench = on_the_way()
    assert bench.wait() == EXEC_TIMEOUT
    assert bench.last() == Kill()
    assert bench.wait() == KILL_AGAIN
    assert bench.wait() == KILL_AGAIN
    bench.give(ExecFailed(1, "no answer"))
    assert bench.life.reason == "no answer"
    assert bench.life.serial == 2


def test_of_what_is_stopped_on_the_way_no_stage_is_tried() -> None:
    bench = on_the_way()
    bench.life.spec = replace(SPEC, stop_signal=(StopStage(3, 5.0), StopStage(15, 2.0)))
    bench.give(Stop())
    assert bench.wait() == EXEC_TIMEOUT_STOPPING
    assert bench.last() == Kill()
