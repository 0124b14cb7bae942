"""The `sysupd` fixture: real daemons, with nothing left of them afterwards."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.harness import Daemon, become_subreaper, descendants, until

Start = Callable[..., Daemon]
"""start(ini, app="app", env=None, wait=True, inside=(), listen=()) -> Daemon"""


GONE_WITHIN = 10.0
"""Seconds that what a daemon has killed at its end may take, on a loaded machine."""


def watchers(daemon: Daemon) -> list[dict[str, Any]]:
    return list(daemon.call("status", processes=True)["watchers"].values())


def is_begun(watcher: dict[str, Any]) -> bool:
    """Whether all its processes were started, or tried to be."""
    return bool(watcher["want"] == "down" or len(watcher["processes"]) >= watcher["numprocesses"])


@pytest.fixture
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runtime directory of the daemons of a test."""
    return tmp_path_factory.mktemp("run")


@pytest.fixture
def sysupd(tmp_path: Path, runtime: Path) -> Iterator[Start]:
    """Start daemons in `tmp_path`; they end with the test, and must leave no process behind.

    `start` returns once the daemon answers and has begun to start all; with `wait=False` at
    once, for those that are not meant to come up.
    """
    become_subreaper()
    before = descendants(os.getpid()).keys()

    def start(
        ini: str,
        app: str = "app",
        env: Mapping[str, str] | None = None,
        wait: bool = True,
        inside: Sequence[str] = (),
        listen: Sequence[tuple[str, socket.socket]] = (),
    ) -> Daemon:
        made = Daemon(tmp_path, runtime, ini, app, env, inside, listen)
        daemon = daemons.enter_context(made)
        if wait:
            until(lambda: all(map(is_begun, watchers(daemon))), "each place is taken")
        return daemon

    try:
        with ExitStack() as daemons:
            yield start
    finally:
        left = left_behind(before)
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        until(lambda: not living(before), "all that was left has ended")
        reap()
    assert not left, f"left behind: {left}"


def living(before: Collection[int]) -> dict[int, str]:
    """What lives below us that did not before, and what it is."""
    return {pid: line for pid, line in descendants(os.getpid()).items() if pid not in before}


def left_behind(before: Collection[int]) -> dict[int, str]:
    """What goes on living: what was killed takes a moment to be gone."""
    with suppress(AssertionError):
        until(lambda: not living(before), "nothing is left", GONE_WITHIN)
    return living(before)


def reap() -> None:
    """Bury the orphans that came to us, so no other test meets them."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass
