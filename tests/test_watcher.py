"""A watcher: commands, reports and what they make of each other, in a world of its own."""

from __future__ import annotations

import asyncio
import itertools
import signal
from dataclasses import replace
from typing import Any

import pytest

from sysup import reach
from sysup.config import FlappingSpec, Impact, Restart, StopStage
from sysup.machine import State, Want
from sysup.pace import TURN
from sysup.protocol import MessageError, SysupError
from sysup.slots import REPORT_WITHIN
from sysup.turns import Superseded
from sysup.watcher import Watcher
from tests.fakes import whole
from tests.world import World

TERM, KILL = signal.SIGTERM, signal.SIGKILL
CALM = FlappingSpec(active=False)


def pids(watcher: Watcher) -> list[int]:
    return [body.process.pid for _, body in watcher.slots.bodies]


def states(watcher: Watcher) -> list[State]:
    return [place.life.state for _, place in sorted(watcher.slots.places.items())]


def up(world: World, name: str = "web", **options: Any) -> Watcher:
    """A watcher that runs, and has for a while."""
    watcher = world.watcher(name, **options)
    world.run(watcher.start())
    world.loop.advance(60.0)
    return watcher


# ---- start, stop, restart ----------------------------------------------------------------


def test_start_tells_what_it_started(world: World) -> None:
    watcher = world.watcher(numprocesses=2)
    assert watcher.state == "stopped"
    assert world.run(watcher.start()) == {"started": [101, 102], "stopped": [], "kept": []}
    assert watcher.state == "active"
    assert [name for name, _ in world.events] == ["spawn", "spawn", "start"]
    assert world.told("spawn")[1] == {"process_pid": 102, "wid": 2}
    assert world.run(watcher.start()) == {"started": [], "stopped": [], "kept": [101, 102]}


def test_start_waits_until_they_are_ready(world: World) -> None:
    watcher = world.watcher(ready="uptime:3")
    start = world.begin(watcher.start())
    assert watcher.state == "starting"
    world.loop.advance(2.9)
    assert not start.done()
    world.loop.advance(0.2)
    assert start.done()
    assert world.told("ready") == [{"process_pid": 101, "wid": 1}]


def test_stop_waits_until_nothing_is_left(world: World) -> None:
    watcher = up(world, numprocesses=2)
    world.os.left[101] = [{900}, {901}, set()]
    begun = world.loop.now
    assert world.run(watcher.stop()) == {"started": [], "stopped": [101, 102], "kept": []}
    assert world.os.sent == [
        ("process", 101, TERM),
        ("process", 102, TERM),
        ("group", 101, KILL),
        ("group", 102, KILL),
        ("stray", 900, KILL),
        ("stray", 901, KILL),
    ]
    assert len(world.os.looks) == 3
    assert world.loop.now - begun < 0.1
    assert watcher.state == "stopped"
    assert [name for name, _ in world.events][3:] == ["kill", "kill", "reap", "reap", "stop"]


def test_a_stubborn_process_gets_each_stage_and_then_sigkill(world: World) -> None:
    watcher = up(
        world,
        stop_signal=(StopStage(signal.SIGQUIT, 7.0), StopStage(TERM)),
        graceful_timeout=3.0,
        stop_children=True,
    )
    world.os.deaf = {signal.SIGQUIT, TERM}
    begun = world.loop.now
    stop = world.begin(watcher.stop())
    assert watcher.state == "stopping"
    assert world.os.sent == [("children", 101, signal.SIGQUIT), ("process", 101, signal.SIGQUIT)]
    world.run(_end(stop))
    assert [p["signum"] for p in world.told("kill")] == [signal.SIGQUIT, TERM, KILL]
    assert world.told("reap")[0]["exit_code"] == -9
    assert 10.0 <= world.loop.now - begun < 10.1


async def _end(task: asyncio.Task[Any]) -> Any:
    return await task


@pytest.mark.parametrize(
    ("scope", "stop", "after"),
    [
        ("main", [("process", 101, TERM)], []),
        ("group", [("group", 101, TERM)], [("group", 101, KILL)]),
        ("tree", [("process", 101, TERM)], [("group", 101, KILL)]),
    ],
)
def test_stop_scope(
    world: World,
    scope: str,
    stop: list[tuple[str, int, int]],
    after: list[tuple[str, int, int]],
) -> None:
    watcher = up(world, stop_scope=scope)
    world.run(watcher.stop())
    assert world.os.sent == stop + after
    assert len(world.os.looks) == (scope == "tree")


def test_what_may_not_be_signalled_is_told_of(world: World) -> None:
    watcher = up(world, graceful_timeout=1.0)
    world.os.forbidden = {101}
    stop = world.begin(watcher.stop())
    assert "not permitted" in world.told("kill_failed")[0]["reason"]
    world.os.forbidden = set()
    world.run(_end(stop))
    assert watcher.state == "stopped"


def test_a_stop_waits_no_longer_than_it_may_for_pipes(world: World) -> None:
    watcher = up(world, stop_scope="main", drain_timeout=2.0)
    world.os.deaf = {TERM}
    stop = world.begin(watcher.stop())
    world.os.die(101, 0, pipes=False)
    begun = world.loop.now
    world.run(_end(stop))
    assert world.loop.now - begun == pytest.approx(2.0)
    assert all(stream.closed for stream in world.pump.streams[101])


def test_stop_preempts_a_start(world: World) -> None:
    watcher = world.watcher(ready="uptime:1000")
    start = world.begin(watcher.start())
    world.run(watcher.stop())
    with pytest.raises(Superseded, match="web was told to stop"):
        world.run(_end(start))
    assert pids(watcher) == []


def test_stop_preempts_what_waits_in_the_queue(world: World) -> None:
    watcher = world.watcher(ready="uptime:1000")
    first = world.begin(watcher.start())
    queued = [world.begin(watcher.restart()), world.begin(watcher.start())]
    world.run(watcher.stop())
    for command in (first, *queued):
        with pytest.raises(Superseded):
            world.run(_end(command))
    assert watcher.want is Want.DOWN
    assert len(world.os.born) == 1


def test_two_stops_both_end(world: World) -> None:
    watcher = up(world)
    world.os.deaf = {TERM}
    stops = [world.begin(watcher.stop()), world.begin(watcher.stop())]
    world.os.die(101, 0)
    for stop in stops:
        world.run(_end(stop))


def test_a_start_after_a_stop_waits_for_its_end(world: World) -> None:
    watcher = up(world, graceful_timeout=5.0)
    world.os.deaf = {TERM}
    stop, start = world.begin(watcher.stop()), world.begin(watcher.start())
    assert watcher.want is Want.DOWN
    assert world.run(_end(stop))["stopped"] == [101]
    assert world.run(_end(start))["started"] == [102]
    assert watcher.state == "active"


def test_commands_queue(world: World) -> None:
    watcher = world.watcher(ready="uptime:5")
    tasks = [world.begin(watcher.start()), world.begin(watcher.scale(1))]
    assert len(world.os.born) == 1, "the second waits for its turn"
    restart = world.begin(watcher.restart())
    assert world.run(_end(tasks[0]))["started"] == [101]
    assert world.run(_end(tasks[1])) == 2
    assert pids(watcher) == [101, 102]
    assert world.run(_end(restart)) == {"started": [103, 104], "stopped": [101], "kept": []}


def test_restart(world: World) -> None:
    watcher = up(world, numprocesses=2)
    begun = world.loop.now
    outcome = world.run(watcher.restart())
    assert outcome == {"started": [103, 104], "stopped": [101, 102], "kept": []}
    assert world.loop.now - begun < 0.1
    assert [place.wid for place, _ in watcher.slots.bodies] == [1, 2]


def test_a_restart_that_is_stopped_does_not_start(world: World) -> None:
    watcher = up(world)
    world.os.deaf = {TERM}
    restart = world.begin(watcher.restart())
    stop = world.begin(watcher.stop())
    world.os.die(101, 0)
    with pytest.raises(Superseded):
        world.run(_end(restart))
    world.run(_end(stop))
    assert pids(watcher) == []


# ---- reload ------------------------------------------------------------------------------


def test_reload_replaces_without_a_gap(world: World) -> None:
    watcher = up(world, numprocesses=2)
    reload = world.begin(watcher.reload())
    assert pids(watcher) == [101, 102, 103, 104]
    assert world.run(_end(reload)) == {"started": [103, 104], "stopped": [101, 102], "kept": []}
    assert world.told("reload") == [{}]
    assert [place.wid for place, _ in watcher.slots.bodies] == [3, 4]
    assert all(sink.closed for sink in world.pump.sinks[:2]), "the old generation's"
    assert not any(sink.closed for sink in world.pump.sinks[2:])


def test_a_sequential_reload_has_one_less_meanwhile(world: World) -> None:
    watcher = up(world, numprocesses=2)
    reload = world.begin(watcher.reload(sequential=True))
    while not reload.done():
        assert 1 <= len(pids(watcher)) <= 2
        world.loop.advance(0.05)
    assert pids(watcher) == [103, 104]


def test_reload_of_what_is_stopped(world: World) -> None:
    with pytest.raises(SysupError, match="web is stopped"):
        world.run(world.watcher().reload())


def test_reload_by_signal(world: World) -> None:
    watcher = up(world, send_hup=True)
    world.os.deaf = {signal.SIGHUP}
    assert world.run(watcher.reload())["kept"] == [101]
    assert world.os.sent == [("process", 101, signal.SIGHUP)]


def test_a_reload_that_fails_keeps_the_old_which_keep_their_options(world: World) -> None:
    watcher = up(world, numprocesses=2)
    world.os.fails["new"] = "cannot execute new: gone"
    watcher.apply(replace(watcher.spec, cmd="new"), {Impact.LIVE}, {})
    with pytest.raises(SysupError, match="cannot execute new: gone"):
        world.run(watcher.reload())
    assert pids(watcher) == [101, 102]
    assert watcher.spec.cmd == "new"
    world.os.die(101)
    world.loop.settle()
    reborn = max(world.os.born)
    assert world.os.born[reborn][0] == ["web"]
    assert pids(watcher) == [reborn, 102]


def test_the_old_go_when_the_new_recover(world: World) -> None:
    watcher = up(world, numprocesses=2)
    world.os.fails["new"] = "cannot execute new: gone"
    with pytest.raises(SysupError, match=r"cannot replace web: .* gone; the old processes run on"):
        world.run(watcher.set_options({"cmd": "new", "priority": 3}))
    assert pids(watcher) == [101, 102]
    del world.os.fails["new"]
    world.loop.advance(100.0)
    assert pids(watcher) == [103, 104]
    assert world.os.born[103][0] == ["new"]


def test_a_stop_ends_a_reload(world: World) -> None:
    watcher = up(world)
    reload = world.begin(watcher.reload())
    world.run(watcher.stop())
    with pytest.raises(Superseded):
        world.run(_end(reload))
    assert pids(watcher) == []


def test_generations_that_are_over_are_forgotten(world: World) -> None:
    watcher = world.watcher()
    for number in range(3):
        world.run(watcher.set_options({"cmd": f"web{number}"}))
        world.run(watcher.start())
        world.run(watcher.stop())
    assert [sink.closed for sink in world.pump.sinks] == [True] * 4 + [False] * 2
    watcher.close()
    assert all(sink.closed for sink in world.pump.sinks)


# ---- scale, set --------------------------------------------------------------------------


def test_scale_leaves_survivors_alone(world: World) -> None:
    watcher = up(world, numprocesses=2)
    assert world.run(watcher.scale(2)) == 4
    assert world.run(watcher.scale(-3)) == 1
    assert pids(watcher) == [101]
    assert world.run(watcher.scale(-9)) == 0
    assert watcher.state == "active"


def test_scale_of_a_singleton_and_of_what_is_stopped(world: World) -> None:
    for change in (5, -1):
        assert world.run(world.watcher(singleton=True).scale(change)) == 1
    watcher = world.watcher()
    assert world.run(watcher.scale(2)) == 3
    assert pids(watcher) == []


def test_scale_holds_though_a_stop_comes(world: World) -> None:
    watcher = up(world, ready="uptime:100")
    scale = world.begin(watcher.scale(1))
    world.run(watcher.stop())
    assert world.run(_end(scale)) == 2


def test_set_changes_all_or_nothing(world: World) -> None:
    watcher = up(world)
    with pytest.raises(MessageError):
        world.run(watcher.set_options({"numprocesses": 3, "priority": "high"}))
    assert watcher.spec.numprocesses == 1
    assert world.told("updated") == []
    assert world.run(watcher.set_options({"numprocesses": 3})) == {"numprocesses": "scale"}
    world.loop.settle()
    assert len(pids(watcher)) == 3
    assert world.told("updated") == [{}]


def test_limits_are_set_on_what_runs_and_on_what_comes(world: World) -> None:
    watcher = up(world, numprocesses=2)
    assert world.run(watcher.set_options({"rlimit_nofile": 64})) == {"rlimit_nofile": "limits"}
    assert world.os.limits == [(101, "nofile", 64, 64), (102, "nofile", 64, 64)]
    world.run(watcher.scale(1))
    assert world.os.born[103][2].rlimits == (("nofile", 64, 64),)


def test_a_limit_that_cannot_be_set_changes_no_option(world: World) -> None:
    watcher = up(world, numprocesses=2)
    world.os.forbidden = {101}
    with pytest.raises(SysupError, match="cannot set rlimit_nofile of process 101"):
        world.run(watcher.set_options({"rlimit_nofile": 64, "cmd": "new"}))
    assert (watcher.spec.rlimits, watcher.spec.cmd) == ((), "web")
    world.loop.advance(5.0)
    assert pids(watcher) == [101, 102]


# ---- kill, signal, age -------------------------------------------------------------------


def test_kill_starts_afresh(world: World) -> None:
    watcher = up(world, numprocesses=2)
    world.run(watcher.kill(102, None, None))
    assert pids(watcher) == [101, 103]
    world.run(watcher.kill(None, None, None))
    assert pids(watcher) == [104, 105]
    assert [p["restarts"] for p in watcher.describe()["processes"]] == [1, 2]
    assert world.told("backoff") == []


def test_kill_with_its_own_signal_and_time(world: World) -> None:
    watcher = up(world, graceful_timeout=30.0)
    world.os.deaf = {signal.SIGINT, TERM}
    begun = world.loop.now
    world.run(watcher.kill(None, signal.SIGINT, 2.0))
    assert world.loop.now - begun == pytest.approx(2.0, abs=0.1)
    assert [p["signum"] for p in world.told("kill")] == [signal.SIGINT, KILL]
    begun = world.loop.now
    world.run(watcher.stop())
    assert world.loop.now - begun == pytest.approx(30.0, abs=0.1), "the watcher's own again"
    assert [p["signum"] for p in world.told("kill")][2:] == [TERM, KILL]


def test_kill_where_nothing_runs_ends(world: World) -> None:
    world.run(world.watcher().kill(None, None, None))


@pytest.mark.parametrize(
    ("options", "sent"),
    [
        ({}, [("process", 101), ("process", 102)]),
        ({"pid": 102}, [("process", 102)]),
        ({"pid": 7}, []),
        ({"pid": 101, "child_pid": 102}, [("child", 102)]),
        ({"pid": 101, "children": True}, [("children", 101)]),
        (
            {"pid": 101, "children": True, "recursive": True},
            [("descendants", 101), ("process", 101)],
        ),
        ({"pid": 101, "recursive": True}, [("descendants", 101), ("process", 101)]),
    ],
)
def test_signal(world: World, options: dict[str, Any], sent: list[tuple[str, int]]) -> None:
    watcher = up(world, numprocesses=2)
    whole(reach.send_signal(watcher.slots, signal.SIGUSR1, **options))
    assert [(what, pid) for what, pid, _ in world.os.sent] == sent


def test_a_death_by_a_signal_that_was_asked_for_is_no_crash(world: World) -> None:
    watcher = world.watcher()
    world.run(watcher.start())
    for _ in range(5):
        whole(reach.send_signal(watcher.slots, signal.SIGTERM))
        world.loop.settle()
    assert pids(watcher) == [106]
    assert {name for name, _ in world.events} == {"spawn", "start", "reap"}


def test_max_age_is_drawn_once_for_each_process(world: World) -> None:
    world.chance = 0.5
    watcher = world.watcher(max_age=10, max_age_variance=20)
    world.run(watcher.start())
    world.chance = 0.0
    for age, alive in ((19.9, [101]), (0.2, [102]), (9.9, [102]), (0.2, [103])):
        world.loop.advance(age)
        whole(reach.recycle_old(watcher.slots))
        world.loop.advance(0.0)
        world.loop.advance(0.1 if alive != pids(watcher) else 0.0)
        assert pids(watcher) == alive


def test_max_age_holds_for_what_runs_already(world: World) -> None:
    watcher = up(world)
    whole(reach.recycle_old(watcher.slots))
    world.loop.advance(1.0)
    assert pids(watcher) == [101]
    world.run(watcher.set_options({"max_age": 10}))
    whole(reach.recycle_old(watcher.slots))
    world.loop.advance(1.0)
    assert pids(watcher) == [102]


def test_warmup_delay(world: World) -> None:
    watcher = world.watcher(numprocesses=3, warmup_delay=2.0)
    begun = world.loop.now
    world.run(watcher.start())
    assert world.loop.now - begun == pytest.approx(4.0)
    assert len(pids(watcher)) == 3


# ---- crashes -----------------------------------------------------------------------------


def test_a_crash_is_answered_at_once_in_its_place(world: World) -> None:
    watcher = up(world, numprocesses=2)
    world.os.die(101, -11)
    world.loop.settle()
    assert pids(watcher) == [103, 102]
    assert world.told("reap") == [{"process_pid": 101, "wid": 1, "exit_code": -11}]
    assert ("group", 101, KILL) in world.os.sent


def test_growing_delays_and_the_last_output(world: World) -> None:
    watcher = up(world, flapping=CALM)
    times = []
    for _ in range(4):
        world.os.die(pids(watcher)[0], 3, b"broken\n" + b"x" * 10)
        world.loop.settle()
        begun = world.loop.now
        while not pids(watcher):
            world.loop.advance(0.1)
        times.append(world.loop.now - begun)
    assert times == pytest.approx([0.0, 0.5, 1.0, 2.0], abs=0.11)
    first = world.told("backoff")[0]
    assert first["last_output"] == "broken\nxxxxxxxxxx"
    assert (first["reason"], first["exit_code"]) == ("exit code 3", 3)
    assert (first["process_pid"], first["wid"], first["retry_in"]) == (102, 1, 0.5)
    assert watcher.describe()["processes"][0]["last_output"] == "broken\nxxxxxxxxxx"


def test_the_report_of_a_death_waits_for_the_output_but_not_for_ever(world: World) -> None:
    watcher = up(world, flapping=CALM)
    for _ in range(2):
        world.os.die(max(world.os.born), 3, b"so far", pipes=False)
        world.loop.settle()
    assert world.told("backoff") == []
    world.loop.advance(REPORT_WITHIN)
    assert [e["last_output"] for e in world.told("backoff")] == ["so far"]
    assert watcher.describe()["processes"][0]["last_output"] == "so far"
    for stream in world.pump.streams[102]:
        stream.end()
    world.loop.advance(1.0)
    assert len(world.told("backoff")) == 1, "told once"


def test_what_dies_at_once_is_given_up(world: World) -> None:
    watcher = world.watcher(
        flapping=FlappingSpec(retry_in=7.0, max_retry=2), max_retry=9, backoff_jitter=0.0
    )
    world.os.dies["web"] = 4
    world.run(watcher.start())
    world.loop.settle()
    assert (watcher.state, watcher.describe()["state"]) == ("active", "flapping")
    assert watcher.describe()["retry_in"] == 7.0
    world.loop.advance(60.0)
    assert [e["retry_in"] for e in world.told("flapping")] == [7.0, 14.0]
    assert [(e["tries"], e["exit_code"]) for e in world.told("gave_up")] == [(2, 4)]
    assert len(world.os.born) == 4
    assert (watcher.state, watcher.describe()["state"]) == ("stopped", "failed")
    del world.os.dies["web"]
    world.run(watcher.start())
    assert watcher.state == "active"


def test_what_cannot_be_spawned_goes_the_same_way(world: World) -> None:
    watcher = world.watcher(max_retry=1)
    world.os.fails["web"] = "cannot execute web: no such file"
    world.run(watcher.start())
    world.loop.advance(60.0)
    (gave_up,) = world.told("gave_up")
    assert gave_up["reason"] == "cannot execute web: no such file"
    assert gave_up["process_pid"] is None
    assert gave_up["last_output"] == ""
    assert watcher.describe()["reason"] == "cannot execute web: no such file"


@pytest.mark.parametrize(("status", "code"), [(4, 4), (-9, -9)])
def test_giving_up_may_end_the_daemon(world: World, status: int, code: int) -> None:
    told: list[int | None] = []
    world.board.on_give_up = told.append
    watcher = world.watcher(flapping=FlappingSpec(on_give_up="exit"), max_retry=0)
    world.os.dies["web"] = status
    world.run(watcher.start())
    world.loop.advance(1.0)
    assert told == [code]


def test_what_is_done_is_not_started_again(world: World) -> None:
    watcher = world.watcher(restart=Restart.ON_FAILURE)
    world.os.dies["web"] = 0
    world.run(watcher.start())
    world.loop.advance(60.0)
    assert len(world.os.born) == 1
    assert (watcher.state, watcher.describe()["state"]) == ("stopped", "done")
    assert world.told("done")[0]["exit_code"] == 0


def test_together_a_crash_loop_waits_for_all(world: World) -> None:
    watcher = world.watcher(
        numprocesses=2, flapping=FlappingSpec(scope="watcher"), max_retry=0, backoff_jitter=0.0
    )
    world.run(watcher.start())
    world.os.die(101)
    world.loop.settle()
    world.os.die(102)
    world.loop.advance(0.5)
    assert states(watcher) == [State.FAILED], "one death of each is a crash loop of the watcher"
    assert pids(watcher) == []
    world.run(watcher.start())
    assert len(pids(watcher)) == 2


def test_together_a_stop_and_a_start_forget_the_crash_loop(world: World) -> None:
    watcher = world.watcher(flapping=FlappingSpec(scope="watcher"), max_retry=1)
    world.os.dies["web"] = 1
    world.run(watcher.start())
    world.loop.advance(60.0)
    assert states(watcher) == [State.FAILED]
    world.run(watcher.stop())
    world.run(watcher.start())
    world.loop.settle()
    assert states(watcher) == [State.FLAPPING], "it has all its tries again"


def test_together_a_new_generation_that_fails_leaves_the_old_running(world: World) -> None:
    watcher = up(world, numprocesses=2, flapping=FlappingSpec(scope="watcher"))
    world.os.fails["new"] = "cannot execute new"
    watcher.apply(replace(watcher.spec, cmd="new"), {Impact.LIVE}, {})
    with pytest.raises(SysupError, match="the old processes run on"):
        world.run(watcher.reload())
    world.loop.advance(3.0)
    assert pids(watcher) == [101, 102]


def test_the_scope_of_flapping_can_be_changed(world: World) -> None:
    watcher = world.watcher(numprocesses=2, max_retry=0)
    world.run(watcher.start())
    world.run(watcher.set_options({"flapping.scope": "watcher"}))
    for pid in (101, 102):
        world.os.die(pid)
        world.loop.settle()
    world.loop.advance(0.5)
    assert pids(watcher) == []
    world.run(watcher.set_options({"flapping.scope": "slot"}))
    world.run(watcher.restart())
    world.os.die(pids(watcher)[0])
    world.loop.settle()
    world.os.die(pids(watcher)[1])
    world.loop.settle()
    assert len(pids(watcher)) == 2


def test_without_descriptors_there_is_no_process_and_a_reason(world: World) -> None:
    watcher = world.watcher()
    world.pump.full = OSError(24, "Too many open files")
    world.run(watcher.start())
    world.loop.advance(5.0)
    assert pids(watcher) == [102]
    assert ("process", 101, KILL) in world.os.sent
    assert 101 not in world.os.living


# ---- what others see ---------------------------------------------------------------------


def test_describe(world: World) -> None:
    watcher = up(world, numprocesses=2)
    world.os.die(102, 5)
    world.loop.advance(2.5)
    assert watcher.describe() == {
        "state": "active",
        "want": "up",
        "numprocesses": 2,
        "ready": 2,
        "restarts": 1,
        "uptime": 2.5,
        "retry_in": None,
        "reason": "exit code 5",
        "problem": None,
        "config_problem": None,
        "processes": [
            {
                "wid": 1,
                "pid": 101,
                "state": "running",
                "uptime": 62.5,
                "restarts": 0,
                "tries": 0,
                "retry_in": None,
                "exit_code": None,
                "reason": None,
                "last_output": None,
            },
            {
                "wid": 2,
                "pid": 103,
                "state": "running",
                "uptime": 2.5,
                "restarts": 1,
                "tries": 0,
                "retry_in": None,
                "exit_code": 5,
                "reason": "exit code 5",
                "last_output": None,
            },
        ],
    }
    assert "web" in repr(watcher)


def test_output_that_cannot_be_written_is_a_problem_of_the_watcher(world: World) -> None:
    watcher = up(world)
    world.pump.sinks[0].fail("cannot write out: disk full")
    assert watcher.describe()["problem"] == "cannot write out: disk full"
    assert world.told("sink_failed") == [{"reason": "cannot write out: disk full"}]
    world.pump.sinks[0].fail("")
    assert watcher.describe()["problem"] is None
    assert world.told("sink_recovered") == [{}]


def test_the_loop_gets_its_turn_between_many_spawns(world: World) -> None:
    world.os.cost = TURN / 4
    watchers = [world.watcher(name, numprocesses=10) for name in ("a", "b")]
    starts = [world.loop.create_task(watcher.start()) for watcher in watchers]
    turns: list[int] = []

    def turn() -> None:
        turns.append(len(world.os.born))
        if len(world.os.born) < 20:
            world.loop.call_soon(turn)

    world.loop.call_soon(turn)
    for start in starts:
        world.run(_end(start))
    assert max(b - a for a, b in itertools.pairwise(turns)) <= 4


def test_each_watcher_has_its_turn_before_any_has_a_second_one(world: World) -> None:
    world.os.cost = TURN / 4
    many, *others = [
        world.watcher(name, numprocesses=n) for name, n in (("m", 40), ("a", 1), ("b", 1))
    ]
    starts = [world.loop.create_task(watcher.start()) for watcher in (many, *others)]
    for start in starts[1:]:
        world.run(_end(start))
    assert len(world.os.born) < 40, "many are not through"
    world.run(_end(starts[0]))


# ---- the end -----------------------------------------------------------------------------


def test_processes_can_be_forgotten(world: World) -> None:
    watcher = up(world, numprocesses=2)
    held = [body.process for _, body in watcher.slots.bodies]
    watcher.forget_processes()
    watcher.close()
    assert world.os.sent == []
    assert world.board.bodies == {}
    assert [process.pidfd for process in held] == [-1, -1], "closed"
    assert watcher.state == "stopped"
    world.os.living.clear()


def test_forgetting_ends_the_commands_that_wait(world: World) -> None:
    watcher = world.watcher(ready="uptime:100")
    start = world.begin(watcher.start())
    watcher.forget_processes()
    watcher.close()
    with pytest.raises(Superseded):
        world.run(_end(start))
    world.os.living.clear()


def test_what_is_forgotten_is_not_retried(world: World) -> None:
    watcher = world.watcher()
    world.os.fails["web"] = "cannot"
    world.run(watcher.start())
    watcher.forget_processes()
    watcher.close()
    world.os.fails.clear()
    world.loop.advance(60.0)
    assert world.os.born == {}


def test_what_waits_does_not_start_a_watcher_that_is_removed(world: World) -> None:
    watcher = up(world)

    async def remove() -> None:
        await watcher.stop()
        watcher.close()

    removal = world.loop.create_task(remove())
    start = world.begin(watcher.start())
    world.run(_end(removal))
    with pytest.raises(Superseded):
        world.run(_end(start))
    world.loop.advance(60.0)
    assert pids(watcher) == []


def test_close_cancels_all_timers(world: World) -> None:
    watcher = world.watcher(max_retry=1)
    world.os.fails["web"] = "cannot"
    world.run(watcher.start())
    watcher.close()
    world.loop.advance(60.0)
    assert len(world.told("flapping")) == 1


# ---- many at once ------------------------------------------------------------------------


def test_many_deaths_do_not_block_the_loop(world: World) -> None:
    """Each is followed by a start, and between them others have their turns."""
    watcher = up(world, numprocesses=40, flapping=CALM)
    spawned = len(world.os.born)
    world.os.cost = TURN / 3
    for pid in pids(watcher):
        world.os.die(pid, pipes=False)
    turns: list[int] = []

    def turn() -> None:
        turns.append(len(world.os.born))
        if turns[-1] < spawned + 40:
            world.loop.call_soon(turn)

    turn()
    world.loop.settle()
    assert len(pids(watcher)) == 40
    assert max(b - a for a, b in itertools.pairwise(turns)) <= 6, "of deaths, and of the plan"


def test_what_dies_before_its_turn_is_not_ended_again(world: World) -> None:
    watcher = up(world, numprocesses=3)
    steps = reach.recycle(watcher.slots, None, None, None)
    next(steps)
    world.os.die(102)
    world.loop.settle()
    whole(steps)
    world.loop.advance(1.0)
    assert [pid for what, pid, _ in world.os.sent if what == "process"] == [101, 103]
    assert sorted(pids(watcher)) == [104, 105, 106]


def test_a_process_that_is_forgotten_as_it_dies_is_left_alone(world: World) -> None:
    watcher = up(world)
    (_, body), place = watcher.slots.bodies[0], watcher.slots.places[1]
    watcher.slots._has_ended(place, body)
    watcher.forget_processes()
    world.os.living.clear()
    world.loop.settle()
    assert world.told("reap") == []
