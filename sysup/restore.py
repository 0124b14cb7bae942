"""Goes on where the daemon before ended: its watchers, and the processes that run on.

What a daemon leaves is in its `Estate`; here it is put together again, one watcher after the
other. Whatever can't be gone on with is ended, and said: nothing runs that nobody knows.
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any

from sysup import config
from sysup.board import Board
from sysup.body import Inherited
from sysup.config import Config, WatcherSpec
from sysup.diary import about
from sysup.estate import Estate
from sysup.process import OS, Unclear
from sysup.protocol import SysupError
from sysup.watcher import Watcher

log = logging.getLogger("sysup.restore")

MOST_NAMED = 10
"""Processes that a line of the log names."""

LOOK_AGAIN = 0.01
"""Seconds between two looks where one was not clear."""

Adopt = Callable[[WatcherSpec, Mapping[str, Any] | None], Watcher]


def restore_watchers(
    estate: Estate, loaded: Config, board: Board, adopt: Adopt
) -> list[Coroutine[Any, Any, Any]]:
    """Make the watchers that were, `adopt` each, and hand it what is of it.

    Returns the commands that waited for their turns, to be carried out.

    Args:
        loaded: the config that the daemon before had read.
    """
    bodies: dict[str, list[Inherited]] = {}
    for (serial,), record in estate.ledger.find("body"):
        if inherited := inherit(estate, board.os, int(serial), record):
            bodies.setdefault(record["watcher"], []).append(inherited)
    places: dict[str, list[tuple[int, Any]]] = {}
    for (name, wid), saved in estate.ledger.find("place"):
        places.setdefault(str(name), []).append((int(wid), saved))
    watchers: dict[str, Watcher] = {}
    for (name,), record in estate.ledger.find("watcher"):
        try:
            spec = restored_spec(loaded, str(name), record)
        except SysupError as error:
            log.error("cannot go on with %s: %s", name, error, extra=about(str(name)))
            continue
        watcher = watchers[spec.name] = adopt(spec, record["added"])
        watcher.restore(record, places.get(spec.name, ()), bodies.pop(spec.name, ()))
    for orphan in (body for several in bodies.values() for body in several):
        orphan.give_up(board.os)
        estate.ledger.drop(("body", orphan.serial))
    if cgroups := board.setting.cgroups:
        # A child may have been born when the end came, before it was noted anywhere.
        known = {body.cgroup.path for body in board.known_bodies() if body.cgroup}
        for stray in cgroups.strays(known):
            stray.kill()
    return resumed(estate, watchers)


def resumed(estate: Estate, watchers: Mapping[str, Watcher]) -> list[Coroutine[Any, Any, Any]]:
    """What was asked of the watchers and waited for its turn, in the order in which it came."""
    work = []
    for (name, number), words in sorted(estate.ledger.find("asked")):
        if watcher := watchers.get(str(name)):
            work += watcher.resume(int(number), words)
        else:
            estate.ledger.drop(("asked", name, number))
    return work


def restored_spec(loaded: Config, name: str, record: Mapping[str, Any]) -> WatcherSpec:
    """What a watcher was, by its config and what it saved.

    Raises SysupError when that can't be any more.
    """
    if record["added"] is not None:
        spec = config.add(**record["added"], flapping=loaded.flapping)
    elif name in loaded.watchers:
        spec = loaded.watchers[name]
    else:
        raise SysupError(f"{name} is not in the config")
    return config.with_options(spec, record["overrides"])


def inherit(estate: Estate, system: OS, serial: int, record: Mapping[str, Any]) -> Inherited | None:
    """The descriptors of a process; None when it has ended and left none."""
    words, fds = estate.claim("body", serial) or ([], [])
    pipes = dict(zip(words, fds[1:], strict=True))
    if found := estate.claim("stdin", serial):
        pipes["stdin"] = found[1][0]
    if not fds:
        process = system.adopt(record["pid"], record["start"])
        if process is None:
            estate.ledger.drop(("body", serial))
            return None
        fds = [process.pidfd]
    return Inherited(serial, record, fds[0], pipes)


def end_left_behind(system: OS, records: Iterable[Mapping[str, Any]]) -> None:
    """End the processes of a daemon that was killed in the foreground, and all below them.

    What they wrote since then is lost: nobody has the other ends of their pipes.
    """
    dead, ended = {}, []
    for record in records:
        dead[record["pid"]] = record["marker"]
        if process := system.adopt(record["pid"], record["start"]):
            system.signal(process, signal.SIGKILL)
            system.close(process)
            ended.append(process.pid)
    if ended:
        pids = ", ".join(map(str, ended[:MOST_NAMED])) + (", ..." if ended[MOST_NAMED:] else "")
        what = "process" if len(ended) == 1 else f"{len(ended)} processes"
        log.warning("ending %s that the daemon before left: %s", what, pids)
    while dead:
        try:
            left = system.leftovers(dead, ())
        except Unclear:
            time.sleep(LOOK_AGAIN)
            continue
        for pid in {pid for pids in left.values() for pid in pids}:
            system.kill(pid)
        return
