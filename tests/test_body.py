"""What a process is made of, and how."""

from __future__ import annotations

import os
from typing import Any

import pytest

from sysup.body import FD, Mould, used_sockets
from sysup.config import StreamSpec, WatcherSpec
from sysup.process import MARKER
from sysup.protocol import SysupError
from tests.world import World


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


def test_who_has_no_directory_is_told_the_daemons(world: World) -> None:
    world.board.setting.directory = "/srv/shop"
    mould(world, cmd="$(circus.working_dir)/web").make(1)
    assert world.os.born[101][0] == ["/srv/shop/web"]


def test_sockets_as_systemd_hands_them_over(world: World) -> None:
    world.board.setting.sockets = {"web": 4, "api": 7, "admin": 3}
    mould(
        world, cmd="x $(sysup.sockets.api) $(sysup.sockets.admin)", listen_fds=("API", "web")
    ).make(1)
    argv, env, launch = world.os.born[101]
    assert {fd: ours for fd, ours in launch.fds.items() if fd > 2} == {3: 7, 4: 4, 5: 3}
    assert argv == ["x", "3", "5"], "where they are there"
    assert (launch.env["LISTEN_FDS"], launch.env["LISTEN_FDNAMES"]) == ("2", "API:web")
    assert launch.listen_pid
    mould(world, cmd="x $(sysup.sockets.api)").make(1)
    argv, env, launch = world.os.born[102]
    assert argv == ["x", "7"]
    assert not launch.listen_pid
    assert not [name for name in {**launch.env, **env} if name.startswith("LISTEN_")]


def test_a_socket_may_be_in_several_places(world: World) -> None:
    world.board.setting.sockets = {"web": 3}
    mould(world, stdin_socket="web", listen_fds=("web", "web")).make(1)
    fds = world.os.born[101][2].fds
    assert {fd: ours for fd, ours in fds.items() if fd not in (1, 2)} == {0: 3, 3: 3, 4: 3}


def test_a_socket_to_listen_on_that_nobody_has(world: World) -> None:
    with pytest.raises(SysupError, match="there is no socket 'web'"):
        mould(world, listen_fds=("web",))


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
        ({"listen_fds": ("Web", "api")}, ["api", "web"]),
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
