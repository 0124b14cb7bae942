"""Compression of a file, in constant memory.

zlib and zstandard let go of the GIL while they work.
"""

from __future__ import annotations

import os
import struct
import sys
import zlib
from collections.abc import Callable
from typing import Any, Protocol

CHUNK = 1 << 20
GZIP_LEVEL = 6
ENDINGS = {"gzip": ".gz", "zstd": ".zst"}
"""The methods, and the ends of the names of files that are compressed so."""


def available(compress: str | None) -> str | None:
    """Why files can't be compressed so; None if they can."""
    if compress != "zstd":
        return None
    try:
        _zstd()
    except ImportError:
        return "zstandard is not installed (apt install python3-zstandard)"
    return None


def pack(source: int, target: int, method: str, mtime: float, go_on: Callable[[], None]) -> None:
    """Compress all that can be read from `source` into `target`, a new file.

    The header of gzip has the time and no name, for the file is going to be renamed.

    Args:
        go_on: called before each chunk; what it raises ends the work.

    Raises OSError.
    """
    encoder = _encoder(method)
    while chunk := os.read(source, CHUNK):
        go_on()
        _write(target, encoder.compress(chunk))
    _write(target, encoder.flush())
    if method == "gzip":  # RFC 1952: MTIME, in no checksum
        os.pwrite(target, struct.pack("<I", int(mtime) % 2**32), 4)


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


class _Encoder(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...
    def flush(self) -> bytes: ...


def _encoder(method: str) -> _Encoder:
    if method == "gzip":
        return zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    encoder: _Encoder = _zstd()()
    return encoder


def _zstd() -> Callable[[], Any]:
    """What makes an encoder, with a checksum as the zstd program writes it."""
    if sys.version_info >= (3, 14):
        from compression import zstd

        options = {zstd.CompressionParameter.checksum_flag: 1}
        return lambda: zstd.ZstdCompressor(options=options)
    import zstandard

    return lambda: zstandard.ZstdCompressor(write_checksum=True).compressobj()
