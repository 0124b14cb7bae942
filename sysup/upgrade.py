"""One program takes the place of another in the same process (execve(2)).

The pid stays, so children stay children, and systemd sees the same main process. What the new
program needs it inherits, as `estate` has it. Before, it is run once beside the old one, to show
that it can go on from here: one that can't leaves all as it is.
"""

from __future__ import annotations

import asyncio
import os
import sys
from asyncio import subprocess
from collections.abc import Sequence

from sysup import __version__
from sysup.config import Config
from sysup.estate import HANDED_OVER, STATE
from sysup.ledger import Ledger
from sysup.protocol import SysupError
from sysup.restore import restored_spec

SELF_TEST = "--self-test"
TEST_WITHIN = 30.0
"""Seconds that the self-test may take."""


def program() -> list[str]:
    """How the present program was started, interpreter and all."""
    return [sys.executable, *sys.orig_argv[1:]]


async def self_test(argv: Sequence[str], state: int) -> str:
    """Have a program say that it can go on from a state; returns its version.

    Raises SysupError with its reason when it can't.
    """
    what = "cannot upgrade: the new program"
    try:
        test = await subprocess.create_subprocess_exec(
            *argv,
            SELF_TEST,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, HANDED_OVER: f"{STATE}:{state}"},
            pass_fds=[state],
        )
    except OSError as error:
        raise SysupError(f"{what} can't be executed: {error.strerror}") from None
    try:
        output, errors = await asyncio.wait_for(test.communicate(), TEST_WITHIN)
    except TimeoutError:
        test.kill()
        raise SysupError(f"{what} does not end its self-test") from None
    if test.returncode:
        lines = errors.decode(errors="replace").strip().splitlines()
        raise SysupError(f"{what} fails its self-test: {lines[-1] if lines else 'no reason given'}")
    return output.decode(errors="replace").strip()


def answer_self_test(loaded: Config, ledger: Ledger | None) -> str:
    """As the new program: see that all watchers can be gone on with; returns the version.

    Raises SysupError when one can't.
    """
    for (name,), record in ledger.find("watcher") if ledger else ():
        restored_spec(loaded, str(name), record)
    return __version__


def become(argv: Sequence[str], handed: str) -> None:
    """Execute a program in this process; returns only by OSError."""
    os.execve(argv[0], list(argv), {**os.environ, HANDED_OVER: handed})
