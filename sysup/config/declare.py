"""How an option is declared: as a dataclass field that carries all there is to know of it.

    numprocesses: int = option(Processes(0), 1, "how many processes", impact=Impact.SCALE)

From that one line come the parsing of `numprocesses` in a file, its strict type on the wire,
`get`, `set` and `options`, what a change of it asks for, and its row in the reference page.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import Any, TypeVar

from sysup.config.kinds import Kind, T

D = TypeVar("D")


class Impact(StrEnum):
    """What a running watcher needs when an option has changed."""

    LIVE = "live"
    """Nothing: the new value is used when it is needed next."""
    SCALE = "scale"
    """Processes are started or stopped."""
    LIMITS = "limits"
    """The limits of the running processes are set anew."""
    RELOAD = "reload"
    """The processes are replaced, gracefully."""


@dataclass(frozen=True, slots=True)
class Option:
    """One option; `name` is what files and the wire call it."""

    name: str
    kind: Kind[Any]
    default: Any
    doc: str
    impact: Impact = Impact.LIVE
    circus: Any = None
    """The default in a file with a [circus] section, where that is another."""
    old: tuple[str, Kind[Any]] | None = None
    """Another name that the option had, and how that was written."""
    where: str = "file and wire"
    """`file`: not to be set on the wire. `wire`: not an option of files."""
    attr: str = ""
    """The field it is kept in."""
    group: str = ""
    """The field that holds the dataclass with that field, if it is not the spec itself."""
    alias: bool = False
    """Whether this is the old name of another option."""

    def read(self, text: str) -> Any:
        """The value of a file's text; ValueError with the reason if it has none."""
        if not text and self.default is None and not self.kind.takes_empty:
            return None
        return self.kind.text(text)

    def wire(self, value: object) -> Any:
        """The value of a JSON value; ValueError with the reason if it has none."""
        empty = value is None or (value == "" and not self.kind.takes_empty)
        if empty and self.default is None:
            return None
        return self.kind.wire(value)

    def plain(self, value: Any) -> Any:
        """The value as JSON has it."""
        return None if value is None else self.kind.plain(value)

    def of(self, spec: Any) -> Any:
        """Its value in `spec`."""
        return getattr(getattr(spec, self.group) if self.group else spec, self.attr)


@dataclass(frozen=True, slots=True)
class Family:
    """Options that share a beginning: `rlimit_nofile`, `rlimit_core`, ..."""

    prefix: str
    names: Collection[str]
    """What may follow; empty: anything."""
    kind: Kind[Any]
    doc: str
    impact: Impact = Impact.LIVE


def option(kind: Kind[T], default: D, doc: str, *, name: str = "", **rest: Any) -> T | D:
    """A dataclass field that is an option; `rest` are further fields of Option."""
    declared = Option(name, kind, default, doc, **rest)
    if isinstance(default, Mapping):
        field: Any = dataclasses.field(default_factory=dict, metadata={"option": declared})
    else:
        field = dataclasses.field(default=default, metadata={"option": declared})
    return field  # type: ignore[no-any-return]


def group(prefix: str, spec: type[T]) -> T:
    """A dataclass field holding another dataclass, whose options begin with `prefix`."""
    field: Any = dataclasses.field(default_factory=spec, metadata={"group": (prefix, spec)})
    return field  # type: ignore[no-any-return]


@cache
def declared(spec: type, prefix: str = "", inside: str = "") -> Mapping[str, Option]:
    """The options of a dataclass by name, in order of declaration."""
    table: dict[str, Option] = {}
    for field in dataclasses.fields(spec):
        if nested := field.metadata.get("group"):
            table |= declared(nested[1], nested[0], field.name)
        found: Option | None = field.metadata.get("option")
        if found is None:
            continue
        name = found.name or prefix + field.name
        found = dataclasses.replace(found, name=name, attr=field.name, group=inside)
        table[name] = found
        if found.old:
            old, kind = found.old
            table[old] = dataclasses.replace(found, name=old, kind=kind, old=None, alias=True)
    return table
