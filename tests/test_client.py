"""The blocking client, against a daemon of canned replies."""

from __future__ import annotations

import grp
import json
import os
import pwd
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sysup import client, protocol
from sysup.client import (
    CallError,
    Client,
    ConnectionLost,
    Subscription,
    TimedOut,
    Unreachable,
    apps,
    find_endpoint,
    probe,
)
from sysup.protocol import Errno, MessageError, SysupError

from .canned import PATIENCE, CannedDaemon, Gone

DAEMON, NOBODY = 1, 65534


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """Where the runtime directories of apps are."""
    return tmp_path / "run"


@pytest.fixture
def daemon(base: Path) -> Iterator[CannedDaemon]:
    with CannedDaemon(base / "shop") as running:
        yield running


@pytest.fixture
def calling(daemon: CannedDaemon) -> Iterator[Client]:
    with Client(daemon.endpoint, timeout=PATIENCE) as connected:
        yield connected


def stale_socket(path: Path) -> str:
    """A socket file that a process left behind when it was killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
    return f"ipc://{path}"


@contextmanager
def powerless() -> Iterator[None]:
    """As a user whom file modes mean: root is not."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


# ---- asking ------------------------------------------------------------------------------


def test_call_asks_on_the_wire_and_returns_the_reply(daemon: CannedDaemon, calling: Client) -> None:
    daemon.replies["incr"] = {"numprocesses": 4}
    reply = calling.call("incr", name="web", nb=2, waiting=True)
    request = daemon.request()
    assert request.pop("id") == reply["id"]
    assert request == {
        "command": "incr",
        "properties": {"name": "web", "nb": 2, "waiting": True},
    }
    assert (reply["status"], reply["numprocesses"]) == ("ok", 4)


def test_a_handshake_that_ends_without_a_word() -> None:
    def serve(listener: socket.socket) -> None:
        for _ in range(2):  # the first only looks whether somebody is there
            connection, _ = listener.accept()
            connection.recv(10)
            connection.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = threading.Thread(target=serve, args=[listener])
        serving.start()
        endpoint = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        with Client(endpoint, PATIENCE) as client, pytest.raises(Unreachable) as caught:
            client.call("list")
        serving.join()
    assert str(caught.value) == (
        f"cannot reach {endpoint}: it wants keys (see --key and --server-key), or it has just ended"
    )


def test_every_call_has_an_id_of_its_own(daemon: CannedDaemon, calling: Client) -> None:
    daemon.replies["list"] = {}
    assert calling.call("list")["id"] != calling.call("list")["id"]


def test_what_is_no_reply_to_the_call_is_skipped(daemon: CannedDaemon, calling: Client) -> None:
    def with_noise(message: dict[str, Any]) -> list[bytes]:
        noise = [b"", b"\xff", b"[]", b"7", protocol.ok({"of": "another"}, "other", 0.0)]
        noise.append(protocol.error("of another", Errno.COMMAND_ERROR, "other", 0.0))
        return [*noise, protocol.ok({"of": "this"}, message["id"], 0.0)]

    daemon.replies["list"] = with_noise
    assert calling.call("list")["of"] == "this"


def test_a_refusal_is_raised(daemon: CannedDaemon, calling: Client) -> None:
    def refuse(message: dict[str, Any]) -> None:
        raise MessageError("program web not found")

    daemon.replies["stop"] = refuse
    with pytest.raises(CallError, match=r"^program web not found$") as caught:
        calling.call("stop", name="web")
    assert caught.value.errno is Errno.MESSAGE_ERROR
    assert caught.value.reply["reason"] == "program web not found"


def test_an_errno_of_the_future_is_no_obstacle(daemon: CannedDaemon, calling: Client) -> None:
    daemon.replies["stop"] = lambda m: [protocol.error("no", 4711, m["id"], 0.0)]
    with pytest.raises(CallError, match=r"^no$") as caught:
        calling.call("stop")
    assert caught.value.errno is Errno.NOT_SPECIFIED


def test_a_refusal_of_what_could_not_be_read_has_no_id(
    daemon: CannedDaemon, calling: Client
) -> None:
    daemon.replies["set"] = lambda m: [protocol.error("json invalid", 1, None, 0.0)]
    with pytest.raises(CallError, match="json invalid"):
        calling.call("set")


def test_the_state_of_a_watcher_is_no_error(daemon: CannedDaemon, calling: Client) -> None:
    daemon.replies["status"] = {"status": "error"}  # as `status NAME` puts the state there
    assert calling.call("status", name="web")["status"] == "error"


def test_a_call_gives_up_in_time_and_the_next_works(daemon: CannedDaemon, calling: Client) -> None:
    daemon.replies["stop"] = None
    calling.timeout = 0.02
    with pytest.raises(TimedOut, match=r"timed out after 0\.02 s: no reply to stop from ipc://"):
        calling.call("stop")
    late = protocol.ok({"late": True}, daemon.request()["id"], 0.0)
    daemon.replies["list"] = lambda m: [late, protocol.ok({"late": False}, m["id"], 0.0)]
    calling.timeout = None
    assert calling.call("list")["late"] is False


def test_the_end_of_the_daemon_is_noticed(daemon: CannedDaemon, calling: Client) -> None:
    def end(message: dict[str, Any]) -> None:
        raise Gone

    daemon.replies["quit"] = end
    calling.timeout = None
    with pytest.raises(ConnectionLost, match="sysupd ended before it replied"):
        calling.call("quit")


def test_what_the_daemon_would_not_read_is_not_sent(daemon: CannedDaemon, calling: Client) -> None:
    daemon.replies["send"] = {}
    too_long = f"cannot send: the request has .* bytes, at most {protocol.MAX_MESSAGE} are read"
    with pytest.raises(CallError, match=too_long):
        calling.call("send", text="x" * protocol.MAX_MESSAGE)
    with pytest.raises(CallError, match=too_long):
        calling.cast("send", text="x" * protocol.MAX_MESSAGE)
    assert calling.call("send", text="x" * (protocol.MAX_MESSAGE - 200))["status"] == "ok"


def test_a_client_outlives_the_daemon(daemon: CannedDaemon, calling: Client) -> None:
    daemon.replies["list"] = {"generation": 1}
    assert calling.call("list")["generation"] == 1
    daemon.close()
    with CannedDaemon(daemon.directory) as reborn:
        reborn.replies["list"] = {"generation": 2}
        try:
            reply = calling.call("list")
        except ConnectionLost:  # it crossed the end of the first
            reply = calling.call("list")
        assert reply["generation"] == 2


def test_cast_asks_for_no_reply(daemon: CannedDaemon) -> None:
    with Client(daemon.endpoint) as connected:
        connected.cast("restart", name="web")
    request = daemon.request()
    assert (request["msg_type"], request["properties"]) == ("cast", {"name": "web"})


def test_over_tcp(base: Path) -> None:
    with (
        CannedDaemon(base / "shop", "tcp://127.0.0.1:*") as daemon,
        Client(daemon.endpoint, timeout=PATIENCE) as connected,
    ):
        daemon.replies["list"] = {"watchers": ["web"]}
        assert connected.call("list")["watchers"] == ["web"]


def test_it_says_to_whom_it_talks(daemon: CannedDaemon, calling: Client) -> None:
    assert daemon.endpoint in repr(calling)


# ---- nobody there ------------------------------------------------------------------------


def test_no_socket(tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match=f"cannot reach ipc://{tmp_path}/no: there is no such"):
        Client(f"ipc://{tmp_path}/no")


def test_a_stale_socket(tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match="connection refused"):
        Client(stale_socket(tmp_path / "control"))


def test_nobody_at_a_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        probe(f"tcp://127.0.0.1:{port}")
    with pytest.raises(Unreachable, match="connection refused"):
        probe(f"tcp://127.0.0.1:{port}")


@pytest.mark.parametrize(
    ("endpoint", "reason"),
    [
        ("shop", "not an endpoint; write ipc://PATH"),
        ("ipc://", "not an endpoint"),
        ("tcp://localhost", "invalid literal"),
        ("ipc://" + "x" * 200, "path too long"),
    ],
)
def test_what_is_no_endpoint(endpoint: str, reason: str) -> None:
    with pytest.raises(Unreachable, match=reason):
        probe(endpoint)


def test_a_daemon_too_busy_to_accept_is_there(tmp_path: Path) -> None:
    path = str(tmp_path / "control")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(0)
        waiting = []
        try:
            while True:  # until the queue is full
                one = socket.socket(socket.AF_UNIX)
                waiting.append(one)
                one.setblocking(False)
                one.connect(path)
        except BlockingIOError:
            probe(f"ipc://{path}")
        finally:
            for one in waiting:
                one.close()


def test_an_abstract_socket() -> None:
    name = f"sysup-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"\0{name}")
        listener.listen()
        probe(f"ipc://@{name}")


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that others can reach, as pytest's own can't be."""
    with tempfile.TemporaryDirectory(dir="/tmp") as made:
        os.chmod(made, 0o755)
        yield Path(made)


def test_a_socket_of_others(open_directory: Path) -> None:
    path = open_directory / "shop" / "control"
    with CannedDaemon(path.parent):
        if os.geteuid() == 0:
            os.chown(path, 0, DAEMON)  # a group that every Linux has
        os.chmod(path, 0o060)
        found = os.stat(path)
        with powerless(), pytest.raises(Unreachable) as caught:
            find_endpoint(environ=at(open_directory))
    owner, group = pwd.getpwuid(found.st_uid).pw_name, grp.getgrgid(found.st_gid).gr_name
    assert str(caught.value) == (
        f"permission denied: {path} is {owner}:{group} 0060; join group {group} or use sudo"
    )
    assert caught.value.errno is Errno.ACCESS_DENIED


def test_a_directory_of_others(open_directory: Path) -> None:
    with CannedDaemon(open_directory / "shop") as daemon:
        os.chmod(open_directory / "shop", 0o000)
        with powerless(), pytest.raises(Unreachable) as caught:
            probe(daemon.endpoint)
        os.chmod(open_directory / "shop", 0o700)
    assert f"permission denied: {open_directory}/shop is " in str(caught.value)
    assert str(caught.value).endswith("0000; use sudo")


# ---- finding the app ---------------------------------------------------------------------


def at(base: Path, **more: str) -> dict[str, str]:
    return {"SYSUP_RUNTIME_DIR": str(base), **more}


def test_the_only_app_is_found(base: Path, daemon: CannedDaemon) -> None:
    stale_socket(base / "dead" / "control")
    (base / "empty").mkdir()
    (base / "odd" / "control").mkdir(parents=True)
    assert find_endpoint(environ=at(base)) == daemon.endpoint
    assert apps(at(base)) == ["dead", "shop"]


def test_one_of_several_is_named(base: Path, daemon: CannedDaemon) -> None:
    with CannedDaemon(base / "blog") as blog:
        assert find_endpoint("blog", at(base)) == blog.endpoint
        assert find_endpoint("shop", at(base)) == daemon.endpoint
        with pytest.raises(Unreachable, match="several apps are running: blog, shop; name one"):
            find_endpoint(environ=at(base))


@contextmanager
def held(path: Path) -> Iterator[socket.socket]:
    """A control socket that systemd holds for an app that does not run."""
    path.parent.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        listener.setblocking(False)
        yield listener


def was_asked(listener: socket.socket) -> bool:
    """Whether somebody connected, which would start the app."""
    try:
        listener.accept()[0].close()
    except BlockingIOError:
        return False
    return True


def test_apps_that_wait_to_be_started_are_not_started_by_looking(base: Path) -> None:
    with held(base / "one" / "control") as one:
        assert find_endpoint(environ=at(base)) == f"ipc://{base}/one/control"
        with held(base / "two" / "control") as two:
            with pytest.raises(Unreachable, match="several apps wait to be started: one, two;"):
                find_endpoint(environ=at(base))
            with CannedDaemon(base / "shop") as daemon:
                assert find_endpoint(environ=at(base)) == daemon.endpoint
            assert not was_asked(two)
        assert not was_asked(one)


def test_no_app_runs(base: Path) -> None:
    with pytest.raises(Unreachable, match=f"no sysupd is running .looked in {base}"):
        find_endpoint(environ=at(base))


def test_the_app_is_not_there(base: Path, daemon: CannedDaemon) -> None:
    with pytest.raises(Unreachable, match=r"blog is not running \(.*; there is shop\)"):
        find_endpoint("blog", at(base))


def test_a_name_is_no_path(base: Path, daemon: CannedDaemon) -> None:
    with pytest.raises(Unreachable, match="is not running"):
        find_endpoint("../run/shop", at(base))


@pytest.mark.parametrize("variable", ["SYSUPCTL_ENDPOINT", "CIRCUSCTL_ENDPOINT"])
def test_the_environment_names_an_endpoint(variable: str, base: Path, daemon: CannedDaemon) -> None:
    environ = at(base, **{variable: "tcp://127.0.0.1:5555"})
    assert find_endpoint(environ=environ) == "tcp://127.0.0.1:5555"
    assert find_endpoint("shop", environ) == daemon.endpoint


def test_a_user_sees_his_own_apps_and_the_systems(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(protocol, "SYSTEM_BASE", str(tmp_path / "system"))
    environ = {"XDG_RUNTIME_DIR": str(tmp_path)}
    with CannedDaemon(tmp_path / "system" / "shop") as system:
        assert find_endpoint(environ=environ, uid=os.getuid() or 1000) == system.endpoint
        with CannedDaemon(tmp_path / "sysup" / "shop") as own:
            assert find_endpoint("shop", environ, os.getuid() or 1000) == own.endpoint
            assert find_endpoint("shop", environ, 0) == system.endpoint


def test_sockets_that_a_stranger_made_are_not_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(protocol, "SYSTEM_BASE", str(tmp_path / "none"))
    environ = {"XDG_RUNTIME_DIR": str(tmp_path)}
    me = os.geteuid()
    with CannedDaemon(tmp_path / "sysup" / "shop") as daemon:
        assert find_endpoint(environ=environ, uid=me or 1000) == daemon.endpoint
        if me == 0:
            os.chown(tmp_path / "sysup", NOBODY, -1)
        with pytest.raises(Unreachable, match="no sysupd is running"):
            find_endpoint(environ=environ, uid=me + 1000)


def test_a_client_finds_the_app_by_itself(
    monkeypatch: pytest.MonkeyPatch, base: Path, daemon: CannedDaemon
) -> None:
    monkeypatch.setenv("SYSUP_RUNTIME_DIR", str(base))
    for variable in client.ENDPOINT_VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    for target in (None, "shop"):
        with Client(target) as connected:
            assert connected.endpoint == daemon.endpoint


@pytest.mark.parametrize(
    ("uid", "environ", "directory"),
    [
        (0, {}, "/run/sysup"),
        (0, {"XDG_RUNTIME_DIR": "/run/user/0"}, "/run/sysup"),
        (1000, {"XDG_RUNTIME_DIR": "/run/user/1000"}, "/run/user/1000/sysup"),
        (1000, {}, "/tmp/sysup-1000"),
        (1000, {"SYSUP_RUNTIME_DIR": "/srv", "XDG_RUNTIME_DIR": "/run/user/1000"}, "/srv"),
        (0, {"SYSUP_RUNTIME_DIR": ""}, "/run/sysup"),
    ],
)
def test_runtime_base(uid: int, environ: dict[str, str], directory: str) -> None:
    assert protocol.runtime_base(uid, environ) == directory


# ---- listening ---------------------------------------------------------------------------

EVENTS: list[tuple[str, Any]] = [
    ("watcher.web.spawn", {"process_pid": 812, "time": 1.0}),
    ("watcher.web2.spawn", {"process_pid": 813, "time": 2.0}),
    ("watcher.db.reap", {"process_pid": 814, "time": 3.0, "exit_code": -9}),
]


def test_events_arrive_in_order(daemon: CannedDaemon, calling: Client) -> None:
    daemon.events = EVENTS
    with calling.subscribe() as subscription:
        assert [next(subscription) for _ in EVENTS] == EVENTS


def test_topics_are_beginnings(daemon: CannedDaemon) -> None:
    daemon.events = EVENTS
    events = f"ipc://{daemon.directory}/events"
    with Subscription(events, ["watcher.web."]) as subscription:
        assert subscription.receive(PATIENCE) == EVENTS[0]
        assert subscription.receive(0) is None


def test_it_is_told_when_the_daemon_hears_it(daemon: CannedDaemon) -> None:
    daemon.events = EVENTS
    with Subscription(f"ipc://{daemon.directory}/events") as subscription:
        assert subscription.wait_until_heard(PATIENCE)
        assert [next(subscription) for _ in EVENTS] == EVENTS, "nothing that came before is lost"
        daemon.close()
        with CannedDaemon(daemon.directory) as again:
            again.events = EVENTS[:1]
            found = [subscription.receive(PATIENCE), subscription.receive(PATIENCE)]
            assert found == [EVENTS[0], None]
            assert subscription.times_heard == 2


def test_not_every_daemon_tells_that_it_hears(base: Path) -> None:
    with Subscription(f"ipc://{base}/nobody") as subscription:
        assert not subscription.wait_until_heard(0.01)


def test_an_event_of_another_shape_is_told_and_passed(daemon: CannedDaemon) -> None:
    daemon.events = [("watcher.web.spawn", b"{"), EVENTS[0]]
    with Subscription(f"ipc://{daemon.directory}/events") as subscription:
        with pytest.raises(SysupError, match="cannot read an event of ipc://"):
            next(subscription)
        assert next(iter(subscription)) == EVENTS[0]


@pytest.mark.parametrize(
    ("told", "used"),
    [
        ("tcp://127.0.0.1:5556", "tcp://127.0.0.1:5556"),
        ("tcp://0.0.0.0:5556", "tcp://localhost:5556"),
        ("tcp://*:5556", "tcp://localhost:5556"),
        ("ipc:///run/x/events", "ipc:///run/x/events"),
    ],
)
def test_over_tcp_the_daemon_says_where_it_publishes(base: Path, told: str, used: str) -> None:
    with CannedDaemon(base / "shop", "tcp://127.0.0.1:*") as daemon:
        daemon.replies["globaloptions"] = {"options": {"pubsub_endpoint": told}}
        endpoint = daemon.endpoint.replace("127.0.0.1", "localhost")
        with Client(endpoint, timeout=PATIENCE) as connected:
            assert connected.events_endpoint() == used


def test_beside_an_endpoint_of_ones_own_choice_nothing_is_assumed(base: Path) -> None:
    with CannedDaemon(base / "shop", f"ipc://{base}/mine") as daemon:
        daemon.replies["globaloptions"] = {"options": {"pubsub_endpoint": "ipc://x"}}
        with Client(daemon.endpoint, timeout=PATIENCE) as connected:
            assert connected.events_endpoint() == "ipc://x"


# ---- what it costs -----------------------------------------------------------------------


def test_it_loads_nothing_that_it_does_not_need() -> None:
    code = "import json, sys, sysup.client, sysup.ctl; print(json.dumps(list(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = set(json.loads(done.stdout))
    assert not modules & {"asyncio", "logging", "sysup.machine", "sysup.config", "sysup._native"}
