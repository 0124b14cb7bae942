"""The client for programs of asyncio: calls side by side over one connection, and events.

What `sysup.client` says of connections that are lost, and of keys, holds here too.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections import deque
from collections.abc import Iterable
from types import TracebackType
from typing import Any

import zmq
import zmq.asyncio

from sysup import client, keyring, protocol
from sysup.client import TIMEOUT, ConnectionLost, TimedOut
from sysup.discovery import PATIENCE, find_endpoint, probe
from sysup.keyring import Keyring
from sysup.protocol import Request, SysupError


class AsyncClient:
    """A connection to one daemon, within one loop; calls don't wait for each other.

        async with AsyncClient("shop") as shop:
            print(await shop.call("status"))

    Args:
        target, key, server_key: as those of `sysup.Client`.
        timeout: seconds that a call waits for its reply, None: for ever.
    Raises:
        Unreachable: by `async with`, when no daemon is there.
        SysupError: when a key can't be used.
    """

    def __init__(
        self,
        target: str | None = None,
        timeout: float | None = TIMEOUT,
        *,
        key: str | None = None,
        server_key: str | None = None,
    ) -> None:
        self.endpoint = target or ""
        self.timeout = timeout
        self._target = target
        self._files = key, server_key
        self._keys: Keyring | None = None
        self._context: zmq.asyncio.Context | None = None
        self._socket: zmq.asyncio.Socket | None = None
        self._monitor: zmq.asyncio.Socket | None = None
        self._waiting: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> AsyncClient:
        await asyncio.to_thread(self._find)
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, client.LINGER)
        if self._keys is not None:
            self._keys.secure(self._socket)
        events = zmq.EVENT_DISCONNECTED | client.NOT_LET_IN
        self._monitor = self._socket.get_monitor_socket(events)
        self._socket.connect(self.endpoint)
        self._tasks = [
            asyncio.create_task(self._read(self._socket)),
            asyncio.create_task(self._watch(self._monitor)),
        ]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._fail(ConnectionLost("connection lost: the client was closed"))
        if self._socket is not None and self._monitor is not None and self._context is not None:
            self._socket.disable_monitor()
            self._monitor.close(0)
            self._socket.close()
            await asyncio.to_thread(self._context.term)

    def __repr__(self) -> str:
        return f"<sysup.aio.AsyncClient {self.endpoint}>"

    def _find(self) -> None:
        """See who is there, which may take a moment."""
        target = self._target
        self.endpoint = target if target and "://" in target else find_endpoint(target)
        self._keys = keyring.find(self.endpoint, *self._files)
        probe(self.endpoint, PATIENCE if self.timeout is None else self.timeout)

    async def call(self, command: str, /, **properties: Any) -> dict[str, Any]:
        """Ask the daemon to run a command, and return its reply; raises as `Client.call` does."""
        request = Request(command, properties, id=os.urandom(8).hex())
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        frame = client.encoded(request)
        self._waiting[str(request.id)] = future
        try:
            await self._sender.send(frame)
            reply = await asyncio.wait_for(future, self.timeout)
        except TimeoutError:
            raise TimedOut(
                f"timed out after {self.timeout:g} s: no reply to {command} from {self.endpoint}"
            ) from None
        finally:
            self._waiting.pop(str(request.id), None)
        return client.checked(reply)

    async def cast(self, command: str, /, **properties: Any) -> None:
        """Tell the daemon to run a command; whether it did is not told."""
        await self._sender.send(client.encoded(Request(command, properties, cast=True)))

    async def subscribe(self, topics: Iterable[str] = ("",)) -> AsyncSubscription:
        """Listen to the daemon's events; raises as `call` does."""
        endpoint = client.events_beside(self.endpoint)
        if endpoint is None:
            told = (await self.call("globaloptions"))["options"]["pubsub_endpoint"]
            endpoint = client.reached(str(told), self.endpoint)
        return AsyncSubscription(endpoint, topics, self._keys)

    @property
    def _sender(self) -> zmq.asyncio.Socket:
        if self._socket is None or self._socket.closed:
            raise SysupError("cannot ask: the client is not open; use `async with`")
        return self._socket

    async def _read(self, sock: zmq.asyncio.Socket) -> None:
        while True:
            reply = client.decoded((await sock.recv_multipart())[-1])
            name = reply.get("id")
            if client.is_stray_refusal(reply):  # of a request whose id could not be read
                name = next(iter(self._waiting), None)
            future = self._waiting.get(str(name))
            if future is not None and not future.done():
                future.set_result(reply)

    async def _watch(self, monitor: zmq.asyncio.Socket) -> None:
        while True:
            kind = int.from_bytes((await monitor.recv_multipart())[0][:2], sys.byteorder)
            refusal = client.refusal(kind, self.endpoint, self._keys)
            lost = ConnectionLost("connection lost: sysupd ended before it replied")
            self._fail(refusal or lost)

    def _fail(self, error: SysupError) -> None:
        """End the calls that wait."""
        waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            if not future.done():
                future.set_exception(error)


class AsyncSubscription:
    """Events, as an asynchronous iterator of (topic, payload) which ends never.

    See `sysup.client.Subscription`, whose arguments these are.
    """

    def __init__(
        self, endpoint: str, topics: Iterable[str] = ("",), keys: Keyring | None = None
    ) -> None:
        self.endpoint = endpoint
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._socket.setsockopt(zmq.LINGER, 0)
        if keys is not None and endpoint.startswith("tcp://"):
            keys.secure(self._socket)
        self._echo = f"{protocol.ECHO}{os.urandom(8).hex()}".encode()
        self._early: deque[list[bytes]] = deque()
        for topic in topics:
            self._socket.setsockopt(zmq.SUBSCRIBE, topic.encode())
        self._socket.connect(endpoint)

    async def __aenter__(self) -> AsyncSubscription:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self._socket.close()
        self._context.term()

    def __aiter__(self) -> AsyncSubscription:
        return self

    async def __anext__(self) -> tuple[str, Any]:
        frames = [self._echo]
        while frames[0] == self._echo:
            frames = self._early.popleft() if self._early else await self._socket.recv_multipart()
        try:
            topic, payload = frames
            return topic.decode("utf-8", "replace"), json.loads(payload)
        except ValueError as error:
            raise SysupError(f"cannot read an event of {self.endpoint}: {error}") from None

    async def wait_until_heard(self, within: float) -> bool:
        """Wait until the daemon has seen the subscription: what it publishes then is received.

        False if that takes longer than `within` seconds, or the daemon doesn't tell.
        """
        self._socket.setsockopt(zmq.SUBSCRIBE, self._echo)
        try:
            async with asyncio.timeout(within):
                while (frames := await self._socket.recv_multipart())[0] != self._echo:
                    self._early.append(frames)
        except TimeoutError:
            return False
        return True
