"""The wire: requests, replies and events, as Circus 0.19 speaks them.

A request is one JSON object in one frame, sent by a DEALER to the daemon's ROUTER:

    {"id": "75dd85c7", "command": "incr", "properties": {"name": "web", "nb": 2, "waiting": true}}

and so is its reply, with the request's `id`:

    {"status": "ok", "time": 1795456264.35, "numprocesses": 4, "id": "75dd85c7"}
    {"status": "error", "reason": "program nope not found", "tb": null, "errno": 3, ...}

An event is two frames from a PUB socket: the topic `watcher.NAME.EVENT` and a JSON object.

The app's own event socket has live output, too, for those whose subscriptions begin with
`output.`: the topic `output.NAME.WID.STREAM` and

    {"wid": 1, "pid": 812, "stream": "stdout", "data": "...", "at": 4711, "missed": 0, ...}

where `data` is text from which `unpack` makes the exact bytes, `at` how many bytes the stream
has had at its end, and `missed` how many before it nobody could keep.
Pure: no socket is opened here, and the time is an argument.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping
from enum import IntEnum
from types import MappingProxyType
from typing import Any, NamedTuple

MAX_MESSAGE = 1 << 20
"""Bytes of the longest request the daemon reads."""

FEW_BYTES = 1 << 16
MANY_VALUES = 20_000
"""A request longer than FEW_BYTES has at most so many values: it may be one long text, but what
takes a tenth of a second to read would hold up all others."""

MAX_ID = 1024
"""Characters of the longest `id`, as JSON: it is kept with each reply until that is read."""

ROWS = 16
"""Of a large reply, those that are written in one step."""

CONTROL_SOCKET = "control"
EVENTS_SOCKET = "events"
"""Names of the sockets in an app's runtime directory."""

OUTPUT = "output."
"""What the topics of output begin with."""

STATS = "stat."
"""What the topics of statistics begin with."""

ECHO = "~"
"""A subscription to `~ANYTHING` is answered by a message of that topic, so a client knows that
it and those before it are in force. In the order of bytes it is the last of all topics, as
libzmq repeats subscriptions in that order when it connects again."""

SYSTEM_BASE = "/run/sysup"
"""Where the runtime directories of root's apps are."""


def runtime_base(uid: int, environ: Mapping[str, str]) -> str:
    """The directory that holds the runtime directories of a user's apps, one for each app.

    `SYSUP_RUNTIME_DIR` overrides it. In /tmp anybody may have made it: who uses it checks
    that its owner is `uid`.
    """
    override = environ.get("SYSUP_RUNTIME_DIR")
    if override:
        return override
    if uid == 0:
        return SYSTEM_BASE
    of_session = environ.get("XDG_RUNTIME_DIR")
    return f"{of_session}/sysup" if of_session else f"/tmp/sysup-{uid}"


class Errno(IntEnum):
    """The `errno` of an error reply (Circus's numbers)."""

    NOT_SPECIFIED = 0
    INVALID_JSON = 1
    UNKNOWN_COMMAND = 2
    MESSAGE_ERROR = 3
    OS_ERROR = 4
    COMMAND_ERROR = 5
    BAD_MSG_DATA_ERROR = 6
    ACCESS_DENIED = 7
    """sysup's own: the peer's role does not allow the command."""


class SysupError(Exception):
    """What a user or client can do something about; its text is the reason they read."""

    errno = Errno.COMMAND_ERROR
    fields: Mapping[str, Any] = {}
    """What an error reply has besides."""


class Incomplete(SysupError):
    """Some of it could not be done; `fields` tell what was."""

    def __init__(self, reason: str, fields: Mapping[str, Any]) -> None:
        super().__init__(reason)
        self.fields = fields


class InvalidJson(SysupError):
    """The request is not JSON."""

    errno = Errno.INVALID_JSON


class UnknownCommand(SysupError):
    """There is no such command."""

    errno = Errno.UNKNOWN_COMMAND


class MessageError(SysupError):
    """A property is missing or wrong, or names what is not there."""

    errno = Errno.MESSAGE_ERROR


class AccessDenied(SysupError):
    """The peer may not do this."""

    errno = Errno.ACCESS_DENIED


class CallError(SysupError):
    """A call failed: the text says why, `errno` is the daemon's number for it.

    `reply` is what the daemon answered, empty when there was no answer.
    """

    def __init__(
        self,
        reason: str,
        errno: Errno = Errno.NOT_SPECIFIED,
        reply: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(reason)
        self.errno = errno
        self.reply = reply or {}


class Request(NamedTuple):
    """A command as it was asked for.

    `cast` requests get no reply at all; `waiting` ones get theirs when the work is done.
    """

    command: str
    properties: Mapping[str, Any] = MappingProxyType({})
    id: Any = None
    cast: bool = False

    @property
    def waiting(self) -> bool:
        """Whether the reply is to come only when the work is done."""
        return bool(self.properties.get("waiting", False))


def decode_request(data: bytes) -> Request:
    """Read a request.

    Raises InvalidJson when `data` is not JSON or would take long to read, MessageError when it is
    JSON of another shape; nothing else, whatever the bytes.
    """
    if len(data) > FEW_BYTES and _has_many_values(data):
        raise InvalidJson(f"json invalid: more than {MANY_VALUES} values")
    try:
        message = json.loads(data)
    except (ValueError, RecursionError):
        raise InvalidJson("json invalid") from None
    if not isinstance(message, dict):
        raise MessageError("message invalid: not a JSON object")
    if not _is_id(message.get("id")):
        raise MessageError("message invalid: 'id' is too long")
    command = message.get("command")
    if not isinstance(command, str):
        raise MessageError("message invalid: 'command' is missing")
    properties = message.get("properties")
    if properties is None:
        properties = {}
    if not isinstance(properties, dict):
        raise MessageError("message invalid: 'properties' is not an object")
    return Request(
        command=command.lower(),
        properties=properties,
        id=message.get("id"),
        cast=message.get("msg_type") == "cast",
    )


def request_id(data: bytes) -> Any:
    """The `id` of a request that may be malformed otherwise; None if it has none."""
    if len(data) > FEW_BYTES:
        return None
    try:
        message = json.loads(data)
    except (ValueError, RecursionError):
        return None
    number = message.get("id") if isinstance(message, dict) else None
    return number if _is_id(number) else None


def _has_many_values(data: bytes) -> bool:
    """Whether it would take long to read, told by what stands outside of strings."""
    bare = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    if bare.count(b'"') > 2 * MANY_VALUES:
        return True
    outside = b"".join(bare.split(b'"')[::2])
    return sum(map(outside.count, (b",", b"[", b"{"))) > MANY_VALUES


def _is_id(value: Any) -> bool:
    """Whether it may stand in a reply; what is deep may be read, and not be written again."""
    try:
        return len(json.dumps(value)) <= MAX_ID
    except RecursionError:
        return False


def encode_request(request: Request) -> bytes:
    """The frame of a request."""
    message: dict[str, Any] = {
        "id": request.id,
        "command": request.command,
        "properties": dict(request.properties),
    }
    if request.cast:
        message["msg_type"] = "cast"
    return json.dumps(message).encode()


class Written(str):
    """JSON already: what stands so in the fields of a reply, for `ok`, is not written again."""

    __slots__ = ()


def ok(fields: Mapping[str, Any], request_id: Any, time: float) -> bytes:
    """The frame of a good reply; `fields` may overwrite `status`, as `status NAME` does."""
    message, written = _apart({"status": "ok", "time": time, **fields, "id": request_id})
    return f"{json.dumps(message)[:-1]}{written}}}".encode()


def ok_in_steps(
    fields: Mapping[str, Any], request_id: Any, time: float
) -> Generator[None, None, bytes]:
    """The same in small steps: of a table whose values are tables, some rows at a time."""
    message, written = _apart({"status": "ok", "time": time, **fields, "id": request_id})
    parts: list[str] = []
    yield from _write(message, parts)
    parts[-1] = f"{written}}}"
    return "".join(parts).encode()


def _apart(message: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """What is yet to be written, and the end of the text that is written already."""
    written = [name for name, value in message.items() if isinstance(value, Written)]
    return message, "".join(f", {json.dumps(name)}: {message.pop(name)}" for name in written)


def _write(table: Mapping[str, Any], parts: list[str]) -> Generator[None, None, None]:
    rows: dict[str, Any] = {}
    parts.append("{")
    for name, value in table.items():
        if isinstance(name, str) and _holds_tables(value):
            rows = _flush(rows, parts)
            parts.append(f"{json.dumps(name)}: ")
            yield from _write(value, parts)
            parts.append(", ")
            continue
        rows[name] = value
        if len(rows) == ROWS:
            rows = _flush(rows, parts)
            yield
    _flush(rows, parts)
    parts[-1] = "}" if parts[-1] == ", " else "{}"


def _flush(rows: Mapping[str, Any], parts: list[str]) -> dict[str, Any]:
    """Write rows, with a comma behind them; returns an empty table."""
    if rows:
        parts += (json.dumps(rows)[1:-1], ", ")
    return {}


def _holds_tables(value: Any) -> bool:
    """Whether it is a table of tables, by the first of these."""
    return isinstance(value, dict) and isinstance(next(iter(value.values()), None), dict)


def error(
    reason: str,
    errno: int,
    request_id: Any,
    time: float,
    tb: str | None = None,
    fields: Mapping[str, Any] | None = None,
) -> bytes:
    """The frame of an error reply."""
    return json.dumps(
        {
            **(fields or {}),
            "status": "error",
            "reason": reason,
            "tb": tb,
            "time": time,
            "errno": int(errno),
            "id": request_id,
        }
    ).encode()


def event_name(watcher: str) -> str:
    """A watcher's name as topics have it (Circus's `res_name`)."""
    return watcher.lower().replace(" ", "_")


def topic(watcher: str, event: str) -> bytes:
    """The topic of an event of a watcher."""
    return f"watcher.{event_name(watcher)}.{event}".encode()


def split_topic(data: bytes) -> tuple[str, str]:
    """(watcher, event) of a topic; a watcher's name may hold dots."""
    parts = data.decode("utf-8", "replace").split(".")
    return ".".join(parts[1:-1]), parts[-1]


def output_topic(watcher: str, wid: int, stream: str) -> bytes:
    """The topic of the output of a stream."""
    return f"{OUTPUT}{event_name(watcher)}.{wid}.{stream}".encode()


def stats_topic(watcher: str, pid: int | None = None) -> bytes:
    """The topic of the figures of a process, or of its watcher.

    Circus's clients split topics at dots, so those in the name are hyphens here, which circus-top
    turns back into dots.
    """
    name = event_name(watcher).replace(".", "-")
    return f"{STATS}{name}".encode() if pid is None else f"{STATS}{name}.{pid}".encode()


def pack(data: bytes) -> str:
    """Bytes as text that JSON can carry; what is no UTF-8 is in lone surrogates."""
    return data.decode("utf-8", "surrogateescape")


def unpack(text: str) -> bytes:
    """The bytes that `pack` was given. Raises ValueError for what it can't have made."""
    return text.encode("utf-8", "surrogateescape")


def encode_event(payload: Mapping[str, Any]) -> bytes:
    """The second frame of an event."""
    return json.dumps(payload).encode()
