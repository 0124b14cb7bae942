"""Stops one thread of a process by ptrace(2), as a debugger does: the others go on."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PTRACE_SEIZE, PTRACE_INTERRUPT, PTRACE_DETACH = 0x4206, 0x4207, 17
WALL = 0x40000000
"""waitpid(2): threads, too."""


def ptrace(request: int, tid: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
    if libc.ptrace(request, tid, None, None) < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"cannot trace: {os.strerror(error)}")


def threads(pid: int) -> dict[str, int]:
    """Thread ids by name, the oldest of each."""
    task = Path(f"/proc/{pid}/task")
    tids = sorted((int(entry.name) for entry in task.iterdir()), reverse=True)
    return {(task / str(tid) / "comm").read_text().strip(): tid for tid in tids}


@contextmanager
def wedged(tid: int) -> Iterator[None]:
    """Stop one thread, as long as this lasts."""
    ptrace(PTRACE_SEIZE, tid)
    ptrace(PTRACE_INTERRUPT, tid)
    assert os.waitpid(tid, WALL)[0] == tid
    try:
        yield
    finally:
        with suppress(ProcessLookupError):  # it has ended
            ptrace(PTRACE_DETACH, tid)


def await_end(tid: int) -> None:
    """Wait until a wedged thread is killed; its process can't be gone before."""
    status = os.waitpid(tid, WALL)[1]
    assert os.WIFSIGNALED(status) or os.WIFEXITED(status), status
