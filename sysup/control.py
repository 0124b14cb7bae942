"""The control and event sockets: who may ask, how it is answered, what is told to all.

One ROUTER for each endpoint, because the endpoint decides the role of whoever connects:
over the ipc socket the file's mode has already let in only those who may command; over
plain TCP anybody on this machine may connect, so it only reads; with CURVE it is the peer's key
that tells. Events have sockets of their own (events.py).

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
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Any, NamedTuple

import zmq

from sysup import protocol
from sysup.commands import COMMANDS
from sysup.config import Role
from sysup.doorman import Doorman, secure
from sysup.endpoints import bind
from sysup.events import Events
from sysup.guard import Guard
from sysup.keys import Keys
from sysup.pace import in_turns
from sysup.peers import Access, Peer, called
from sysup.protocol import Errno, Request, SysupError
from sysup.table import App, Later, Soon
from sysup.throttle import MOST_HELD, RATE, Throttle

log = logging.getLogger("sysup.control")

BATCH = 64
SLICE = 0.005
"""So many requests are answered before the loop gets its turn, or for so many seconds."""
WAITING = 32
"""Requests of one peer that libzmq holds for us; further ones wait in the peer."""
MOST_AT_ONCE = 256
"""Commands of one peer that go on; further ones are refused."""
MAX_READ = 1 << 16
"""Bytes of the longest request where all may read only."""
SEND_BUFFER = 1 << 18
"""Bytes that the kernel takes for a TCP peer which does not read (twice that, socket(7))."""
HANDSHAKE = 10_000
"""Milliseconds that a connection may take to say who it is."""
LONGEST_NAME = 100
"""Characters of what a command is about that are logged."""
LINGER = 500
"""Milliseconds that the last replies have to leave."""
TOO_MANY = SysupError(
    f"too many requests: {RATE} a second are answered, and {MOST_HELD} of yours wait already"
)


class Route(NamedTuple):
    """Where a reply goes."""

    router: zmq.Socket[bytes]
    envelope: list[bytes]
    fd: int
    """Of the connection that the request came by; it may be another one's by now."""


class Asked(NamedTuple):
    """A request as it came."""

    route: Route
    peer: Peer
    data: bytes


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
        self._routers: dict[zmq.Socket[bytes], Access] = {}
        self._guards: dict[zmq.Socket[bytes], Guard] = {}
        self._doorman: Doorman | None = None
        self._to_read: set[zmq.Socket[bytes]] = set()
        """Those that are read in the loop's next turn."""
        self.events = Events(loop, self._context, wall)
        self._paused = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._throttle = Throttle(loop, self._serve)
        self._working: Counter[int] = Counter()
        """How many of those are a connection's."""
        self.endpoints: list[str] = []
        self._own: list[str] = []
        """Those whose files are ours to remove."""

    # ---- endpoints -----------------------------------------------------------------------

    def serve(
        self,
        endpoint: str,
        access: Access,
        mode: int = 0o600,
        group: int = -1,
        listener: int | None = None,
    ) -> None:
        """Answer requests on an endpoint; raises SysupError when it can't be bound.

        Args:
            endpoint: `ipc://PATH` or `tcp://HOST:PORT`.
            access: what those who connect there may do; with keys, it speaks CURVE.
            mode, group: of the socket file of an ipc endpoint.
            listener: a socket that listens at that path already, and is somebody else's: its
                file is left alone.
        """
        router: zmq.Socket[bytes] = self._context.socket(zmq.ROUTER)
        router.setsockopt(zmq.LINGER, LINGER)
        longest = MAX_READ if access is Role.READ else protocol.MAX_MESSAGE
        router.setsockopt(zmq.MAXMSGSIZE, longest)
        router.setsockopt(zmq.RCVHWM, WAITING)
        router.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE)
        if endpoint.startswith("tcp://"):
            router.setsockopt(zmq.SNDBUF, SEND_BUFFER)
        # All that libzmq holds for us, and a message that is not whole
        guard = Guard(self._loop, router, endpoint, (WAITING + 2) * longest)
        try:
            if isinstance(access, Keys):
                self._secure(router, access)
            bind(router, endpoint, mode, group, listener)
        except SysupError:
            guard.close()
            router.close(0)
            raise
        self._guards[router] = guard
        self._routers[router] = access
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

    def publish_outside(self, endpoint: str, *, hidden: bool, keys: Keys | None = None) -> None:
        """Publish events on an endpoint of the config, too; raises as `serve` does.

        Args:
            endpoint: as in `serve`.
            hidden: without what processes wrote.
            keys: who may listen; it speaks CURVE.
        """
        if keys is not None:
            self._watch_the_door(keys)
        self.events.serve_outside(endpoint, hidden=hidden, keys=keys)
        self.endpoints.append(endpoint)
        self._own.append(endpoint)

    def publish_stats_on(self, endpoint: str, keys: Keys | None = None) -> None:
        """Publish statistics on an endpoint of the config; raises as `serve` does."""
        if keys is not None:
            self._watch_the_door(keys)
        self.events.serve_stats(endpoint, keys)
        self.endpoints.append(endpoint)
        self._own.append(endpoint)

    def _secure(self, router: zmq.Socket[bytes], keys: Keys) -> None:
        self._watch_the_door(keys)
        secure(router, keys)

    def _watch_the_door(self, keys: Keys) -> None:
        if self._doorman is None:
            self._doorman = Doorman(self._loop, self._context, keys)

    def pause(self) -> None:
        """Read no more requests: what was read is begun in the loop's next turn."""
        self._paused = True
        for router in self._routers:
            self._loop.remove_reader(router.fileno())

    def go_on(self) -> None:
        """Read again, if this is still open."""
        self._paused = False
        for router in self._routers if not self._context.closed else ():
            self._loop.add_reader(router.fileno(), self._read, router)
            self._read_soon(router)

    def close(self) -> None:
        """Let the last replies leave, then close everything."""
        self._throttle.close()
        for task in self._tasks:
            task.cancel()
        for router in self._routers:
            self._loop.remove_reader(router.fileno())
            self._guards[router].close()
            router.close()
        self.events.close()
        if self._doorman is not None:
            self._doorman.close()
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
        if router.closed or self._paused:
            return
        until = self._loop.time() + SLICE
        for _ in range(BATCH):
            try:
                message = router.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            try:
                self._take(router, message)
            except Exception:  # a message is a boundary: those after it are read
                log.exception("a message could not be taken")
            if self._loop.time() > until:
                break
        self._read_soon(router)

    def _take(self, router: zmq.Socket[bytes], message: list[zmq.Frame]) -> None:
        """One message: [peer, JSON], or [peer, empty, JSON] from a REQ socket."""
        frames = [frame.bytes for frame in message]
        envelope = frames[:2] if frames[1] == b"" and len(frames) > 2 else frames[:1]
        data = b"".join(frames[len(envelope) :])
        peer = Peer(message[-1], self._routers[router])
        route = Route(router, envelope, peer.fd)
        self._guards[router].took(route.fd, frames[1:])
        if not self._throttle.take(route.fd, Asked(route, peer, data), len(data)):
            self._send(route, self._refusal(TOO_MANY, protocol.request_id(data)))

    def _serve(self, asked: Asked) -> None:
        """A request whose turn has come. A message is a boundary: those after it are read."""
        try:
            self._reply(*asked)
        except Exception:
            log.exception("a message could not be taken")

    def _reply(self, route: Route, peer: Peer, data: bytes) -> None:
        try:
            request = protocol.decode_request(data)
        except SysupError as error:
            self._send(route, self._refusal(error, protocol.request_id(data)))
            return
        reply = self._answer(route, request, peer)
        if reply is not None and not request.cast:
            self._send(route, reply)

    def _answer(self, route: Route, request: Request, peer: Peer) -> bytes | None:
        """The reply, or None where it comes when the work is done."""
        try:
            if self._working[route.fd] >= MOST_AT_ONCE:
                raise SysupError(f"cannot {request.command}: {MOST_AT_ONCE} of yours go on already")
            result = COMMANDS.run(self._app, request, peer.role, peer.remedy)
            is_waiting = isinstance(result, Soon) or request.waiting
            if isinstance(result, Later):
                work = self._finish(route, request, result.work, is_waiting)
                self._go_on(route.fd, request.command, work)
            if COMMANDS.changes(request):
                _note(request, peer)
            if not isinstance(result, Later):
                return protocol.ok(result, request.id, self._wall())
            return None if is_waiting else protocol.ok(result.at_once, request.id, self._wall())
        except Exception as error:  # noqa: BLE001  a request's boundary: it fails alone
            return self._failure(request, error)

    def _go_on(self, fd: int, command: str, work: Coroutine[Any, Any, None]) -> None:
        """Carry out what was asked: those that are asked later wait for it."""
        task = self._loop.create_task(work, name=command)
        self._tasks.add(task)
        self._working[fd] += 1
        task.add_done_callback(partial(self._is_done, fd))

    def _is_done(self, fd: int, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._working[fd] -= 1
        if not self._working[fd]:
            del self._working[fd]

    async def _finish(
        self,
        route: Route,
        request: Request,
        work: Coroutine[Any, Any, Mapping[str, Any]],
        waiting: bool,
    ) -> None:
        try:
            steps = protocol.ok_in_steps(await work, request.id, self._wall())
            reply = await in_turns(steps)
        except Exception as error:  # noqa: BLE001  a request's boundary: it fails alone
            reply = self._failure(request, error)
            if not waiting:
                log.warning("%s: %s", request.command, error)
        if waiting and not request.cast:
            self._send(route, reply)

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
        now = self._wall()
        return protocol.error(str(error), error.errno, request_id, now, fields=error.fields)

    def _send(self, route: Route, reply: bytes) -> None:
        router = route.router
        if router.closed:
            return
        try:
            if self._guards[router].may_send(route.fd, len(reply)):
                router.send_multipart([*route.envelope, reply], zmq.NOBLOCK)
        except zmq.ZMQError as error:  # the peer is gone or reads nothing: its loss alone
            log.debug("cannot reply: %s", error)
        self._read_soon(router)


def _note(request: Request, peer: Peer) -> None:
    """Log who commanded what."""
    name = request.properties.get("name")
    about = ""
    if isinstance(name, str):
        about = f" {name[:LONGEST_NAME] if name.isprintable() else ascii(name[:LONGEST_NAME])}"
    fields = peer.fields()
    told = {"SYSUP_COMMAND": request.command, **fields}
    log.info("%s%s: by %s", request.command, about, called(fields), extra={"sysup": told})
