"""Orphans: what descends from our children comes to us, a subreaper, when its parent ends."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Collection
from contextlib import suppress

HUNT = 0.015
"""Seconds for which those are chased that fork and exit faster than all can be looked at."""
CALM = 2
"""How often there must have been none in a row."""


def hunt(owner_of: Callable[[int], int | None], mains: Collection[int]) -> set[int]:
    """Kill orphans that have an owner, as long as there are such; returns the owners.

    Each may leave another one before a look at all processes comes to it. A look at our own
    children alone takes microseconds, and a pid that is found there is theirs until we reap it.
    """
    met: set[int] = set()
    until, calm = time.monotonic() + HUNT, 0
    while calm < CALM and time.monotonic() < until:
        calm += 1
        for pid in _our_children():
            if pid in mains:
                continue
            if reap_stranger(pid):
                calm = 0  # it may have left another one
            elif (owner := owner_of(pid)) is not None:
                with suppress(PermissionError):  # it became another user
                    os.kill(pid, signal.SIGKILL)
                    met.add(owner)
                    calm = 0
    return met


def _our_children() -> list[int]:
    """Those of the first thread, which starts processes and to which orphans come; none where the
    kernel can't tell (CONFIG_PROC_CHILDREN)."""
    try:
        with open(f"/proc/self/task/{os.getpid()}/children", "rb") as file:
            return [int(pid) for pid in file.read().split()]
    except OSError:
        return []


def next_zombie() -> int:
    """A child that has ended and is not reaped, always the same until it is; 0 if none."""
    try:
        ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return 0
    return ended.si_pid if ended else 0


def reap_stranger(pid: int) -> bool:
    """Reap a child that has ended, unless it is of our own session."""
    try:
        if os.getsid(pid) == os.getsid(0):
            return False
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG) is not None
    except (ProcessLookupError, ChildProcessError):
        return False
