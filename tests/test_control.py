"""The control sockets, over ZeroMQ's own, in a loop with nothing else."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
from collections.abc import Callable, Coroutine, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import pytest
import zmq
import zmq.asyncio

from sysup import throttle
from sysup.commands import COMMANDS
from sysup.config import Role
from sysup.control import BATCH, Control
from sysup.endpoints import listen
from sysup.properties import Properties
from sysup.protocol import MAX_MESSAGE, Errno, MessageError, SysupError
from sysup.table import App, Command, Later, Soon

T = TypeVar("T")
PATIENCE = 60.0
"""Seconds after which what was waited for is taken not to come."""


class Server:
    """A control in a loop, commands to try it with, and clients in the same loop."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.loop = asyncio.new_event_loop()
        self.problems: list[Mapping[str, Any]] = []
        self.loop.set_exception_handler(lambda _, context: self.problems.append(context))
        self.app: Any = object()
        self.control = Control(self.loop, cast(App, self.app), lambda: 5.0)
        self.path = tmp_path / "control"
        self.endpoint = f"ipc://{self.path}"
        self.control.serve(self.endpoint, Role.ADMIN)
        self.clients = zmq.asyncio.Context()
        self.gate = asyncio.Event()
        self.ran: list[str] = []
        self.closed = False
        self.connected: list[zmq.asyncio.Socket] = []
        self._patch = monkeypatch
        self.have("ping", lambda p: {"pong": p.anything("n")})
        self.have("later", lambda p: Later(self._later(), {"begun": True}))

    def have(
        self,
        name: str,
        answer: Callable[[Properties], Mapping[str, Any] | Later],
        role: Role = Role.READ,
    ) -> None:
        """Have a command."""
        self._patch.setitem(COMMANDS, name, Command(role, lambda app, p: answer(p)))

    async def _later(self) -> Mapping[str, Any]:
        await self.gate.wait()
        self.ran.append("later")
        return {"done": True}

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(asyncio.wait_for(work, PATIENCE))

    def client(self, kind: int = zmq.DEALER, endpoint: str = "") -> zmq.asyncio.Socket:
        client = self.clients.socket(kind)
        client.setsockopt(zmq.LINGER, 0)
        client.connect(endpoint or self.endpoint)
        self.connected.append(client)
        return client

    async def ask(self, client: zmq.asyncio.Socket, command: str, **properties: Any) -> Any:
        request = {"id": command, "command": command, "properties": properties}
        await client.send(json.dumps(request).encode())
        return json.loads(await client.recv())

    async def say(self, client: zmq.asyncio.Socket, data: bytes) -> Any:
        await client.send(data)
        return json.loads(await client.recv())

    def close(self) -> None:
        self.clients.destroy(0)
        if not self.closed:
            self.control.close()
        self.loop.run_until_complete(asyncio.sleep(0))  # cancelled tasks end
        self.loop.close()
        assert self.problems == []


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    server = Server(tmp_path, monkeypatch)
    yield server
    server.close()


# ---- requests ----------------------------------------------------------------------------


def test_a_dealer_and_a_req_are_answered_in_their_framing(server: Server) -> None:
    async def ask() -> None:
        for kind in (zmq.DEALER, zmq.REQ):
            client = server.client(kind)
            await client.send(b'{"id": 7, "command": "PING", "properties": {"n": 1}}')
            (reply,) = await client.recv_multipart()
            assert json.loads(reply) == {"id": 7, "status": "ok", "time": 5.0, "pong": 1}

    server.run(ask())


def test_a_cast_gets_no_answer(server: Server) -> None:
    def note(p: Properties) -> Mapping[str, Any]:
        server.ran.append("note")
        return {}

    server.have("note", note)
    server.have("refuse", lambda p: COMMANDS["listen"].run(server.app, p))

    async def ask() -> Any:
        client = server.client()
        for command in ("note", "refuse", "later", "nope"):
            await client.send_json({"id": 1, "command": command, "msg_type": "cast"})
        server.gate.set()
        waiting = {"waiting": True}
        request = {"id": 1, "command": "later", "msg_type": "cast", "properties": waiting}
        await client.send_json(request)
        return await server.ask(client, "ping")

    assert server.run(ask())["id"] == "ping"
    assert server.ran[0] == "note"


def test_what_comes_soon_is_waited_for_by_all(server: Server) -> None:
    server.have("soon", lambda p: Soon(server._later()))

    async def ask() -> None:
        client, other = server.client(), server.client()
        await client.send_json({"id": 1, "command": "soon"})
        assert (await server.ask(other, "ping"))["status"] == "ok"
        assert not await client.poll(0)
        server.gate.set()
        assert json.loads(await client.recv())["done"] is True

    server.run(ask())


def test_who_waits_is_answered_at_the_end(server: Server) -> None:
    async def ask() -> None:
        client, other = server.client(), server.client()
        assert (await server.ask(client, "later"))["begun"] is True
        await client.send_json({"id": 1, "command": "later", "properties": {"waiting": True}})
        assert (await server.ask(other, "ping"))["status"] == "ok"
        assert server.ran == []
        server.gate.set()
        reply = await client.recv_json()
        assert (reply["id"], reply["done"]) == (1, True)

    server.run(ask())


def test_in_a_pause_nothing_is_begun_and_nothing_lost(server: Server) -> None:
    def note(p: Properties) -> Mapping[str, Any]:
        server.ran.append("note")
        return {}

    server.have("note", note)
    (router,) = server.control._routers

    async def ask() -> None:
        client = server.client()
        await server.ask(client, "ping")
        server.control.pause()
        for _ in range(100):
            await client.send_json({"id": 1, "command": "note"})
        while not int(router.getsockopt(zmq.EVENTS)) & zmq.POLLIN:  # noqa: ASYNC110  libzmq's turn
            await asyncio.sleep(0)
        await asyncio.sleep(0)  # the loop has looked
        assert server.ran == []
        server.control.go_on()
        for _ in range(100):
            assert (await client.recv_json())["id"] == 1
        assert len(server.ran) == 100
        server.control.close()
        server.closed = True
        server.control.go_on()

    server.run(ask())


def raising(error: Exception) -> Callable[[Properties], Mapping[str, Any]]:
    def answer(p: Properties) -> Mapping[str, Any]:
        raise error

    return answer


async def failing(error: Exception) -> Mapping[str, Any]:
    raise error


@pytest.mark.parametrize("waiting", [False, True])
@pytest.mark.parametrize(
    ("error", "reason", "errno", "traced"),
    [
        (MessageError("no such thing"), "no such thing", Errno.MESSAGE_ERROR, False),
        (SysupError("cannot do it"), "cannot do it", Errno.COMMAND_ERROR, False),
        (OSError(13, "Permission denied"), "cannot try: Permission denied", Errno.OS_ERROR, False),
        (KeyError("x"), "command 'try': KeyError('x')", Errno.COMMAND_ERROR, True),
    ],
)
def test_what_a_command_raises_is_a_reply(
    server: Server, error: Exception, reason: str, errno: Errno, traced: bool, waiting: bool
) -> None:
    if waiting:
        server.have("try", lambda p: Later(failing(error)))
    else:
        server.have("try", raising(error))
    reply = server.run(server.ask(server.client(), "try", waiting=waiting))
    assert (reply["status"], reply["reason"], reply["errno"]) == ("error", reason, errno)
    assert reply["id"] == "try"
    assert (reply["tb"] is not None) == traced
    if traced:
        assert "in failing" in reply["tb"] or "in answer" in reply["tb"]


def test_who_did_not_wait_for_a_failure_finds_it_in_the_log(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    server.have("try", lambda p: Later(failing(SysupError("cannot"))))

    async def ask() -> None:
        client = server.client()
        assert (await server.ask(client, "try"))["status"] == "ok"
        await server.ask(client, "ping")

    server.run(ask())
    assert [r.getMessage() for r in caplog.records] == ["try: cannot"]


@pytest.mark.parametrize(
    ("data", "errno", "request_id"),
    [
        (b"", Errno.INVALID_JSON, None),
        (b"\xff{", Errno.INVALID_JSON, None),
        (b"[" * 100_000, Errno.INVALID_JSON, None),
        (b"[]", Errno.MESSAGE_ERROR, None),
        (b'{"id": 3}', Errno.MESSAGE_ERROR, 3),
        (b'{"id": 3, "command": "nope"}', Errno.UNKNOWN_COMMAND, 3),
        (b'{"id": 3, "command": "ping", "properties": []}', Errno.MESSAGE_ERROR, 3),
    ],
)
def test_malformed_requests(server: Server, data: bytes, errno: Errno, request_id: Any) -> None:
    reply = server.run(server.say(server.client(), data))
    assert (reply["status"], reply["errno"], reply["id"]) == ("error", errno, request_id)


def test_frames_in_excess_are_one_message(server: Server) -> None:
    async def ask() -> Any:
        client = server.client()
        await client.send_multipart([b'{"id": 1, ', b'"command": ', b'"ping"}'])
        return await client.recv_json()

    assert server.run(ask())["status"] == "ok"


def test_ids_of_any_depth_end_no_more_than_their_request(server: Server) -> None:
    async def ask() -> None:
        client, other = server.client(), server.client()
        for depth in range(900, 1000, 3):
            nested = b"[" * depth + b"]" * depth
            reply = await server.say(client, b'{"command": "ping", "id": %s}' % nested)
            assert reply["status"] in ("ok", "error")
            reply = await server.say(client, b'{"id": %s}' % nested)
            assert reply["status"] == "error"
        assert (await server.ask(other, "ping"))["status"] == "ok"

    server.run(ask())


@pytest.mark.parametrize("waiting", [False, True])
def test_a_reply_that_is_no_json_is_an_error_of_its_request(server: Server, waiting: bool) -> None:
    async def work() -> Mapping[str, Any]:
        return {"a": object()}

    server.have("odd", lambda p: Later(work()) if waiting else {"a": object()})

    async def ask() -> None:
        client = server.client()
        reply = await server.ask(client, "odd", waiting=waiting)
        assert (reply["errno"], reply["id"]) == (Errno.COMMAND_ERROR, "odd")
        assert (await server.ask(client, "ping"))["status"] == "ok"

    server.run(ask())


def test_the_endpoint_decides_the_role(server: Server, tmp_path: Path) -> None:
    server.have("change", lambda p: {"role": str(p.role)}, Role.OPERATE)
    for role in Role:
        server.control.serve(f"ipc://{tmp_path}/{role}", role)
        reply = server.run(server.ask(server.client(endpoint=f"ipc://{tmp_path}/{role}"), "change"))
        if role is Role.READ:
            assert reply["errno"] == Errno.ACCESS_DENIED
        else:
            assert reply["role"] == role
    assert server.control.endpoints == [
        server.endpoint,
        *(f"ipc://{tmp_path}/{role}" for role in Role),
    ]


def test_who_commands_is_in_the_log(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    server.have("change", lambda p: {}, Role.OPERATE)
    caplog.set_level("INFO")

    async def ask() -> None:
        client = server.client()
        await server.ask(client, "ping", name="web")
        await server.ask(client, "change", name="web\n" + "x" * 1000)
        await server.ask(client, "change", name=7)

    server.run(ask())
    first, second = caplog.records
    assert first.getMessage().startswith("change 'web\\nxxx")
    assert len(first.getMessage()) < 200
    who = f"user {os.getuid()}, pid {os.getpid()}"
    assert second.getMessage() == f"change: by {who}"
    assert second.__dict__["sysup"] == {
        "SYSUP_COMMAND": "change",
        "SYSUP_PEER_UID": str(os.getuid()),
        "SYSUP_PEER_GID": str(os.getgid()),
        "SYSUP_PEER_PID": str(os.getpid()),
    }


def test_many_at_once_are_answered_in_order_and_in_batches(server: Server) -> None:
    turns: list[int] = [0]

    def turn() -> None:
        turns.append(0)
        server.loop.call_soon(turn)

    def count(p: Properties) -> Mapping[str, Any]:
        turns[-1] += 1
        return {"n": p.anything("n")}

    server.have("count", count)
    number = 10 * BATCH

    async def ask() -> None:
        client = server.client()
        for n in range(number):
            await client.send_json({"command": "count", "properties": {"n": n}})
        server.loop.call_soon(turn)
        replies = [(await client.recv_json())["n"] for _ in range(number)]
        assert replies == list(range(number))

    server.run(ask())
    assert sum(turns) == number
    assert max(turns) <= 2 * BATCH, "one for the descriptor, one for what was left"


def test_a_peer_that_went_away_harms_nobody(server: Server) -> None:
    async def ask() -> None:
        gone, other = server.client(), server.client()
        await gone.send_json({"command": "later", "properties": {"waiting": True}})
        await server.ask(other, "ping")
        while not server.control._tasks:
            await server.ask(other, "ping")
        gone.close(0)
        server.gate.set()
        while server.control._tasks:
            await server.ask(other, "ping")

    server.run(ask())
    assert server.ran == ["later"]


def test_an_oversized_message_harms_nobody(server: Server) -> None:
    async def ask() -> None:
        big, other = server.client(), server.client()
        await big.send(b"x" * (MAX_MESSAGE + 1))
        assert (await server.ask(other, "ping"))["status"] == "ok"
        assert (await server.say(other, b" " * MAX_MESSAGE))["errno"] == Errno.INVALID_JSON

    server.run(ask())


def test_work_that_goes_on_at_the_end_is_cancelled(server: Server) -> None:
    server.run(server.ask(server.client(), "later"))
    (task,) = server.control._tasks
    server.control.close()
    server.closed = True
    with pytest.raises(asyncio.CancelledError):
        server.loop.run_until_complete(task)
    assert server.ran == []


def test_a_reply_after_the_end_is_dropped(server: Server) -> None:
    async def ask() -> None:
        client = server.client()
        await client.send_json({"command": "later", "properties": {"waiting": True}})
        await server.ask(client, "ping")
        (task,) = server.control._tasks
        for router in server.control._routers:
            server.loop.remove_reader(router.fileno())
            server.control._guards[router].close()
            router.close()
        server.control._routers.clear()
        server.gate.set()
        await task

    server.run(ask())
    assert server.ran == ["later"]


# ---- events ------------------------------------------------------------------------------


def test_events(server: Server, tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/events"
    server.control.publish_on(endpoint)
    assert stat.S_IMODE(os.stat(tmp_path / "events").st_mode) == 0o600

    async def hear() -> Any:
        subscriber = server.client(zmq.SUB, endpoint)
        subscriber.setsockopt(zmq.SUBSCRIBE, b"watcher.my_web")
        heard = asyncio.ensure_future(subscriber.recv_multipart())
        while not heard.done():  # a subscription takes effect at a time that nobody is told
            server.control.events.publish("other", "reap", {})
            server.control.events.publish("My Web", "reap", {"process_pid": 7})
            await asyncio.wait({heard}, timeout=0.001)
        return heard.result()

    topic, body = server.run(hear())
    assert topic == b"watcher.my_web.reap"
    assert json.loads(body) == {"process_pid": 7, "time": 5.0}


# ---- endpoints ---------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o600, 0o660])
def test_modes_of_sockets(tmp_path: Path, mode: int) -> None:
    before = os.umask(0)
    try:
        listener = listen(str(tmp_path / "s"), mode, os.getegid())
    finally:
        os.umask(before)
    with listener:
        status = os.stat(tmp_path / "s")
        assert stat.S_IMODE(status.st_mode) == mode
        assert status.st_gid == os.getegid()
        assert os.listdir(tmp_path) == ["s"]


def test_who_lets_nobody_in_is_not_waited_for(tmp_path: Path) -> None:
    path = str(tmp_path / "full")
    with socket.socket(socket.AF_UNIX) as full, socket.socket(socket.AF_UNIX) as one:
        full.bind(path)
        full.listen(0)
        one.connect(path)
        with pytest.raises(OSError, match="somebody is listening there already"):
            listen(path, 0o600, -1)


def test_a_link_put_in_its_place_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By who may write to the directory, between its making and the next step."""
    precious = tmp_path / "precious"
    precious.touch(0o644)
    umask = os.umask

    def swap(mode: int) -> int:
        for name in tmp_path.glob("s.*"):
            name.unlink()
            name.symlink_to(precious)
        return umask(mode)

    monkeypatch.setattr(os, "umask", swap)
    with listen(str(tmp_path / "s"), 0o600, -1):
        assert stat.S_IMODE(precious.stat().st_mode) == 0o644


def test_a_stale_socket_is_replaced(server: Server, tmp_path: Path) -> None:
    path = str(tmp_path / "stale")
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(path)
    server.control.serve(f"ipc://{path}", Role.READ)
    reply = server.run(server.ask(server.client(endpoint=f"ipc://{path}"), "ping"))
    assert reply["status"] == "ok"


def test_a_live_socket_is_left_alone(server: Server) -> None:
    with pytest.raises(SysupError, match=r"cannot bind ipc://.*: somebody is listening there"):
        server.control.serve(server.endpoint, Role.READ)
    assert server.run(server.ask(server.client(), "ping"))["status"] == "ok"


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_nothing_but_sockets_is_replaced(server: Server, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "precious"
    if kind == "file":
        path.write_text("data")
    else:
        path.mkdir()
    for _ in range(2):
        with pytest.raises(SysupError, match=r"cannot bind ipc://.*: it is there, and no socket"):
            server.control.serve(f"ipc://{path}", Role.READ)
    assert path.is_dir() if kind == "directory" else path.read_text() == "data"
    assert sorted(os.listdir(tmp_path)) == ["control", "precious"]


@pytest.mark.parametrize(
    ("endpoint", "reason"),
    [
        ("ipc:///nosuch/directory/s", "no such file or directory"),
        ("ipc:///tmp/" + "x" * 200, "too long"),
        ("tcp://127.0.0.1", "invalid argument"),
        ("nonsense", "invalid argument"),
    ],
)
def test_what_cannot_be_bound(server: Server, endpoint: str, reason: str) -> None:
    with pytest.raises(SysupError, match=f"cannot bind {endpoint}: .*{reason}"):
        server.control.serve(endpoint, Role.READ)
    with pytest.raises(SysupError, match=f"cannot bind {endpoint}"):
        server.control.publish_on(endpoint)
    assert server.control.endpoints == [server.endpoint]


def test_a_port_that_is_taken(server: Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        endpoint = f"tcp://127.0.0.1:{holder.getsockname()[1]}"
        with pytest.raises(SysupError, match="address already in use"):
            server.control.serve(endpoint, Role.READ)
    server.control.serve(endpoint, Role.READ)
    assert server.run(server.ask(server.client(endpoint=endpoint), "ping"))["status"] == "ok"


def test_a_flood_waits_and_nobody_else(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RATE": 0.001, "BURST": 3, "MOST_HELD": 5}.items():
        monkeypatch.setattr(throttle, name, value)

    async def ask() -> None:
        flood, other = server.client(), server.client()
        for number in range(10):
            await flood.send(json.dumps({"id": number, "command": "ping"}).encode())
        replies = [json.loads(await flood.recv()) for _ in range(5)]
        assert [reply["id"] for reply in replies] == [0, 1, 2, 8, 9], "five wait"
        assert [reply["status"] for reply in replies] == [*["ok"] * 3, *["error"] * 2]
        assert "too many requests" in replies[-1]["reason"]
        assert (await server.ask(other, "ping", n=1))["pong"] == 1
        monkeypatch.setattr(throttle, "RATE", 1e6)
        replies = [json.loads(await flood.recv()) for _ in range(5)]
        assert [(reply["id"], reply["status"]) for reply in replies] == [
            (number, "ok") for number in range(3, 8)
        ]

    server.run(ask())
