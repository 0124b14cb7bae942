"""A daemon of canned replies: real sockets, spoken to as the real one is, in a thread."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

import zmq

from sysup import protocol

PATIENCE = 60.0
"""Seconds after which a test stops waiting for what should have come at once."""

Reply: TypeAlias = Mapping[str, Any] | Callable[[dict[str, Any]], Any] | None
"""The fields of a reply; or a function of the request that gives them, or raises SysupError or
Gone, or gives the frames to send as a list of bytes; or None for silence."""


class Gone(Exception):
    """The daemon ends instead of answering."""


class CannedDaemon:
    """Answers requests on `directory/control`, publishes on `directory/events`.

    Attributes:
        replies: by command; a command that isn't there gets an error reply.
        requests: what was asked so far.
        events: (topic, payload) published to each subscriber as it comes; payloads may be bytes.
    """

    def __init__(self, directory: Path, endpoint: str | None = None) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.replies: dict[str, Reply] = {}
        self.events: list[tuple[str, Any]] = []
        self.requests: queue.Queue[dict[str, Any]] = queue.Queue()
        self._context = zmq.Context()
        self._router = self._context.socket(zmq.ROUTER)
        self._router.bind(endpoint or f"ipc://{directory / protocol.CONTROL_SOCKET}")
        self.endpoint = self._router.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0")
        self._publisher = self._context.socket(zmq.XPUB)
        self._publisher.bind(f"ipc://{directory / protocol.EVENTS_SOCKET}")
        self._end = self._context.socket(zmq.PAIR)
        self._end.bind("inproc://end")
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def __enter__(self) -> CannedDaemon:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End as a daemon does that ends: the sockets are gone."""
        if not self._context.closed:
            end = self._context.socket(zmq.PAIR)
            end.connect("inproc://end")
            end.send(b"")
            self._thread.join()
            self._end.close()
            end.close()
            self._context.destroy(linger=0)

    def request(self) -> dict[str, Any]:
        """The next request that was made."""
        return self.requests.get(timeout=PATIENCE)

    def _serve(self) -> None:
        sockets = (self._router, self._publisher, self._end)
        poller = zmq.Poller()
        for socket in sockets:
            poller.register(socket, zmq.POLLIN)
        with suppress(Gone):
            while self._end not in (ready := dict(poller.poll())):
                if self._publisher in ready:
                    self._greet(self._publisher.recv())
                if self._router in ready:
                    peer, frame = self._router.recv_multipart()
                    for reply in self._answer(json.loads(frame)):
                        self._router.send_multipart([peer, reply])
        self._router.close(0)
        self._publisher.close(0)

    def _greet(self, subscription: bytes) -> None:
        """A subscription, b"\\1TOPIC", has arrived (zmq_socket(3), ZMQ_XPUB)."""
        if subscription.startswith(b"\1" + protocol.ECHO.encode()):
            self._publisher.send_multipart([subscription[1:], b"{}"])
        elif subscription.startswith(b"\1"):
            for topic, payload in self.events:
                body = payload if isinstance(payload, bytes) else protocol.encode_event(payload)
                self._publisher.send_multipart([topic.encode(), body])

    def _answer(self, message: dict[str, Any]) -> list[bytes]:
        self.requests.put(message)
        number = message["id"]
        try:
            if message["command"] not in self.replies:
                raise protocol.UnknownCommand(f"unknown command: '{message['command']}'")
            reply: Any = self.replies[message["command"]]
            if callable(reply):
                reply = reply(message)
        except protocol.SysupError as error:
            return [protocol.error(str(error), error.errno, number, 0.0, fields=error.fields)]
        if reply is None or message.get("msg_type") == "cast":
            return []
        return reply if isinstance(reply, list) else [protocol.ok(reply, number, 0.0)]
