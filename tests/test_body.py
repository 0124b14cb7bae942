"""What a process is made of, and what is done until nothing of it is left."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from sysup.body import FD, FIRST_LOOK, LAZY_LOOK, LOOK_SHARE, Body, Mould, used_sockets
from sysup.config import StreamSpec, WatcherSpec
from sysup.process import MARKER
from sysup.protocol import SysupError
from tests.world import World

KILL = signal.SIGKILL


def mould(world: World, **options: Any) -> Mould:
    spec = WatcherSpec("web", **{"cmd": "web", **options})
    return Mould(
        world.board.setting,
        spec,
        on_read_out=world.board.remains.check,
        on_sink=lambda reason: None,
        on_loss=lambda name, losses: None,
        on_rotated=lambda path: None,
    )


def dead(world: World, **options: Any) -> Body:
    """A body whose process has ended and whose pipes are read out."""
    body = mould(world, **options).make(1)
    world.os.die(body.process.pid)
    world.os.close(body.process)
    return body


class Releases:
    """Notes who was released, and when."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.begun = world.loop.now
        self.seen: dict[int, float] = {}

    def __call__(self, serial: int) -> None:
        assert serial not in self.seen, "told twice"
        self.seen[serial] = self.world.loop.now - self.begun


@pytest.fixture
def releases(world: World) -> Releases:
    return Releases(world)


Clear = Callable[..., None]


@pytest.fixture
def clear(world: World, releases: Releases) -> Clear:
    def clear(body: Body, scope: str = "tree", awaited: bool = True) -> None:
        world.board.remains.clear(body, scope, releases, awaited=awaited)

    return clear


# ---- Mould -------------------------------------------------------------------------------


def test_each_process_has_a_marker_and_pipes_of_its_own(world: World) -> None:
    one = mould(world)
    bodies = [one.make(1), one.make(2)]
    assert len({body.serial for body in bodies}) == len({body.marker for body in bodies}) == 2
    for body in bodies:
        assert world.os.born[body.process.pid][1] == {MARKER: body.marker}
        assert len(body.streams) == 2
        assert not body.read_out


def test_what_is_expanded_for_each_process(world: World) -> None:
    one = mould(world, cmd="web --id $(circus.wid)")
    one.make(7)
    assert world.os.born[101][0] == ["web", "--id", "7"]


def test_closed_descriptors_are_null_and_need_no_sink(world: World) -> None:
    setting = world.board.setting
    body = mould(world, close_child_stdout=True).make(1)
    launch = world.os.born[101][2]
    assert launch.fds == {0: setting.null, 1: setting.null, 2: 2}
    assert [sink.name for sink in world.pump.sinks] == ["stderr"]
    assert len(body.streams) == 1


def test_sockets_are_passed_by_their_number(world: World) -> None:
    world.board.setting.sockets = {"api": 40, "other": 41}
    mould(world, cmd="web $(circus.sockets.api)").make(1)
    assert {40} == {*world.os.born[101][2].fds} - {0, 1, 2}
    mould(world, use_sockets=True, stdin_socket="api").make(1)
    fds = world.os.born[102][2].fds
    assert (fds[0], fds[41]) == (40, 41)
    assert 40 not in fds


def test_a_socket_that_is_not_bound_is_the_reason(world: World) -> None:
    world.board.setting.socket_problems = {"api": "cannot bind socket api to x: in use"}
    with pytest.raises(SysupError, match="cannot bind socket api"):
        mould(world, stdin_socket="api")
    mould(world)


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({}, []),
        ({"use_sockets": True}, ["api", "web"]),
        ({"stdin_socket": "web"}, ["web"]),
        ({"cmd": "x $(circus.sockets.API)"}, ["api"]),
        ({"cmd": "x", "args": ("$(sysup.sockets.web)", "y")}, ["web"]),
        ({"cmd": "x", "shell_args": "$(circus.sockets.api)"}, ["api"]),
    ],
)
def test_used_sockets(options: dict[str, Any], names: list[str]) -> None:
    assert used_sockets(WatcherSpec("w", **options), ["api", "web"]) == names


@pytest.mark.parametrize("options", [{}, {"stdin": "pipe"}, {"stdin": "pipe", "pty": True}])
def test_a_failed_spawn_leaves_no_descriptor(world: World, options: dict[str, Any]) -> None:
    one = mould(world, **options)
    world.os.fails["web"] = "cannot execute web: no"
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(SysupError, match="cannot execute web: no"):
        one.make(1)
    assert len(os.listdir("/proc/self/fd")) == before


def test_no_process_without_its_pipes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    one = mould(world)
    made: list[tuple[int, int]] = []
    pipe2 = os.pipe2

    def scarce(flags: int) -> tuple[int, int]:
        if made:
            raise OSError(24, "Too many open files")
        made.append(pipe2(flags))
        return made[-1]

    monkeypatch.setattr(os, "pipe2", scarce)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(SysupError, match="cannot make its pipes: Too many open files"):
        one.make(1)
    assert len(os.listdir("/proc/self/fd")) == before
    assert world.os.born == {}


@pytest.mark.parametrize("options", [{}, {"stdin": "pipe"}, {"stdin": "pipe", "pty": True}])
def test_no_process_whose_pipes_cannot_be_read(world: World, options: dict[str, Any]) -> None:
    one = mould(world, **options)
    before = len(os.listdir("/proc/self/fd"))
    world.pump.full = OSError(12, "Cannot allocate memory")
    with pytest.raises(SysupError, match="cannot make its pipes: Cannot allocate memory"):
        one.make(1)
    assert world.os.living == {}
    assert len(os.listdir("/proc/self/fd")) == before + len(world.os.inputs)


def test_no_process_whose_input_cannot_be_written(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scarce(*_: object) -> None:
        raise OSError(28, "No space left on device")

    one = mould(world, stdin="pipe")
    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(world.loop, "add_reader", scarce)
    with pytest.raises(SysupError, match="cannot make its pipes: No space left on device"):
        one.make(1)
    assert world.os.living == {}
    assert len(os.listdir("/proc/self/fd")) == before + len(world.os.inputs)


def test_no_process_without_its_terminal(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def scarce() -> None:
        raise OSError(28, "No space left on device")

    one = mould(world, pty=True)
    monkeypatch.setattr(os, "openpty", scarce)
    with pytest.raises(SysupError, match="cannot open a terminal: No space left on device"):
        one.make(1)
    assert world.os.born == {}


@pytest.mark.parametrize(
    ("options", "kinds", "streams"),
    [
        ({}, ["null", "pipe", "pipe"], 2),
        ({"close_child_stdin": False}, ["daemon's", "pipe", "pipe"], 2),
        ({"close_child_stdin": False, "stdin": "null"}, ["null", "pipe", "pipe"], 2),
        ({"stdin": "pipe"}, ["pipe", "pipe", "pipe"], 2),
        ({"pty": True}, ["null", "pts", "pts"], 1),
        ({"pty": True, "stdin": "pipe"}, ["pts", "pts", "pts"], 1),
        ({"pty": True, "close_child_stderr": True}, ["null", "pts", "null"], 1),
        ({"pty": True, "stderr_stream": StreamSpec("E")}, ["null", "pts", "pipe"], 2),
        (
            {"pty": True, "stdout_stream": StreamSpec("E"), "stderr_stream": StreamSpec("E")},
            ["null", "pts", "pts"],
            1,
        ),
    ],
)
def test_what_the_standard_descriptors_are(
    world: World, options: dict[str, Any], kinds: list[str], streams: int
) -> None:
    body = mould(world, **options).make(1)
    assert world.os.kinds[101] == kinds
    assert len(body.streams) == streams
    assert (body.stdin is not None) == (options.get("stdin") == "pipe")
    if body.stdin:
        body.stdin.close()


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_terminal_s_input_ends_with_its_output(world: World, name: str) -> None:
    one = mould(world, pty=True, stdin="pipe", stderr_stream=StreamSpec("E"))
    body = one.make(1)
    assert body.stdin
    assert masters() == 1
    world.pump.streams[101][[*FD].index(name)].end()
    assert masters() == (0 if name == "stdout" else 1)
    body.stdin.close()


def masters() -> int:
    """How many of our ends of terminals are open."""
    links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
    return sum(os.readlink(link).endswith("/ptmx") for link in links if os.path.lexists(link))


def test_a_stream_that_cannot_be_had_costs_no_sink(world: World) -> None:
    with pytest.raises(SysupError, match=r"no\.Such"):
        mould(world, stderr_stream=StreamSpec("no.Such"))
    assert [sink.closed for sink in world.pump.sinks] == [True]


def test_an_unknown_user_is_a_reason(world: World) -> None:
    with pytest.raises(SysupError, match="cannot find user 'no-such-user'"):
        mould(world, uid="no-such-user")


def test_the_output_that_is_told_is_shared_between_the_streams(world: World) -> None:
    body = mould(world).make(1)
    for fd, stream in zip(FD.values(), world.pump.streams[101], strict=True):
        stream.text = b"".join(b"%d line %d\n" % (fd, number) for number in range(20))
    told: list[str] = []
    body.on_output.append(told.append)
    body.tell_output()
    body.tell_output()
    (output,) = told
    assert output.splitlines() == [f"{fd} line {n}" for fd in (1, 2) for n in range(15, 20)]


# ---- Remains -----------------------------------------------------------------------------


def test_the_group_is_killed_at_once(world: World, clear: Clear, releases: Releases) -> None:
    body = dead(world)
    clear(body)
    assert world.os.sent == [("group", 101, KILL)]
    world.run(world.board.remains.cleared())
    assert releases.seen == {body.serial: pytest.approx(FIRST_LOOK)}


@pytest.mark.parametrize(("scope", "killed"), [("main", 0), ("group", 1)])
def test_smaller_scopes_need_no_look(
    world: World, clear: Clear, releases: Releases, scope: str, killed: int
) -> None:
    body = dead(world)
    clear(body, scope)
    world.loop.settle()
    assert len(world.os.sent) == killed
    assert releases.seen == {body.serial: 0.0}
    assert world.os.looks == []


def test_one_look_serves_all_that_died_lately(world: World, clear: Clear) -> None:
    bodies = [dead(world) for _ in range(50)]
    for body in bodies[:25]:
        clear(body)
    world.loop.advance(FIRST_LOOK / 2)
    for body in bodies[25:]:
        clear(body)
    world.run(world.board.remains.cleared())
    assert world.os.looks == [{body.process.pid for body in bodies}]


def test_a_look_that_nobody_awaits_takes_its_time(world: World, clear: Clear) -> None:
    clear(dead(world), awaited=False)
    world.loop.advance(LAZY_LOOK - 0.01)
    assert world.os.looks == []
    world.loop.advance(0.02)
    assert len(world.os.looks) == 1


def test_who_waits_does_not_wait_for_a_lazy_look(world: World, clear: Clear) -> None:
    clear(dead(world), awaited=False)
    clear(dead(world), awaited=True)
    world.loop.advance(FIRST_LOOK)
    assert world.os.looks == [{101, 102}]
    world.loop.advance(LAZY_LOOK)
    assert len(world.os.looks) == 1


def test_looks_are_repeated_until_nothing_is_left(
    world: World, clear: Clear, releases: Releases
) -> None:
    one, other = dead(world), dead(world)
    world.os.left[101] = [{900, 901}, {902}, set()]
    clear(one)
    clear(other)
    world.run(world.board.remains.cleared())
    strays = [pid for what, pid, _ in world.os.sent if what == "stray"]
    assert strays == [900, 901, 902]
    assert world.os.looks == [{101, 102}, {101}, {101}]
    assert releases.seen[other.serial] < releases.seen[one.serial]


def test_long_looks_are_repeated_less_often(world: World, clear: Clear) -> None:
    world.os.cost = 0.0
    body = dead(world)
    world.os.cost = 0.1
    world.os.left[101] = [{900}, set()]
    clear(body)
    world.loop.advance(FIRST_LOOK + 0.1)
    assert len(world.os.looks) == 1
    world.loop.advance(0.1 * LOOK_SHARE - 0.05)
    assert len(world.os.looks) == 1
    world.loop.advance(0.1)
    assert len(world.os.looks) == 2


def test_what_may_not_be_killed_does_not_end_the_clearing(
    world: World, clear: Clear, releases: Releases, caplog: pytest.LogCaptureFixture
) -> None:
    body = dead(world)
    world.os.forbidden = {101, 900}
    world.os.left[101] = [{900, 901}, set()]
    clear(body)
    world.run(world.board.remains.cleared())
    assert ("stray", 901, KILL) in world.os.sent
    assert body.serial in releases.seen
    assert [r.getMessage() for r in caplog.records] == [
        "cannot signal group 101: not permitted",
        "cannot signal stray 900: not permitted",
    ]


def test_it_is_over_when_the_pipes_are_read_out(
    world: World, clear: Clear, releases: Releases
) -> None:
    body = mould(world).make(1)
    world.os.die(101, pipes=False)
    world.os.close(body.process)
    clear(body)
    world.loop.advance(5.0)
    assert body.tree_empty
    assert releases.seen == {}
    first, last = world.pump.streams[101]
    first.end()
    world.loop.settle()
    assert releases.seen == {}
    last.end()
    world.loop.settle()
    assert [*releases.seen] == [body.serial]


def test_pipes_that_end_before_the_process_do_not_release_it(
    world: World, releases: Releases
) -> None:
    body = mould(world).make(1)
    for stream in world.pump.streams[101]:
        stream.end()
    world.loop.settle()
    assert body.read_out
    assert releases.seen == {}


def test_abandoned_pipes_are_closed_and_nobody_is_waited_for(
    world: World, clear: Clear, releases: Releases
) -> None:
    body = mould(world).make(1)
    world.os.die(101, pipes=False)
    world.os.close(body.process)
    world.pump.streams[101][0].end()
    clear(body, "main")
    cleared = world.begin(world.board.remains.cleared())
    assert not cleared.done()
    world.board.remains.abandon(body)
    world.loop.settle()
    assert cleared.done()
    assert [stream.closed for stream in world.pump.streams[101]] == [False, True]


def test_cleared_waits_for_those_that_come_meanwhile(world: World, clear: Clear) -> None:
    world.run(world.board.remains.cleared())
    clear(dead(world))
    waiting = [world.begin(world.board.remains.cleared()) for _ in range(2)]
    late = dead(world)
    world.os.left[102] = [{900}, {900}, set()]
    clear(late)
    world.loop.advance(FIRST_LOOK)
    assert not any(task.done() for task in waiting)
    world.loop.advance(1.0)
    assert all(task.done() for task in waiting)


def test_what_may_not_be_killed_is_told_once_and_not_waited_for(
    world: World, clear: Clear, releases: Releases, caplog: pytest.LogCaptureFixture
) -> None:
    body = dead(world)
    world.os.left[body.process.pid] = [{900}] * 50
    world.os.forbidden = {900}
    clear(body)
    world.loop.advance(1.0)
    assert body.serial in releases.seen
    assert len(caplog.records) == 1


def test_a_look_that_fails_is_taken_again(
    world: World, clear: Clear, releases: Releases, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = dead(world)
    looks = iter([SysupError("cannot read /proc: too many open files")])
    look = world.os.leftovers

    def leftovers(*args: Any) -> dict[int, set[int]]:
        for error in looks:
            raise error
        return look(*args)

    monkeypatch.setattr(world.os, "leftovers", leftovers)
    clear(body)
    world.loop.advance(2.0)
    assert body.serial in releases.seen
