"""The blocking client, against a daemon of canned replies."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sysup import protocol
from sysup.client import (
    CallError,
    Client,
    ConnectionLost,
    Subscription,
    TimedOut,
    Unreachable,
)
from sysup.protocol import Errno, MessageError, SysupError

from .canned import PATIENCE, CannedDaemon, Gone

DAEMON, NOBODY = 1, 65534


@pytest.fixture
def calling(daemon: CannedDaemon) -> Iterator[Client]:
    with Client(daemon.endpoint, timeout=PATIENCE) as connected:
        yield connected


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


def test_sysupctl_loads_nothing_that_it_does_not_need(base: Path, daemon: CannedDaemon) -> None:
    daemon.replies |= {"status": {"watchers": {}}, "stats": {"infos": {}}}
    code = "import json, sys, sysup.ctl; sysup.ctl.main(); print(json.dumps(list(sys.modules)))"
    command = [sys.executable, "-c", code, "--endpoint", daemon.endpoint, "status"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    modules = set(json.loads(done.stdout.splitlines()[-1]))
    assert not modules & {"asyncio", "logging"}
    own = {name for name in modules if name.startswith("sysup.")}
    assert {"sysup.client", "sysup.ctl.look"} <= own
    assert not own & {f"sysup.{name}" for name in ("certificates", "keyring", "machine", "config")}
    others = ("change", "keygen", "logs", "options", "output", "shell", "top", "waiting")
    assert not own & {f"sysup.ctl.{name}" for name in others}
