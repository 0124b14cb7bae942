"""Who gets in over TCP: real sockets, real keys, and files that come and go."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import pytest
import zmq

from sysup.certificates import Certificate, render
from sysup.commands import COMMANDS
from sysup.config import Role
from sysup.control import Control
from sysup.keys import Keys
from sysup.protocol import Errno
from sysup.table import App, Command

T = TypeVar("T")
PATIENCE = 60.0
"""Seconds after which what was waited for is taken not to come."""


def pair() -> Certificate:
    public, secret = (key.decode() for key in zmq.curve_keypair())
    return Certificate(public, secret)


SERVER, OPS, MONITOR, BOSS = pair(), pair(), pair(), pair()


def free_endpoint() -> str:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"tcp://127.0.0.1:{free.getsockname()[1]}"


class Stage:
    """A control on TCP with keys, in a loop of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "authorized").mkdir(0o755)
        self.write("server.key_secret", SERVER, 0o600)
        self.loop = asyncio.new_event_loop()
        self.problems: list[Mapping[str, Any]] = []
        self.loop.set_exception_handler(lambda _, context: self.problems.append(context))
        self.control = Control(self.loop, cast(App, object()), lambda: 5.0)
        self.keys = Keys(str(directory), os.geteuid())
        self.endpoint, self.events = free_endpoint(), free_endpoint()
        self.control.serve(self.endpoint, self.keys)
        self.control.publish_outside(self.events, hidden=False, keys=self.keys)
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.clients: list[zmq.Socket[bytes]] = []

    def write(self, name: str, certificate: Certificate, mode: int) -> None:
        path = self.directory / name
        new = path.with_suffix(".new")
        new.write_text(render(certificate, ""))
        new.chmod(mode)
        new.rename(path)

    def authorize(self, name: str, key: Certificate, role: Role) -> None:
        told = Certificate(key.public, metadata={"role": str(role)})
        self.write(f"authorized/{name}.key", told, 0o644)

    def revoke(self, name: str) -> None:
        (self.directory / "authorized" / f"{name}.key").unlink()

    def until(self, condition: Callable[[], T]) -> T:
        """Let the loop turn until the condition is true; its value."""
        deadline = time.monotonic() + PATIENCE
        while not (answer := condition()):
            assert time.monotonic() < deadline
            self.loop.run_until_complete(asyncio.sleep(0.001))
        return answer

    def client(
        self, key: Certificate | None, kind: int = zmq.DEALER, server: Certificate = SERVER
    ) -> zmq.Socket[bytes]:
        client: zmq.Socket[bytes] = self.context.socket(kind)
        client.setsockopt(zmq.LINGER, 0)
        self.clients.append(client)
        if key is not None:
            client.setsockopt(zmq.CURVE_PUBLICKEY, key.public.encode())
            client.setsockopt(zmq.CURVE_SECRETKEY, key.secret.encode())
            client.setsockopt(zmq.CURVE_SERVERKEY, server.public.encode())
        return client

    def connected(self, key: Certificate) -> zmq.Socket[bytes]:
        client = self.client(key)
        client.connect(self.endpoint)
        return client

    def ask(self, client: zmq.Socket[bytes], command: str) -> Any:
        client.send(json.dumps({"command": command}).encode())
        self.until(lambda: client.poll(0))
        return json.loads(client.recv())

    def refusal(self, client: zmq.Socket[bytes], endpoint: str) -> int:
        """What libzmq tells a client that was not let in."""
        failed = zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
        monitor = client.get_monitor_socket(failed | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL)
        client.connect(endpoint)
        self.until(lambda: monitor.poll(0))
        event = int.from_bytes(monitor.recv_multipart()[0][:2], "little")
        client.disable_monitor()
        monitor.close(0)
        return event

    def close(self) -> None:
        for client in self.clients:
            client.close()
        self.context.term()
        self.control.close()
        self.loop.run_until_complete(asyncio.sleep(0))
        self.loop.close()
        assert self.problems == []


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    for role in Role:
        entry = Command(role, lambda app, p: {"role": str(p.role)})
        monkeypatch.setitem(COMMANDS, f"may_{role}", entry)
    stage = Stage(tmp_path)
    yield stage
    stage.close()


def test_a_key_has_the_role_of_its_file(stage: Stage) -> None:
    for key, role in ((MONITOR, Role.READ), (OPS, Role.OPERATE), (BOSS, Role.ADMIN)):
        stage.authorize(f"{role}er", key, role)
        client = stage.connected(key)
        for rank, asked in enumerate(Role):
            reply = stage.ask(client, f"may_{asked}")
            if rank <= [*Role].index(role):
                assert reply["role"] == role
            else:
                assert reply["errno"] == Errno.ACCESS_DENIED
                assert f"needs the role '{asked}', you have '{role}'" in reply["reason"]


@pytest.mark.parametrize("which", ["endpoint", "events"])
def test_who_is_not_let_in(stage: Stage, which: str, caplog: pytest.LogCaptureFixture) -> None:
    stage.authorize("ops", OPS, Role.ADMIN)
    endpoint = getattr(stage, which)
    kind = zmq.DEALER if which == "endpoint" else zmq.SUB
    assert stage.refusal(stage.client(BOSS, kind), endpoint) == zmq.EVENT_HANDSHAKE_FAILED_AUTH
    assert f"refused the key {BOSS.public} from 127.0.0.1: it is not authorized" in caplog.text
    wrong = stage.client(OPS, kind, server=MONITOR)
    assert stage.refusal(wrong, endpoint) == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    plain = stage.client(None, kind)
    ended = (zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL, zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL)
    assert stage.refusal(plain, endpoint) in ended
    thief = stage.client(Certificate(OPS.public, BOSS.secret), kind)
    assert stage.refusal(thief, endpoint) == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    assert stage.ask(stage.connected(OPS), "may_admin")["role"] == "admin"


def test_a_change_counts_at_once_also_for_who_is_connected(stage: Stage) -> None:
    stage.authorize("ops", OPS, Role.ADMIN)
    client = stage.connected(OPS)
    assert stage.ask(client, "may_admin")["role"] == "admin"
    stage.authorize("ops", OPS, Role.READ)
    assert stage.ask(client, "may_admin")["errno"] == Errno.ACCESS_DENIED
    assert stage.ask(client, "may_read")["role"] == "read"
    stage.revoke("ops")
    assert "not authorized any more" in stage.ask(client, "may_read")["reason"]
    assert stage.refusal(stage.client(OPS), stage.endpoint) == zmq.EVENT_HANDSHAKE_FAILED_AUTH
    stage.authorize("again", OPS, Role.OPERATE)
    assert stage.ask(client, "may_operate")["role"] == "operate"
    assert stage.ask(stage.connected(OPS), "may_operate")["role"] == "operate"


def test_many_strangers_fill_no_log(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(5):
        stage.refusal(stage.client(pair()), stage.endpoint)
    assert caplog.text.count("refused the key") == 1


def test_without_keys_of_its_own_nothing_is_served(stage: Stage) -> None:
    (stage.directory / "server.key_secret").unlink()
    with pytest.raises(Exception, match=r"there is no .*server.key_secret; `sysupctl keygen"):
        stage.control.serve(free_endpoint(), stage.keys)
    with pytest.raises(Exception, match="cannot use CURVE"):
        stage.control.publish_outside(free_endpoint(), hidden=False, keys=stage.keys)


# ---- events ------------------------------------------------------------------------------


class Listener:
    """One who hears all events."""

    def __init__(self, stage: Stage, key: Certificate) -> None:
        self._stage = stage
        self.socket = stage.client(key, zmq.SUB)
        self.socket.setsockopt(zmq.SUBSCRIBE, b"")
        self.socket.connect(stage.events)

    def hears(self) -> Any:
        """What it is told of a crash from now on; it is told again until that arrives."""
        while self.socket.poll(0):
            self.socket.recv_multipart()
        self._stage.until(self._is_told)
        return json.loads(self.socket.recv_multipart()[1])["last_output"]

    def _is_told(self) -> int:
        self._stage.control.events.publish("web", "flapping", {"last_output": "secret"})
        return self.socket.poll(0)


def test_events_show_output_while_nobody_may_read_alone(stage: Stage) -> None:
    stage.authorize("ops", OPS, Role.OPERATE)
    ops = Listener(stage, OPS)
    assert ops.hears() == "secret"
    stage.authorize("mon", MONITOR, Role.READ)
    monitor = Listener(stage, MONITOR)
    assert monitor.hears() == "(hidden)"
    assert ops.hears() == "(hidden)"


def test_who_is_listening_and_loses_the_key_hears_no_more(stage: Stage) -> None:
    stage.authorize("ops", OPS, Role.OPERATE)
    stage.authorize("boss", BOSS, Role.ADMIN)
    ops, boss = Listener(stage, OPS), Listener(stage, BOSS)
    assert ops.hears() == boss.hears() == "secret"
    stage.revoke("ops")
    lost = ops.socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_FAILED_AUTH)
    stage.until(lambda: boss.hears() and lost.poll(0))  # it was cut off, and not let in again
    while ops.socket.poll(0):
        ops.socket.recv_multipart()
    for _ in range(20):
        assert boss.hears() == "secret"
    assert not ops.socket.poll(0)
    ops.socket.disable_monitor()
    lost.close(0)


def test_statistics_are_for_who_has_a_key(stage: Stage) -> None:
    endpoint = free_endpoint()
    stage.control.publish_stats_on(endpoint, stage.keys)
    stage.authorize("mon", MONITOR, Role.READ)
    stage.authorize("boss", BOSS, Role.ADMIN)
    listeners = []
    for key in (MONITOR, BOSS):
        client = stage.client(key, zmq.SUB)
        client.setsockopt(zmq.SUBSCRIBE, b"")
        client.connect(endpoint)
        listeners.append(client)

    def hears(client: zmq.Socket[bytes]) -> int:
        stage.control.events.publish_stats(b"stat.web", {})
        return client.poll(0)

    for client in listeners:
        stage.until(lambda client=client: hears(client))  # type: ignore[misc]
    stage.revoke("mon")
    lost = listeners[0].get_monitor_socket(zmq.EVENT_HANDSHAKE_FAILED_AUTH)
    stage.until(lambda: hears(listeners[1]) and lost.poll(0))
    listeners[0].disable_monitor()
    lost.close(0)
    while listeners[1].poll(0):
        listeners[1].recv_multipart()
    stage.until(lambda: hears(listeners[1]))  # it has connected again
    plain = stage.client(None, zmq.SUB)
    stage.refusal(plain, endpoint)
