"""The blocking client: asks an app's daemon, listens to its events.

Who is not there is told by `discovery`, before a connection is made. When it is lost while a reply
is waited for, a monitor socket (zmq_socket_monitor(3)) tells that the daemon ended, and the reply
will never come.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

import zmq

from sysup import protocol
from sysup.discovery import PATIENCE, NotRunning, Unreachable, find_endpoint, probe
from sysup.protocol import CallError, Errno, Request, SysupError

__all__ = [
    "CallError",
    "Client",
    "ConnectionLost",
    "NotRunning",
    "Subscription",
    "TimedOut",
    "Unreachable",
]

if TYPE_CHECKING:
    from sysup.keyring import Keyring

TIMEOUT = 5.0
"""Seconds until a call gives up, unless told otherwise."""
LINGER = 1000
"""Milliseconds that a request without reply may take to leave."""
NOT_LET_IN = (
    zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)
"""What a monitor tells then. A daemon that ends in the midst of a handshake looks like the last."""


class ConnectionLost(CallError):
    """The daemon ended, or cut the connection, before it replied."""


class TimedOut(CallError):
    """No reply came in time; the daemon may still do what was asked."""


class Client:
    """A connection to one daemon, for one thread.

    Args:
        target: an endpoint (`ipc://PATH`, `tcp://HOST:PORT`) or the name of an app; by
            default the one that `find_endpoint` finds.
        timeout: seconds that a call waits for its reply, None: for ever. May be changed
            between calls.
        context: the ZeroMQ context to use; by default the process's own. One of zmq.green lets
            the other greenlets of gevent go on.
        key, server_key: over TCP, the files of the client's own keys and of the daemon's public
            key; by default those that `keyring.find` finds. Without any it is plain TCP.
    Raises:
        Unreachable: when no daemon is there.
        SysupError: when a key can't be used.
    """

    def __init__(
        self,
        target: str | None = None,
        timeout: float | None = TIMEOUT,
        context: zmq.Context[zmq.Socket[bytes]] | None = None,
        *,
        key: str | None = None,
        server_key: str | None = None,
    ) -> None:
        endpoint = target if target and "://" in target else find_endpoint(target)
        self._keys = _keys(endpoint, key, server_key)
        probe(endpoint, PATIENCE if timeout is None else timeout)
        self.endpoint = endpoint
        self.timeout = timeout
        self._context = context or zmq.Context.instance()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        if self._keys is not None:
            self._keys.secure(self._socket)
        self._monitor = self._socket.get_monitor_socket(zmq.EVENT_DISCONNECTED | NOT_LET_IN)
        self._poller = poller_of(self._context)
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._monitor, zmq.POLLIN)
        self._socket.connect(endpoint)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<sysup.client.Client {self.endpoint}>"

    def close(self) -> None:
        """Close the connection."""
        self._socket.disable_monitor()
        self._monitor.close(0)
        self._socket.close()

    def call(self, command: str, /, **properties: Any) -> dict[str, Any]:
        """Ask the daemon to run a command, and return its reply.

        Args:
            command: its name, as `stop`.
            properties: what the command takes, as `name="web", waiting=True`.
        Raises:
            CallError: the daemon refused, or the command failed.
            TimedOut: no reply came within `timeout`.
            ConnectionLost: the daemon ended before it replied.
        """
        self._forget_the_past()
        request = Request(command, properties, id=os.urandom(8).hex())
        self._socket.send(encoded(request))
        return checked(self._reply_to(request))

    def cast(self, command: str, /, **properties: Any) -> None:
        """Tell the daemon to run a command; whether it did is not told."""
        self._socket.setsockopt(zmq.LINGER, LINGER)
        self._socket.send(encoded(Request(command, properties, cast=True)))

    def subscribe(self, topics: Iterable[str] = ("",)) -> Subscription:
        """Listen to the daemon's events; see `Subscription`. Raises as `call` does."""
        return Subscription(self.events_endpoint(), topics, self._context, self._keys)

    def subscribe_stats(self, topics: Iterable[str] = (protocol.STATS,)) -> Subscription:
        """The same of figures of processes, under `stat.`, that come each second."""
        endpoint = self.events_beside() or self._published("stats_endpoint")
        return Subscription(endpoint, topics, self._context, self._keys)

    def events_endpoint(self) -> str:
        """Where the daemon publishes; it is asked if its socket isn't beside the control socket."""
        return self.events_beside() or self._published("pubsub_endpoint")

    def _published(self, option: str) -> str:
        """An endpoint as the daemon tells it."""
        return reached(str(self.call("globaloptions")["options"][option]), self.endpoint)

    def events_beside(self) -> str | None:
        """The app's own event socket, if its control socket is what we are connected to."""
        return events_beside(self.endpoint)

    def _forget_the_past(self) -> None:
        """Drop what the monitor told of connections that ended between two calls."""
        while self._monitor.poll(0):
            self._hear_of_refusal()

    def _hear_of_refusal(self) -> None:
        """Raise Unreachable if what the monitor tells is that we were not let in."""
        kind = int.from_bytes(self._monitor.recv_multipart()[0][:2], sys.byteorder)
        if error := refusal(kind, self.endpoint, self._keys):
            raise error

    def _reply_to(self, request: Request) -> dict[str, Any]:
        until = None if self.timeout is None else time.monotonic() + self.timeout
        while True:
            left = None if until is None else max(0, int((until - time.monotonic()) * 1000))
            ready = dict(self._poller.poll(left))
            if self._socket in ready:
                reply = decoded(self._socket.recv_multipart()[-1])
                if reply.get("id") == request.id or is_stray_refusal(reply):
                    return reply
            elif self._monitor in ready:
                self._hear_of_refusal()
                raise ConnectionLost("connection lost: sysupd ended before it replied")
            else:
                raise TimedOut(
                    f"timed out after {self.timeout:g} s: no reply to {request.command} "
                    f"from {self.endpoint}"
                )


def _keys(endpoint: str, key: str | None, server_key: str | None) -> Keyring | None:
    """Those for an endpoint; what reads them is loaded for TCP alone."""
    if not endpoint.startswith("tcp://"):
        return None
    from sysup import keyring

    return keyring.find(endpoint, key, server_key)


def poller_of(context: zmq.Context[zmq.Socket[bytes]]) -> zmq.Poller:
    """One that waits as the sockets of a context do: those of zmq.green let gevent go on."""
    if type(context).__module__.startswith("zmq.green"):
        poller: zmq.Poller = importlib.import_module("zmq.green").Poller()
        return poller
    return zmq.Poller()


def encoded(request: Request) -> bytes:
    """Raises CallError for a request that the daemon would not read, but cut us off."""
    frame = protocol.encode_request(request)
    if len(frame) > protocol.MAX_MESSAGE:
        most = f"the request has {len(frame)} bytes, at most {protocol.MAX_MESSAGE} are read"
        raise CallError(f"cannot {request.command}: {most}", Errno.MESSAGE_ERROR)
    return frame


def decoded(frame: bytes) -> dict[str, Any]:
    """A reply; empty, so nobody's, if it is not a JSON object."""
    try:
        reply = json.loads(frame)
    except ValueError:
        return {}
    return reply if isinstance(reply, dict) else {}


def is_stray_refusal(reply: Mapping[str, Any]) -> bool:
    """Whether it refuses a request that the daemon could not even read the `id` of."""
    return reply.get("status") == "error" and reply.get("id") is None


def checked(reply: dict[str, Any]) -> dict[str, Any]:
    """A reply that tells of no error; else raises CallError with it."""
    # `status NAME` puts the watcher's state in the place of the reply's own status
    if reply.get("status") == "error" and "reason" in reply:
        raise CallError(str(reply["reason"]), _errno(reply.get("errno")), reply)
    return reply


def _errno(number: Any) -> Errno:
    try:
        return Errno(number)
    except ValueError:
        return Errno.NOT_SPECIFIED


def refusal(kind: int, endpoint: str, keys: Keyring | None) -> Unreachable | None:
    """What an event of a monitor means, if it is that we were not let in.

    A handshake that ends without a word (NO_DETAIL) may mean as well that the daemon ended.
    """
    if not kind & NOT_LET_IN or not endpoint.startswith("tcp://"):
        return None
    if kind == zmq.EVENT_HANDSHAKE_FAILED_AUTH and keys is not None:
        reason = f"the key {keys.own_path} is not authorized there; see sysupctl authorize"
    elif keys is not None:
        reason = f"its key is not that of {keys.server_path}, or it is plain TCP"
    else:
        reason = "it wants keys (see --key and --server-key)"
    if kind == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL:
        reason += ", or it has just ended"
    return Unreachable(f"cannot reach {endpoint}: {reason}", Errno.ACCESS_DENIED)


def events_beside(endpoint: str) -> str | None:
    """The event socket beside an app's control socket; None where that is no such one."""
    if endpoint.startswith("ipc://"):
        path = endpoint.removeprefix("ipc://")
        beside = os.path.join(os.path.dirname(path), protocol.EVENTS_SOCKET)
        if os.path.basename(path) == protocol.CONTROL_SOCKET and os.path.exists(beside):
            return f"ipc://{beside}"
    return None


def reached(endpoint: str, via: str) -> str:
    """An endpoint that a daemon tells of, as it is reached from where `via` is that daemon's."""
    if via.startswith("tcp://"):
        host = via.removeprefix("tcp://").rpartition(":")[0]
        for anywhere in ("tcp://0.0.0.0:", "tcp://*:"):
            endpoint = endpoint.replace(anywhere, f"tcp://{host}:")
    return endpoint


# ---- listening ---------------------------------------------------------------------------


class Subscription:
    """Events, as an iterator of (topic, payload) which ends never.

    What is published before the daemon has seen the subscription, some milliseconds after
    this object is made, is not received: see `wait_until_heard`. Nor is what happens while
    the daemon restarts, after which the connection comes back by itself.

    Args:
        endpoint: where the daemon publishes.
        topics: beginnings of the topics wanted, as `watcher.web.`; "" is all events.
        context: the ZeroMQ context to use; by default the process's own.
        keys: those to use, where it is not plain TCP.
    """

    def __init__(
        self,
        endpoint: str,
        topics: Iterable[str] = ("",),
        context: zmq.Context[zmq.Socket[bytes]] | None = None,
        keys: Keyring | None = None,
    ) -> None:
        self.endpoint = endpoint
        self.times_heard = 0
        """How often the daemon has taken note of the subscription, once `wait_until_heard` asked
        for it: once, and again after each reconnection."""
        self._echo = f"{protocol.ECHO}{os.urandom(8).hex()}".encode()
        self._early: deque[list[bytes]] = deque()
        self._monitor: zmq.Socket[bytes] | None = None
        self._on_change: Callable[[bool], None] | None = None
        self._is_there = True
        self._socket = (context or zmq.Context.instance()).socket(zmq.SUB)
        self._socket.setsockopt(zmq.LINGER, 0)
        if keys is not None and endpoint.startswith("tcp://"):
            keys.secure(self._socket)
        for topic in topics:
            self._socket.setsockopt(zmq.SUBSCRIBE, topic.encode())
        self._socket.connect(endpoint)

    def __enter__(self) -> Subscription:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self.close()

    def __iter__(self) -> Subscription:
        return self

    def __next__(self) -> tuple[str, Any]:
        while True:
            event = self.receive(None)
            if event is not None:
                return event

    def wait_until_heard(self, timeout: float) -> bool:
        """Wait until the daemon has seen the subscription: what it publishes then is received.

        False if that takes longer than `timeout` seconds, or the daemon doesn't tell: only
        sysupd does, at the app's own endpoint.
        """
        self._socket.setsockopt(zmq.SUBSCRIBE, self._echo)
        until = time.monotonic() + timeout
        while not self.times_heard:
            if not self._socket.poll(max(0, int((until - time.monotonic()) * 1000))):
                return False
            frames = self._socket.recv_multipart()
            if not self._is_echo(frames):
                self._early.append(frames)
        return True

    def notice(self, on_change: Callable[[bool], None]) -> None:
        """Have it told, while `receive` waits, that the daemon has gone, and that it is back.

        It is told so by False and True: of the time between there are no events.
        """
        self._on_change = on_change
        self._monitor = self._socket.get_monitor_socket(
            zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_SUCCEEDED
        )

    def _is_ready(self, timeout: float | None) -> bool:
        """Wait for an event; False: there is none in time. Changes are told meanwhile."""
        if self._monitor is None:
            return bool(self._socket.poll(None if timeout is None else int(timeout * 1000)))
        until = None if timeout is None else time.monotonic() + timeout
        poller = poller_of(self._socket.context)
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._monitor, zmq.POLLIN)
        while True:
            left = None if until is None else max(0, int((until - time.monotonic()) * 1000))
            ready = dict(poller.poll(left))
            if self._monitor in ready:
                self._tell_change(self._monitor.recv_multipart()[0])
            elif self._socket in ready or not ready:
                return bool(ready)

    def _tell_change(self, frame: bytes) -> None:
        is_there = int.from_bytes(frame[:2], sys.byteorder) == zmq.EVENT_HANDSHAKE_SUCCEEDED
        if is_there != self._is_there and self._on_change is not None:
            self._on_change(is_there)
        self._is_there = is_there

    def receive(self, timeout: float | None) -> tuple[str, Any] | None:
        """The next event.

        None when none comes within `timeout` seconds (None: for ever), and each time that
        `times_heard` grows. Raises SysupError for a message of another shape; listening can
        go on.
        """
        if self._early:
            frames = self._early.popleft()
        elif self._is_ready(timeout):
            frames = self._socket.recv_multipart()
            if self._is_echo(frames):
                return None
        else:
            return None
        try:
            topic, payload = frames
            return topic.decode("utf-8", "replace"), json.loads(payload)
        except ValueError as error:
            raise SysupError(f"cannot read an event of {self.endpoint}: {error}") from None

    def wait(self, fds: Iterable[int], timeout: float) -> set[int]:
        """Wait until there is an event, or one of these descriptors can be read; those that can.

        Empty, too, when neither comes within `timeout` seconds.
        """
        poller = zmq.Poller()
        for fd in fds:
            poller.register(fd, zmq.POLLIN)
        poller.register(self._socket, zmq.POLLIN)
        left = 0 if self._early else int(timeout * 1000)
        return {found for found, _ in poller.poll(left) if isinstance(found, int)}

    def _is_echo(self, frames: list[bytes]) -> bool:
        if frames[0] != self._echo:
            return False
        self.times_heard += 1
        return True

    def close(self) -> None:
        """Stop listening."""
        if self._monitor is not None:
            self._socket.disable_monitor()
            self._monitor.close(0)
        self._socket.close()
