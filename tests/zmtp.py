"""A ZeroMQ peer made by hand, which does what libzmq would not: ZMTP 3.0 (spec 23 of ZeroMQ)."""

from __future__ import annotations

import socket
from typing import Any

GREETING = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
PATIENCE = 60.0
MORE, LONG, COMMAND = 1, 2, 4


def frame(body: bytes, flags: int = 0) -> bytes:
    """A frame on the wire."""
    if len(body) < 256:
        return bytes([flags, len(body)]) + body
    return bytes([flags | LONG]) + len(body).to_bytes(8, "big") + body


def ready(kind: str) -> bytes:
    """The command that ends the handshake without keys."""
    properties = b"".join(
        bytes([len(name)]) + name + len(value).to_bytes(4, "big") + value
        for name, value in ((b"Socket-Type", kind.encode()), (b"Identity", b""))
    )
    return frame(b"\x05READY" + properties, COMMAND)


def connect(endpoint: str, kind: str = "DEALER") -> socket.socket:
    """A connection that is over its handshake; nobody reads from it."""
    if endpoint.startswith("ipc://"):
        sock = socket.socket(socket.AF_UNIX)
        address: Any = endpoint.removeprefix("ipc://")
    else:
        sock = socket.socket()
        host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
        address = (host, int(port))
    try:
        sock.settimeout(PATIENCE)
        sock.connect(address)
        sock.sendall(GREETING)
        _read(sock, len(GREETING))
        sock.sendall(ready(kind))
        _read(sock, _read(sock, 2)[1])
    except BaseException:
        sock.close()
        raise
    return sock


def _read(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += (more := sock.recv(size - len(data)))
        if not more:
            raise ConnectionResetError("it was cut in the handshake")
    return data
