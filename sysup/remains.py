"""How dead processes are cleared away.

The end of a process is not the end of its work: children that it left may live on, and bytes
that it wrote may still be in the pipes. `Remains` sees to both, for all watchers at once, and
says when nothing is left:

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
import logging
from collections.abc import Callable, Collection
from functools import partial

from sysup.body import Body
from sysup.pace import Backlog
from sysup.process import OS, Unclear
from sysup.protocol import SysupError

log = logging.getLogger("sysup.remains")

FIRST_LOOK = 0.01
"""Seconds between a death and the look through /proc; more deaths join in meanwhile."""
LAZY_LOOK = 0.25
"""The same where nobody waits for it: after a crash the successor is there already."""
LOOK_SHARE = 5
"""A look that took t seconds is not repeated within LOOK_SHARE * t."""


class Remains:
    """Clears dead bodies away.

    Args:
        loop: the daemon's loop.
        os: the seam to the system.
        mains: the pids of all processes that live in slots; never touched here.
        backlog: where what comes after a release, which may be a start, waits for its turn.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        os: OS,
        mains: Callable[[], Collection[int]],
        backlog: Backlog,
    ) -> None:
        self._loop = loop
        self._os = os
        self._mains = mains
        self._backlog = backlog
        self._bodies: dict[int, Body] = {}
        self._look: asyncio.TimerHandle | None = None
        self._looking = False
        """Whether a look is under way."""
        self._not_before = 0.0
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def bodies(self) -> list[Body]:
        """What is being cleared away."""
        return list(self._bodies.values())

    async def cleared(self) -> None:
        """Wait until nothing is left of anybody."""
        await self._empty.wait()

    def clear(
        self, body: Body, scope: str, on_released: Callable[[int], None], *, awaited: bool
    ) -> None:
        """Begin with a body whose process has ended; `on_released(serial)` when it is gone.

        `scope` is the watcher's `stop_scope`: how much of the tree goes with the process.
        `awaited`: a stop is not over before.
        """
        body.dead = True
        body.on_released = on_released
        self._bodies[body.serial] = body
        self._empty.clear()
        if scope == "main" or body.failure:
            body.tree_empty = True
        else:
            self._kill(self._os.kill_group, body.process.pid)
            body.tree_empty = scope == "group" or self._clears_group(body)
        if not body.tree_empty:
            self._plan_look(FIRST_LOOK if awaited else LAZY_LOOK)
        self._loop.call_soon(self.check, body)

    def abandon(self, body: Body) -> None:
        """Wait no longer for its pipes: read what is there and close them.

        Nobody waits for its tree either; but that is looked for and killed until it is empty.
        """
        for stream in body.streams:
            if not stream.ended:
                stream.close()
        body.abandoned, body.on_released = True, None
        self.check(body)

    def check(self, body: Body) -> None:
        """Something of the body may have ended: tell those who wait for it."""
        if body.read_out:
            body.tell_output()
        if body.dead and body.tree_empty and (body.read_out or body.abandoned):
            self._backlog.put(partial(self._bury, body))

    def _bury(self, body: Body) -> None:
        if self._bodies.pop(body.serial, None) is None:
            return  # it was told so more than once
        if body.cgroup:
            body.cgroup.remove()
        body.on_buried()
        if not self._bodies:
            self._empty.set()
        if body.on_released:
            release, body.on_released = body.on_released, None
            release(body.serial)

    def _clears_group(self, body: Body) -> bool:
        """Kill what is left in the cgroup of a body; whether nothing was."""
        if body.cgroup is None:
            return False
        if body.cgroup.remove():
            return True
        self._kill(body.cgroup.kill)
        return False

    def _kill(self, how: Callable[..., object], *args: int) -> bool:
        """False for what may not be killed (it became another user): it is told, and not
        waited for."""
        try:
            how(*args)
        except SysupError as error:
            log.error("%s", error)
            return False
        return True

    def _plan_look(self, delay: float) -> None:
        when = max(self._loop.time() + delay, self._not_before)
        if self._look is not None and self._look.when() > when:
            self._look.cancel()
            self._look = None
        if self._look is None:
            self._look = self._loop.call_at(when, self._look_for_trees)

    def _look_for_trees(self) -> None:
        self._look = None
        if self._looking:
            self._plan_look(FIRST_LOOK)
            return
        begun = self._loop.time()
        for body in [body for body in self._bodies.values() if body.cgroup]:
            if not body.tree_empty and self._clears_group(body):
                body.tree_empty = True
                self.check(body)
        searched = [b for b in self._bodies.values() if not b.tree_empty and b.cgroup is None]
        if not searched:
            self._end_look(begun)
            return
        dead = {body.process.pid: body.marker for body in searched}
        fleeing = self._os.chase(dead, self._mains())
        # In a thread of its own: of thousands of processes it takes 10 ms. Who is started meanwhile
        # is none of these, as it has a session and a marker of its own.
        self._looking = True
        look = self._loop.run_in_executor(None, self._os.leftovers, dead, frozenset(self._mains()))
        look.add_done_callback(partial(self._judge, searched, fleeing, begun))

    def _judge(
        self,
        searched: list[Body],
        fleeing: set[int],
        begun: float,
        look: asyncio.Future[dict[int, set[int]]],
    ) -> None:
        """Kill what was found; who has nothing left is through."""
        self._looking = False
        try:
            left = look.result()
        except Unclear:
            self._plan_look(FIRST_LOOK)
            return
        except SysupError as error:  # no descriptor to read /proc by; there will be one
            log.error("%s", error)
            self._plan_look(LAZY_LOOK)
            return
        for body in searched:
            pids = left.get(body.process.pid, set())
            killed = [pid for pid in pids if self._kill(self._os.kill, pid)]
            body.tree_empty = not killed and body.process.pid not in fleeing
            self.check(body)
        self._end_look(begun)

    def _end_look(self, begun: float) -> None:
        if not self._backlog:  # else a dead main is before them, and they are to be searched
            self._os.reap_strangers(self._mains())
        now = self._loop.time()
        self._not_before = now + LOOK_SHARE * (now - begun)
        if any(not body.tree_empty for body in self._bodies.values()):
            self._plan_look(FIRST_LOOK)
