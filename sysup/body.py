"""What a process is made of, how it is made, and how it is cleared away when it is dead.

A `Body` is a process with its pipes; a `Mould` makes them for one watcher. The end of a
process is not the end of its work: children that it left may live on, and bytes that it
wrote may still be in the pipes. `Remains` sees to both, for all watchers at once, and says
when nothing is left:

- Its process group is killed at once, by one kill(2). What fled into another session
  has become a child of this daemon, a subreaper (prctl(2), PR_SET_CHILD_SUBREAPER), at
  the latest when its parent died, and is found by the marker in its environment. One
  look through /proc serves all bodies that died lately, so a thousand stops
  don't cost a thousand looks. SIGKILL is repeated until a look finds nothing: a
  process may fork while it is being killed.
- Its pipes are read to their end by the pump. They end by themselves when the tree is
  gone; where they don't (`stop_scope = main`), the lifecycle's deadline abandons them.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import secrets
import signal
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from sysup import config
from sysup.config import WatcherSpec
from sysup.process import OS, Launcher, Process
from sysup.protocol import SysupError
from sysup.streams import Pump, Sink, Stream, open_sink

MARKER = "SYSUP_PROCESS"
"""The variable in each child's environment by which its descendants are known."""
TAIL = 2048
"""Bytes of the newest output that are remembered of each stream."""
FIRST_LOOK = 0.01
"""Seconds between a death and the look through /proc; more deaths join in meanwhile."""
LOOK_SHARE = 5
"""A look that took t seconds is not repeated within LOOK_SHARE * t."""
OUTPUT_LINES = 10


@dataclass
class Body:
    """A process, its pipes, and the marker that its children carry in their environment."""

    serial: int
    process: Process
    marker: str
    scope: str
    streams: list[Stream]
    output: str = ""
    dead: bool = False
    tree_empty: bool = False
    on_output: list[Callable[[str], None]] = field(default_factory=list)
    on_released: Callable[[int], None] | None = None

    @property
    def read_out(self) -> bool:
        """Whether every pipe was read to its end."""
        return all(stream.ended for stream in self.streams)

    def remember_output(self) -> None:
        """Keep the newest lines that it wrote, for status and events."""
        tails = [stream.tail().decode("utf-8", "replace").splitlines() for stream in self.streams]
        share = OUTPUT_LINES // max(1, sum(1 for tail in tails if tail))
        self.output = "\n".join(line for tail in tails for line in tail[-share:])


class Mould:
    """Makes the bodies of one watcher by one set of options.

    What is the same for every process (identity, environment, sinks, limits) is worked
    out once, at the first. Raises SysupError when something can't be: an unknown user, a
    stream class that can't be loaded.
    """


class Remains:
    """Clears dead bodies away.

    Args:
        loop: the daemon's loop.
        os: the seam to the system.
        mains: the pids of all processes that live in slots; never touched here.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        os: OS,
        mains: Callable[[], Collection[int]],
    ) -> None:
        self._loop = loop
        self._os = os
        self._mains = mains
        self._bodies: dict[int, Body] = {}
        self._look: asyncio.TimerHandle | None = None
        self._not_before = 0.0

    def __len__(self) -> int:
        return len(self._bodies)

    def clear(self, body: Body, on_released: Callable[[int], None]) -> None:
        """Begin with a body whose process has ended; `on_released(serial)` when it is gone."""
        body.dead = True
        body.on_released = on_released
        self._bodies[body.serial] = body
        if body.scope == "main":
            body.tree_empty = True
        else:
            self._os.signal_group(body.process.pid, signal.SIGKILL)
            body.tree_empty = body.scope == "group"
        if not body.tree_empty:
            self._plan_look(FIRST_LOOK)
        self._loop.call_soon(self.check, body)

    def abandon(self, body: Body) -> None:
        """Wait no longer for its pipes: read what is there and close them."""
        for stream in body.streams:
            if not stream.ended:
                stream.close()
        self._bodies.pop(body.serial, None)

    def check(self, body: Body) -> None:
        """Something of the body may have ended: tell those who wait for it."""
        if body.read_out and body.on_output:
            body.remember_output()
            waiting, body.on_output = body.on_output, []
            for tell in waiting:
                tell(body.output)
        gone = body.dead and body.tree_empty and body.read_out
        if gone and self._bodies.pop(body.serial, None) and body.on_released:
            body.on_released(body.serial)

    def _plan_look(self, delay: float) -> None:
        if self._look is None:
            when = max(self._loop.time() + delay, self._not_before)
            self._look = self._loop.call_at(when, self._look_for_trees)

    def _look_for_trees(self) -> None:
        self._look = None
        begun = self._loop.time()
        searched = [body for body in self._bodies.values() if not body.tree_empty]
        dead = {body.process.pid: body.marker for body in searched}
        left = self._os.leftovers(dead, self._mains())
        for body in searched:
            pids = left.get(body.process.pid, set())
            for pid in pids:
                self._os.kill(pid)
            body.tree_empty = not pids
            self.check(body)
        self._os.reap_strangers(self._mains())
        now = self._loop.time()
        self._not_before = now + LOOK_SHARE * (now - begun)
        if any(not body.tree_empty for body in self._bodies.values()):
            self._plan_look(FIRST_LOOK)
