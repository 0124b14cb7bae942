"""What the daemon sets of itself, so that it can look after others."""

from __future__ import annotations

import fcntl
import os
import resource
import signal
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from sysup._native import lib
from sysup.protocol import SysupError

FEWEST_FILES = 64
"""Descriptors that the daemon itself needs at most, and some for its processes."""
ROOM = 1 << 14
"""Descriptors that the table is made for: it has 8 bytes for each."""
MOST_PRECEDENCE = -20
SESSION_PRECEDENCE = -8
"""Of the daemon's session, with the pump in it: six times the weight of another one. With much
more, processes that write all the time would never have to wait for who reads that."""


def become_subreaper() -> None:
    """Be given the orphans below us, and the exit status of our children.

    Who starts the daemon may ignore SIGCHLD, and that is inherited; children would
    then vanish without a status (waitpid(2), NOTES).
    """
    if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    rc = lib.become_subreaper()
    if rc < 0:
        raise SysupError(f"cannot become a subreaper: {os.strerror(-rc)}")


def raise_nofile() -> tuple[int, int]:
    """Let the daemon have as many descriptors as it may; returns (soft, hard) as they were.

    Children are to get these: a high soft limit slows old programs that close all
    they may have, and breaks those that use select(2).

    Raises SysupError when it may have fewer than FEWEST_FILES: where libzmq finds none left
    for its own needs, it aborts.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < FEWEST_FILES and hard != resource.RLIM_INFINITY:
        raise SysupError(
            f"cannot run with {hard} open files: raise the limit (ulimit -n) to {FEWEST_FILES} "
            "and 3 for each process"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    make_room(hard)
    return soft, hard


def make_room(most: int) -> None:
    """Have the table of descriptors grow now, before there are threads.

    Later it grows when it is full, by doubling, and who needs the next descriptor then waits until
    no other thread reads the old table: 10 to 20 ms each time (expand_fdtable() in the kernel).
    """
    room = ROOM if most == resource.RLIM_INFINITY else min(ROOM, most)
    with suppress(OSError):  # there need not be so many
        os.close(fcntl.fcntl(2, fcntl.F_DUPFD_CLOEXEC, room - 1))


def own_directory(environ: Mapping[str, str]) -> str:
    """The directory that the daemon is in, by the name that its shell had for it if that leads
    there; "" if it is gone."""
    shown = environ.get("PWD", "")
    with suppress(OSError):
        if os.path.isabs(shown) and os.path.samefile(shown, "."):
            return shown
    with suppress(OSError):
        return os.getcwd()
    return ""


def set_nice(nice: int) -> None:
    """Have this thread, and those that it makes, be so nice (setpriority(2)), if it may."""
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, nice)


def take_precedence() -> None:
    """Have this thread, and those that it makes, get a processor before others.

    Hundreds of children that want processors would else have the loop wait for its turn among
    them, up to seconds. Where the kernel gives each session the same (sched(7), autogroup), and
    ours is the daemon's alone, that gets some precedence as well. What may not be is left.
    """
    set_nice(MOST_PRECEDENCE)
    if os.getsid(0) == os.getpid():
        with suppress(OSError):
            Path("/proc/self/autogroup").write_text(str(SESSION_PRECEDENCE))
