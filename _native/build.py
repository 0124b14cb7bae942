"""Declare sysup._native to cffi: native.h is both the C header and the cdef.

`setup.py` names `ffi` below in cffi_modules; `SYSUP_CFLAGS` adds compiler flags
(the sanitizer and warnings-as-errors builds use it).
"""

import os
import pathlib
import shlex

from cffi import FFI

HERE = pathlib.Path(__file__).resolve().parent
SOURCES = (
    "spawn.c",
    "child.c",
    "proc.c",
    "pump.c",
    "target.c",
    "arena.c",
    "sweep.c",
    "reading.c",
    "restore.c",
    "stream.c",
    "lines.c",
    "outlet.c",
    "select.c",
    "form.c",
    "tap.c",
    "sink.c",
    "file.c",
    "rotate.c",
    "written.c",
    "journal.c",
    "queue.c",
    "send.c",
)
WARNINGS = "-std=c17 -D_GNU_SOURCE -Wall -Wextra -Wconversion -Wshadow -Wno-sign-conversion"

ffi = FFI()
header = (HERE / "native.h").read_text()
ffi.cdef("\n".join(line for line in header.splitlines() if not line.startswith("#")))
ffi.set_source(
    "sysup._native",
    '#include "native.h"',
    sources=[f"_native/{name}" for name in SOURCES],
    include_dirs=["_native"],
    depends=[str(path.relative_to(HERE.parent)) for path in sorted(HERE.glob("*.h"))],
    extra_compile_args=[
        *shlex.split(WARNINGS),
        "-O2",
        "-fvisibility=hidden",
        *shlex.split(os.environ.get("SYSUP_CFLAGS", "")),
    ],
    extra_link_args=["-pthread", *shlex.split(os.environ.get("SYSUP_LDFLAGS", ""))],
)
