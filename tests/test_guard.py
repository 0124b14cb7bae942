"""What peers may cost that do what libzmq would not: made by hand, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import pytest
import zmq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sysup import guard
from sysup.commands import COMMANDS
from sysup.config import Role
from sysup.control import MAX_READ, MOST_AT_ONCE, Control
from sysup.table import App, Command, Later
from tests.zmtp import GREETING, MORE, connect, frame, ready

T = TypeVar("T")
PATIENCE = 60.0
"""Seconds after which what was waited for is taken not to come."""


def free_endpoint() -> str:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"tcp://127.0.0.1:{free.getsockname()[1]}"


class Server:
    """A control in a loop: over ipc, over TCP for those who read, and its events over TCP."""

    def __init__(self, directory: Path) -> None:
        self.loop = asyncio.new_event_loop()
        self.problems: list[Mapping[str, Any]] = []
        self.loop.set_exception_handler(lambda _, context: self.problems.append(context))
        self.control = Control(self.loop, cast(App, object()), lambda: 5.0)
        self.ipc, self.tcp, self.events = f"ipc://{directory}/c", free_endpoint(), free_endpoint()
        self.control.serve(self.ipc, Role.ADMIN)
        self.control.serve(self.tcp, Role.READ)
        self.control.publish_outside(self.events, hidden=True)
        self.guards = [*self.control._guards.values()]
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.clients: list[zmq.Socket[bytes]] = []

    def until(self, condition: Callable[[], T]) -> T:
        """Let the loop turn until the condition is true; its value."""
        deadline = time.monotonic() + PATIENCE
        while not (answer := condition()):
            assert time.monotonic() < deadline
            self.loop.run_until_complete(asyncio.sleep(0.001))
        return answer

    def client(self, endpoint: str, **options: int) -> zmq.Socket[bytes]:
        client: zmq.Socket[bytes] = self.context.socket(zmq.DEALER)
        client.linger = 0
        for name, value in options.items():
            client.setsockopt(getattr(zmq, name), value)
        client.connect(endpoint)
        self.clients.append(client)
        return client

    def ask(self, client: zmq.Socket[bytes], command: str = "ping") -> Any:
        client.send(json.dumps({"id": command, "command": command}).encode())
        self.until(lambda: client.poll(0))
        return json.loads(client.recv())

    def is_cut(self, sock: socket.socket) -> bool:
        """Whether a connection was ended from the other side; what came before is read."""
        sock.setblocking(False)
        try:
            return not sock.recv(1 << 16)
        except BlockingIOError:
            return False
        except ConnectionError:
            return True

    def close(self) -> None:
        for client in self.clients:
            client.close()
        self.context.term()
        self.control.close()
        self.loop.run_until_complete(asyncio.sleep(0))
        self.loop.close()
        assert self.problems == []


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    async def stay() -> Mapping[str, Any]:
        await asyncio.Event().wait()
        return {}

    table: dict[str, Any] = {
        "ping": lambda app, p: {"pong": True},
        "big": lambda app, p: {"data": "x" * (1 << 20)},
        "stay": lambda app, p: Later(stay()),
    }
    for name, run in table.items():
        monkeypatch.setitem(COMMANDS, name, Command(Role.READ, run))
    server = Server(tmp_path)
    yield server
    server.close()


@pytest.mark.parametrize("size", [1, 1000, MAX_READ])
def test_a_message_without_end_ends(
    server: Server, size: int, caplog: pytest.LogCaptureFixture
) -> None:
    quiet = server.client(server.tcp)
    assert server.ask(quiet)["pong"]
    endless = connect(server.tcp)
    block = frame(b"x" * size, MORE) * (1 + (1 << 17) // size)
    endless.setblocking(False)
    left = b""

    def is_cut() -> bool:
        nonlocal left
        left = left or block
        try:
            left = left[endless.send(left) :]
        except BlockingIOError:
            return server.is_cut(endless)
        except ConnectionError:
            return True
        return False

    server.until(is_cut)
    endless.close()
    assert "a connection was cut: a message without end" in caplog.text
    assert server.ask(quiet)["pong"]


def test_who_asks_for_long_is_not_cut(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "LOOK", 0.001)
    for each in server.guards:
        each._ahead = 20_000
    client = server.client(server.tcp, HEARTBEAT_IVL=10, HEARTBEAT_TIMEOUT=int(PATIENCE * 1000))
    for _ in range(1000):
        assert server.ask(client)["pong"]
    (watched,) = (each for each in server.guards if each._is_tcp)
    assert watched.connections == 1


def test_connections_in_excess_are_cut(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    first = server.client(server.tcp)
    assert server.ask(first)["pong"]
    for each in server.guards:
        each._most = 3
    for endpoint, kept in ((server.tcp, 2), (server.ipc, 3)):
        others = [connect(endpoint) for _ in range(20)]

        def are_cut(others: list[socket.socket] = others, kept: int = kept) -> bool:
            cut = [sock for sock in others if sock.fileno() >= 0 and server.is_cut(sock)]
            for sock in cut:
                sock.close()
            return sum(sock.fileno() >= 0 for sock in others) == kept

        server.until(are_cut)
        assert f"{endpoint}: a connection was cut: more than 3 connections" in caplog.text
        for sock in others:
            sock.close()
        server.until(lambda: all(each.connections <= 1 for each in server.guards))
    assert server.ask(first)["pong"]
    assert server.ask(server.client(server.tcp))["pong"]


def test_replies_that_nobody_reads_are_not_kept(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet = server.client(server.tcp)
    assert server.ask(quiet)["pong"]
    may_send = guard.Guard.may_send
    for endpoint in (server.tcp, server.ipc):
        client = connect(endpoint)
        asked = b'{"command": "big"}'
        sent: list[bool] = []

        def note(self: guard.Guard, fd: int, size: int, sent: list[bool] = sent) -> bool:
            sent.append(may_send(self, fd, size))
            return sent[-1]

        with monkeypatch.context() as patch:
            patch.setattr(guard.Guard, "may_send", note)
            for _ in range(5):
                client.sendall(frame(asked) * 20)
            server.until(lambda sent=sent: len(sent) == 100)  # type: ignore[misc]
        assert sum(sent) * (1 << 20) <= guard.MOST_UNREAD + (8 << 20), "but what the kernel takes"
        assert server.ask(quiet)["pong"]
        client.close()
    reader = server.client(server.tcp)
    for _ in range(20):
        assert len(server.ask(reader, "big")["data"]) == 1 << 20


def test_work_of_one_peer_is_bounded(server: Server) -> None:
    client, other = server.client(server.ipc), server.client(server.ipc)
    for _ in range(MOST_AT_ONCE):
        assert server.ask(client, "stay")["status"] == "ok"
    assert "256 of yours go on already" in server.ask(client, "stay")["reason"]
    assert server.ask(other, "stay")["status"] == "ok"
    for task in server.control._tasks:
        task.cancel()
    server.until(lambda: not server.control._tasks)
    assert not server.control._working
    assert server.ask(client, "stay")["status"] == "ok"


def test_a_subscriber_without_end_is_cut(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    greedy = connect(server.events, "SUB")
    greedy.sendall(b"".join(frame(b"\1" + b"%d" % n) for n in range(20_000)))
    server.until(lambda: server.is_cut(greedy))
    assert "a connection was cut: too many subscriptions" in caplog.text
    greedy.close()
    modest = connect(server.events, "SUB")
    modest.sendall(frame(b"\1watcher."))

    def hears() -> bytes:
        server.control.events.publish("web", "reap", {})
        modest.setblocking(False)
        try:
            return modest.recv(1 << 16)
        except BlockingIOError:
            return b""

    assert server.until(hears)
    modest.close()


def test_a_subscriber_that_does_not_read_costs_a_bounded_queue(server: Server) -> None:
    deaf = connect(server.events, "SUB")
    deaf.sendall(frame(b"\1"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(300):
        for _ in range(100):
            server.control.events.publish("web", "reap", {"filler": "x" * 5000})
        server.loop.run_until_complete(asyncio.sleep(0))
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    assert grown < 60 << 20, "of 150 MB"
    deaf.close()


WIRE = st.lists(
    st.one_of(
        st.binary(max_size=300),
        st.just(GREETING),
        st.builds(ready, st.sampled_from(["DEALER", "SUB", "REQ", "ROUTER", "", "x" * 200])),
        st.builds(frame, st.binary(max_size=300), st.integers(0, 255)),
        st.sampled_from([b'{"command": "ping"}', b'{"command"', b"{}", b"[]"]).map(frame),
        st.just(b"\x02" + b"\xff" * 8),
        st.just(b"\x02" + (1 << 40).to_bytes(8, "big") + b"abc"),
        st.just(frame(b"\x04PING" + bytes(2), 4)),
    ),
    max_size=8,
)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(WIRE, st.booleans(), st.sampled_from(["tcp", "ipc", "events"]))
def test_no_bytes_do_harm(server: Server, parts: list[bytes], greets: bool, where: str) -> None:
    endpoint = getattr(server, where)
    if not server.clients:
        server.client(server.tcp)
        server.client(server.ipc)
    if greets:
        sock = connect(endpoint, "SUB" if where == "events" else "DEALER")
    else:
        host, _, port = server.tcp.removeprefix("tcp://").rpartition(":")
        sock = socket.create_connection((host, int(port)))
    with sock:
        with contextlib.suppress(ConnectionError):  # it was cut: as well
            for part in parts:
                sock.sendall(part)
        server.control.events.publish("web", "reap", {})
        assert all(server.ask(client)["pong"] for client in server.clients)


def test_half_a_handshake_holds_nobody_up(server: Server) -> None:
    halves = [connect(server.tcp) for _ in range(5)]
    host, _, port = server.tcp.removeprefix("tcp://").rpartition(":")
    for length in (0, 1, 10, 63):
        sock = socket.create_connection((host, int(port)))
        sock.sendall(GREETING[:length])
        halves.append(sock)
    halves[0].sendall(b"\x02" + MAX_READ.to_bytes(8, "big") + b"{")
    assert server.ask(server.client(server.tcp))["pong"]
    for sock in halves:
        sock.close()


def test_a_flood_lets_others_have_their_turn(server: Server) -> None:
    """What is asked meanwhile is answered though the flood never ends."""
    flood = connect(server.tcp)
    is_over = threading.Event()

    def pour() -> None:
        block = frame(b'{"command": "ping"}') * 1000
        flood.settimeout(0.1)
        while not is_over.is_set():
            try:
                flood.send(block)
                flood.recv(1 << 20)
            except TimeoutError:
                pass
            except ConnectionError:
                return

    pouring = threading.Thread(target=pour)
    pouring.start()
    try:
        for endpoint in (server.tcp, server.ipc):
            client = server.client(endpoint)
            for _ in range(50):
                assert server.ask(client)["pong"]
    finally:
        is_over.set()
        pouring.join()
        flood.close()
