"""What can be asked of several apps at once: one table, in which names are APP/NAME."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from sysup.client import CallError
from sysup.ctl import render
from sysup.ctl.session import NOT_RUNNING, OK, UNREACHABLE, Session, is_well
from sysup.protocol import Errno, SysupError

Sessions = Mapping[str, Session]
Reply = dict[str, Any]


class Asked:
    """The replies of several apps to one question, by app.

    What went wrong is told. That an app has no watcher of a name is not wrong if another has one.
    """

    def __init__(self, sessions: Sessions, command: str, **properties: Any) -> None:
        self.sessions = sessions
        self.replies: dict[str, Reply] = {}
        self.code = OK
        unknown: list[tuple[str, SysupError]] = []
        for app, each in sessions.items():
            try:
                self.replies[app] = each.call(command, **properties)
            except SysupError as error:
                if isinstance(error, CallError) and error.errno is Errno.MESSAGE_ERROR:
                    unknown.append((app, error))
                else:
                    self._tell(app, error)
        if not self.replies:
            for app, reason in unknown:
                self._tell(app, reason)

    def _tell(self, app: str, error: SysupError) -> None:
        self.sessions[app].explain(SysupError(f"{render.clean(app)}: {error}"))
        self.code = UNREACHABLE

    def show(self, here: Session, lines: list[str]) -> None:
        """Print them, as one table or one JSON object."""
        here.show({"apps": self.replies}, lines)

    def merged(self, part: Callable[[Reply], Mapping[str, Any]]) -> dict[str, Any]:
        """That part of all replies, by APP/NAME."""
        found = {}
        for app, reply in self.replies.items():
            found.update({f"{app}/{name}": value for name, value in part(reply).items()})
        return found


def status(here: Session, sessions: Sessions, name: str | None, processes: bool) -> int:
    """How the watchers of all are."""
    asked = Asked(sessions, "status", name=name, processes=True)
    watchers = asked.merged(lambda reply: reply.get("watchers", {}))
    infos: dict[str, Any] = {}
    for app in asked.replies if not (here.json or here.prettify) else ():
        with suppress(SysupError):
            told = sessions[app].call("stats")["infos"]
            infos.update({f"{app}/{watcher}": rows for watcher, rows in told.items()})
    asked.show(here, render.status(watchers, processes, render.usages(infos), here.width))
    well = all(is_well(watcher, named=name is not None) for watcher in watchers.values())
    return asked.code or (OK if well else NOT_RUNNING)


def names(here: Session, sessions: Sessions, name: str | None) -> int:
    """The watchers of all, or the pids of those of one name."""
    asked = Asked(sessions, "list", name=name)
    rows = [
        f"{render.clean(app)}/{render.clean(each)}"
        for app, reply in asked.replies.items()
        for each in reply["watchers" if name is None else "pids"]
    ]
    asked.show(here, rows)
    return asked.code


def stats(here: Session, sessions: Sessions, name: str | None) -> int:
    """Figures of the processes of all."""
    asked = Asked(sessions, "stats", name=name)
    infos = asked.merged(lambda reply: reply["infos"] if name is None else {name: reply["info"]})
    asked.show(here, render.stats(infos))
    return asked.code
