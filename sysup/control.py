"""The control and event sockets: who may ask, how it is answered, what is told to all.

One ROUTER for each endpoint, because the endpoint decides the role of whoever connects:
over the ipc socket the file's mode has already let in only those who may command; over
plain TCP anybody on this machine may connect, so it only reads. Events have sockets of their
own (events.py).

libzmq's descriptor is edge-triggered and any call on the socket may use the edge up, so a
socket is always read until it has nothing left (in bounded batches), also after a send.
Whatever a peer sends, it gets an answer or is dropped; nothing it sends ends more than its
own request.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import traceback
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import zmq

from sysup import commands, protocol
from sysup.commands import App, Later, Soon
from sysup.config import Role
from sysup.endpoints import bind
from sysup.events import Events
from sysup.protocol import Errno, Request, SysupError

log = logging.getLogger("sysup.control")

BATCH = 64
"""Requests answered before the loop gets its turn."""
WAITING = 32
"""Requests of one peer that libzmq holds for us; further ones wait in the peer."""
LINGER = 500
"""Milliseconds that the last replies have to leave."""


class Control:
    """The daemon's sockets.

    Args:
        loop: the daemon's loop.
        app: what the commands act on.
        wall: seconds since the epoch, for replies and events.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, app: App, wall: Callable[[], float]
    ) -> None:
        self._loop = loop
        self._app = app
        self._wall = wall
        self._context = zmq.Context(io_threads=1)
        self._routers: dict[zmq.Socket[bytes], Role] = {}
        self._to_read: set[zmq.Socket[bytes]] = set()
        """Those that are read in the loop's next turn."""
        self.events = Events(loop, self._context, wall)
        self._tasks: set[asyncio.Task[None]] = set()
        self.endpoints: list[str] = []
        self._own: list[str] = []
        """Those whose files are ours to remove."""

    # ---- endpoints -----------------------------------------------------------------------

    def serve(
        self,
        endpoint: str,
        role: Role,
        mode: int = 0o600,
        group: int = -1,
        listener: int | None = None,
    ) -> None:
        """Answer requests on an endpoint; raises SysupError when it can't be bound.

        Args:
            endpoint: `ipc://PATH` or `tcp://HOST:PORT`.
            role: what those who connect there may do.
            mode, group: of the socket file of an ipc endpoint.
            listener: a socket that listens at that path already, and is somebody else's: its
                file is left alone.
        """
        router: zmq.Socket[bytes] = self._context.socket(zmq.ROUTER)
        router.setsockopt(zmq.LINGER, LINGER)
        router.setsockopt(zmq.MAXMSGSIZE, protocol.MAX_MESSAGE)
        router.setsockopt(zmq.RCVHWM, WAITING)
        try:
            bind(router, endpoint, mode, group, listener)
        except SysupError:
            router.close(0)
            raise
        self._routers[router] = role
        self._loop.add_reader(router.fileno(), self._read, router)
        self._read_soon(router)
        self.endpoints.append(endpoint)
        if listener is None:
            self._own.append(endpoint)

    def publish_on(self, endpoint: str, mode: int = 0o600, group: int = -1) -> None:
        """Publish events, and output, on the app's own endpoint; raises as `serve` does."""
        self.events.serve(endpoint, mode, group)
        self.endpoints.append(endpoint)
        self._own.append(endpoint)

    def publish_outside(self, endpoint: str, *, hidden: bool) -> None:
        """Publish events on an endpoint of the config, too; raises as `serve` does.

        `hidden`: without what processes wrote.
        """
        self.events.serve_outside(endpoint, hidden=hidden)
        self.endpoints.append(endpoint)
        self._own.append(endpoint)

    def publish_stats_on(self, endpoint: str) -> None:
        """Publish statistics on an endpoint of the config; raises as `serve` does."""
        self.events.serve_stats(endpoint)
        self.endpoints.append(endpoint)
        self._own.append(endpoint)

    def close(self) -> None:
        """Let the last replies leave, then close everything."""
        for task in self._tasks:
            task.cancel()
        for router in self._routers:
            self._loop.remove_reader(router.fileno())
            router.close()
        self.events.close()
        self._context.term()
        for endpoint in self._own:
            if endpoint.startswith("ipc://"):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(endpoint.removeprefix("ipc://"))

    # ---- requests ------------------------------------------------------------------------

    def _read_soon(self, router: zmq.Socket[bytes]) -> None:
        if router not in self._to_read:
            self._to_read.add(router)
            self._loop.call_soon(self._read, router)

    def _read(self, router: zmq.Socket[bytes]) -> None:
        self._to_read.discard(router)
        if router.closed:
            return
        for _ in range(BATCH):
            try:
                frames = router.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._take(router, frames)
        self._read_soon(router)

    def _take(self, router: zmq.Socket[bytes], frames: list[bytes]) -> None:
        """One message: [peer, JSON], or [peer, empty, JSON] from a REQ socket."""
        route = frames[:2] if frames[1] == b"" and len(frames) > 2 else frames[:1]
        data = b"".join(frames[len(route) :])
        try:
            request = protocol.decode_request(data)
        except SysupError as error:
            self._send(router, route, self._refusal(error, protocol.request_id(data)))
            return
        reply = self._answer(router, route, request)
        if reply is not None and not request.cast:
            self._send(router, route, reply)

    def _answer(
        self, router: zmq.Socket[bytes], route: list[bytes], request: Request
    ) -> bytes | None:
        """The reply, or None where it comes when the work is done."""
        try:
            result = commands.run(self._app, request, self._routers[router])
            fields = result.at_once if isinstance(result, Later) else result
            reply = protocol.ok(fields, request.id, self._wall())
        except Exception as error:  # noqa: BLE001  a request's boundary: it fails alone
            return self._failure(request, error)
        if not isinstance(result, Later):
            return reply
        waiting = request.waiting or isinstance(result, Soon)
        work = self._finish(router, route, request, result.work, waiting)
        task = self._loop.create_task(work, name=request.command)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return None if waiting else reply

    async def _finish(
        self,
        router: zmq.Socket[bytes],
        route: list[bytes],
        request: Request,
        work: Coroutine[Any, Any, Mapping[str, Any]],
        waiting: bool,
    ) -> None:
        try:
            reply = protocol.ok(await work, request.id, self._wall())
        except Exception as error:  # noqa: BLE001  a request's boundary: it fails alone
            reply = self._failure(request, error)
            if not waiting:
                log.warning("%s: %s", request.command, error)
        if waiting and not request.cast:
            self._send(router, route, reply)

    def _failure(self, request: Request, error: Exception) -> bytes:
        if isinstance(error, SysupError):
            return self._refusal(error, request.id)
        if isinstance(error, OSError):
            reason = f"cannot {request.command}: {error.strerror or error}"
            return protocol.error(reason, Errno.OS_ERROR, request.id, self._wall())
        log.error("command %s failed", request.command, exc_info=error)
        tb = "".join(traceback.format_exception(error))
        reason = f"command {request.command!r}: {error!r}"
        return protocol.error(reason, Errno.COMMAND_ERROR, request.id, self._wall(), tb)

    def _refusal(self, error: SysupError, request_id: Any) -> bytes:
        return protocol.error(str(error), error.errno, request_id, self._wall())

    def _send(self, router: zmq.Socket[bytes], route: list[bytes], reply: bytes) -> None:
        if router.closed:
            return
        try:
            router.send_multipart([*route, reply], zmq.NOBLOCK)
        except zmq.ZMQError as error:  # the peer is gone or reads nothing: its loss alone
            log.debug("cannot reply: %s", error)
        self._read_soon(router)
