"""What can happen to a slot, and what its machine asks for: the words between machine.py, which
decides, and slots.py, which does it.

Events that speak of a process carry its `serial`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeAlias, get_args

# ---- events ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Start:
    """Be up. By a command (`afresh`) earlier deaths are forgotten."""

    afresh: bool = True


@dataclass(frozen=True)
class Stop:
    """Be down."""


@dataclass(frozen=True)
class Recycle:
    """End the process, if there is one, and start a fresh one; the death does not count."""


@dataclass(frozen=True)
class Spawned:
    """There is a process, on the way to its program."""

    serial: int


@dataclass(frozen=True)
class SpawnFailed:
    """There is no process, and this is why."""

    reason: str


@dataclass(frozen=True)
class Executed:
    """The process executes its program."""

    serial: int


@dataclass(frozen=True)
class ExecFailed:
    """The process has ended without executing its program, and this is why."""

    serial: int
    reason: str


@dataclass(frozen=True)
class Ready:
    """The process says, or was seen, to be ready."""

    serial: int


@dataclass(frozen=True)
class Signalled:
    """A client had `signum` sent to the process: dying of it would be no crash."""

    serial: int
    signum: int


@dataclass(frozen=True)
class Exited:
    """The process ended: an exit code, -N for signal N, or None when nobody could tell."""

    serial: int
    status: int | None


@dataclass(frozen=True)
class Released:
    """Of a dead process nothing is left: its tree is empty, its pipes are read to the end."""

    serial: int


@dataclass(frozen=True)
class Timeout:
    """The deadline has come."""


Event: TypeAlias = (
    Start
    | Stop
    | Recycle
    | Spawned
    | SpawnFailed
    | Executed
    | ExecFailed
    | Ready
    | Signalled
    | Exited
    | Released
    | Timeout
)
EVENTS: tuple[type[Event], ...] = get_args(Event)


# ---- actions -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Spawn:
    """Start a process; answer with Spawned or SpawnFailed before anything else."""


@dataclass(frozen=True)
class Signal:
    """Send `signum` to the process (and, by the watcher's options, to its children)."""

    signum: int


@dataclass(frozen=True)
class Kill:
    """Send SIGKILL to all that belongs to the process; one on the way to its program is overdue."""


@dataclass(frozen=True)
class Clear:
    """The process is dead: clear its tree and pipes away, then answer Released."""


@dataclass(frozen=True)
class Abandon:
    """The time for clearing away is over: close the pipes though somebody holds them."""


@dataclass(frozen=True)
class Publish:
    """Tell the subscribers."""

    event: str
    fields: dict[str, Any] = field(default_factory=dict)


Action: TypeAlias = Spawn | Signal | Kill | Clear | Abandon | Publish
