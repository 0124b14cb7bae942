"""What a command is, and who may give which.

The functions themselves are in commands.py. One gets the app and the request's properties; it
returns the fields of the reply, or `Later` with work whose end a `waiting` client is told; what it
raises is the reason of an error reply.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from sysup.config import Role
from sysup.properties import Properties
from sysup.protocol import AccessDenied, Request, UnknownCommand
from sysup.roster import Roster
from sysup.watcher import Watcher

RANK = {Role.READ: 1, Role.OPERATE: 2, Role.ADMIN: 3}
"""Each role includes those of lower rank."""

Reply: TypeAlias = Mapping[str, Any]


class App(Protocol):
    """What the daemon offers to the commands."""

    watchers: dict[str, Watcher]
    roster: Roster

    @property
    def takeovers(self) -> int: ...
    @property
    def changed_files(self) -> list[str]: ...
    @property
    def kept(self) -> Reply: ...
    def plan_reload(self) -> Coroutine[Any, Any, Reply]: ...
    async def save(self, watcher: Watcher, options: Mapping[str, Any]) -> str: ...
    def differences(self) -> Coroutine[Any, Any, Reply]: ...
    def reload_config(self) -> Coroutine[Any, Any, Reply]: ...
    def upgrade(self) -> Coroutine[Any, Any, Reply]: ...
    def quit(self) -> None: ...
    async def ended(self) -> None: ...
    def options(self) -> Mapping[str, Any]: ...
    def sockets(self) -> list[Mapping[str, Any]]: ...
    def own_stats(self) -> Any: ...
    async def stats(self, watchers: list[Watcher]) -> dict[str, dict[str, Any]]: ...


@dataclass(frozen=True)
class Later:
    """Work that goes on; `at_once` are the fields for a client that doesn't wait."""

    work: Coroutine[Any, Any, Reply]
    at_once: Reply = field(default_factory=dict)


class Soon(Later):
    """Work that lets others have their turns; every client gets its reply at the end."""


Handler: TypeAlias = Callable[[App, Properties], Reply | Later]


@dataclass(frozen=True)
class Command:
    """A row of the table."""

    role: Role
    run: Handler

    @property
    def help(self) -> str:
        """What it does, in a line."""
        return (self.run.__doc__ or "").strip().splitlines()[0]


class Table(dict[str, Command]):
    """Commands by name."""

    def enter(self, role: Role) -> Callable[[Handler], Handler]:
        """Enter a function in the table, under its name."""

        def enter(function: Handler) -> Handler:
            name = getattr(function, "__name__", "").rstrip("_")
            self[name] = Command(role, function)
            return function

        return enter

    def changes(self, request: Request) -> bool:
        """Whether a command does more than to read."""
        entry = self.get(request.command)
        return entry is not None and entry.role is not Role.READ

    def run(
        self, app: App, request: Request, role: Role, remedy: str = "ask for more"
    ) -> Reply | Later:
        """Run a command for a peer of this role; raises SysupError with the reason it can't.

        `remedy`: what a peer can do whose role is too small.
        """
        entry = self.get(request.command)
        if entry is None:
            raise UnknownCommand(f"unknown command: '{request.command}'")
        if RANK[role] < RANK[entry.role]:
            raise AccessDenied(
                f"permission denied: {request.command} needs the role '{entry.role}', you have "
                f"'{role}'; {remedy}"
            )
        return entry.run(app, Properties(request.properties, role))
