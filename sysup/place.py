"""A slot with what is kept of it, and what `status` tells of it and of all slots together.

A thousand slots are to be told in a millisecond. So all of it that does not change as time passes
is kept as JSON, until the slot changes.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from sysup.body import Body
from sysup.machine import State
from sysup.plan import Slot

WAITING = (State.BACKOFF, State.FLAPPING)


class Row(NamedTuple):
    """A slot as JSON; with a stamp, the seconds since or until then and a } are to follow."""

    head: str
    since: float | None = None
    until: float | None = None


@dataclass
class Place(Slot):
    """A slot with what is kept of it here."""

    body: Body | None = None
    timer: asyncio.TimerHandle | None = None
    luck: float = 0.0
    """In [0, 1), drawn once for each process: its share of `max_age_variance`."""
    output: str = ""
    _rows: dict[str | None, Row] = field(default_factory=dict)
    """As it is told, by what stands for its output."""

    @property
    def since(self) -> float | None:
        """When its process was started."""
        return self.life.started if self.life.alive else None

    @property
    def until(self) -> float | None:
        """When it is tried again."""
        return self.life.deadline if self.life.state in WAITING else None

    def describe(self, now: float) -> dict[str, Any]:
        """What `status` tells about it."""
        return {**self._facts(None), "uptime": _since(self, now), "retry_in": _until(self, now)}

    def cancel_timer(self) -> None:
        """Wait for no deadline any more."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def row(self, hidden: str | None) -> Row:
        """The same as JSON; `hidden` stands for its output, if that is not to be seen."""
        row = self._rows.get(hidden)
        if row is None:
            row = self._rows[hidden] = self._written(hidden)
        return row

    def changed(self) -> None:
        """What was told of it is not so any more."""
        self._rows.clear()

    def _facts(self, hidden: str | None) -> dict[str, Any]:
        life, output = self.life, self.output or None
        return {
            "wid": self.wid,
            "pid": self.body.process.pid if self.body and life.alive else None,
            "state": str(life.state),
            "restarts": life.restarts,
            "tries": life.history.tries,
            "exit_code": life.last_exit,
            "reason": life.reason or None,
            "last_output": hidden if output and hidden else output,
        }

    def _written(self, hidden: str | None) -> Row:
        facts = self._facts(hidden)
        if self.since is not None:
            return Row(f'{json.dumps({**facts, "retry_in": None})[:-1]}, "uptime": ', self.since)
        head = json.dumps({**facts, "uptime": None})[:-1]
        if self.until is not None:
            return Row(f'{head}, "retry_in": ', until=self.until)
        return Row(f'{head}, "retry_in": null}}')


@dataclass(eq=False)
class Tally:
    """What slots are together; it holds until one of them changes."""

    states: frozenset[State]
    ready: int
    restarts: int
    since: float | None
    """When the youngest process was started."""
    until: float | None
    """When the first is tried again."""
    reason: str | None
    places: list[Place]
    _rows: dict[str | None, list[Row]] = field(default_factory=dict)
    _facts: Mapping[str, Any] | None = None
    """Of the watcher, as `_head` has them."""
    _head: str = ""

    @classmethod
    def of(cls, places: Collection[Place]) -> Tally:
        """Take it."""
        ordered = sorted(places, key=lambda place: place.wid)
        lives = [place.life for place in ordered]
        retries = [at for place in ordered if (at := place.until) is not None]
        return cls(
            frozenset(life.state for life in lives),
            sum(life.state is State.RUNNING for life in lives),
            sum(life.restarts for life in lives),
            max((life.started for life in lives if life.alive), default=None),
            min(retries, default=None),
            next((life.reason for life in lives if life.reason), None),
            ordered,
        )

    def describe(self, now: float) -> dict[str, Any]:
        """What `status` tells about them together."""
        return {**self._lasting(), "uptime": _since(self, now), "retry_in": _until(self, now)}

    def written(self, facts: Mapping[str, Any], now: float) -> str:
        """The same and `facts` as JSON, but for the } at the end."""
        if facts != self._facts:
            self._facts, self._head = facts, json.dumps({**facts, **self._lasting()})[:-1]
        uptime = "null" if self.since is None else f"{now - self.since:.3f}"
        retry_in = "null" if self.until is None else f"{max(0.0, self.until - now):.3f}"
        return f'{self._head}, "uptime": {uptime}, "retry_in": {retry_in}'

    def _lasting(self) -> dict[str, Any]:
        return {"ready": self.ready, "restarts": self.restarts, "reason": self.reason}

    def rows(self, now: float, hidden: str | None) -> str:
        """What it tells about each of them, as a JSON list."""
        if hidden not in self._rows:
            self._rows[hidden] = [place.row(hidden) for place in self.places]
        rows = [
            f"{head}{now - since:.3f}}}"
            if since is not None
            else head
            if until is None
            else f"{head}{max(0.0, until - now):.3f}}}"
            for head, since, until in self._rows[hidden]
        ]
        return f"[{', '.join(rows)}]"


def _since(what: Place | Tally, now: float) -> float | None:
    return None if what.since is None else round(now - what.since, 3)


def _until(what: Place | Tally, now: float) -> float | None:
    return None if what.until is None else round(max(0.0, what.until - now), 3)
