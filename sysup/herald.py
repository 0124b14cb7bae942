"""What the service manager is told of the app: that it is ready, how it fares, how long it takes.

All of it follows from what the watchers are, at one look (`Census`). Whoever publishes an event
asks for a look; it comes at once, but for PAUSE seconds after another, and says only what is
new. Without events there is no look, and no timer.

READY comes when what starts by itself has come as far as `ready_when` says. A process that
has crashed, waits for its retry or was given up is a verdict, too, and holds nobody up: a start
that hangs on the worst process of a hundred would be ended by systemd with all the others.

A start or stop may take longer than systemd allows by itself. It is given more time (`extend`)
when it has come further than ever before, and as much as the next step may take by the options.
Each of that happens a limited number of times, so a start that goes round in circles ends.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

from sysup.config import DaemonSpec, WatcherSpec
from sysup.machine import State, Want
from sysup.place import Place
from sysup.policy import ready_delay, stage_timeout
from sysup.protocol import SysupError
from sysup.pulse import Heart, Pulse
from sysup.systemd import Notifier, watchdog_interval
from sysup.watcher import Watcher

PAUSE = 0.2
"""Seconds between two looks."""
MARGIN = 30.0
"""Seconds that a step of a start or stop may take beyond what the options say."""
TROUBLE = (State.FAILED, State.FLAPPING, State.BACKOFF)
VERDICTS = frozenset({State.RUNNING, State.DONE, *TROUBLE})


class Census(NamedTuple):
    """The slots of an app at one moment.

    Attributes:
        wanted: processes that are to run.
        slots: in each state.
        worst: of each state of TROUBLE, one slot that is in it and why.
        begun: watchers that are to be up.
        launched: whether each of them has started, or tried to, all of its processes.
        settled: whether each of them has come to a verdict on all of its processes.
    """

    wanted: int
    slots: Mapping[State, int]
    worst: Mapping[State, str]
    begun: int
    launched: bool
    settled: bool

    @classmethod
    def take(cls, watchers: Iterable[Watcher]) -> Census:
        """Count."""
        up = [watcher for watcher in watchers if watcher.want is Want.UP]
        places = [(w, p) for w in watchers for _, p in sorted(w.slots.places.items())]
        slots = Counter(place.life.state for _, place in places)
        worst: dict[State, str] = {}
        for watcher, place in places:
            if place.life.state in TROUBLE:
                worst.setdefault(place.life.state, describe(watcher, place))
        return cls(
            wanted=max(0, sum(w.spec.numprocesses for w in up) - slots[State.DONE]),
            slots=slots,
            worst=worst,
            begun=len(up),
            launched=all(is_launched(watcher) for watcher in up),
            settled=all(is_settled(watcher) for watcher in up),
        )

    @property
    def progress(self) -> int:
        """How far a start has come: it only grows while nothing is stopped or dies."""
        verdicts = sum(number for state, number in self.slots.items() if state in VERDICTS)
        return self.begun + self.occupied + verdicts

    @property
    def occupied(self) -> int:
        """Slots that there are."""
        return sum(self.slots.values())

    def __str__(self) -> str:
        """`12/12 ready, 1 flapping: web.3 exit code 1`."""
        parts = [f"{self.slots[State.RUNNING]}/{self.wanted} ready"]
        for state in TROUBLE:
            if number := self.slots[state]:
                parts.append(f"{number} {state}: {self.worst[state]}")
        if done := self.slots[State.DONE]:
            parts.append(f"{done} done")
        return ", ".join(parts)


def is_launched(watcher: Watcher) -> bool:
    """Whether all its processes were started, or can't be."""
    return len(watcher.slots.places) >= watcher.spec.numprocesses or watcher.is_settled


def is_settled(watcher: Watcher) -> bool:
    """Whether all its processes are ready, or have failed to be.

    One that takes long to be ready and dies before, again and again, is never seen at rest.
    """
    lives = [place.life for place in watcher.slots.places.values()]
    known = all(life.state in VERDICTS or life.restarts for life in lives)
    return watcher.is_settled or (known and is_launched(watcher))


def describe(watcher: Watcher, place: Place) -> str:
    """A slot and its trouble."""
    return f"{watcher.name}.{place.wid} {place.life.reason}".rstrip()


def start_step(spec: WatcherSpec) -> float:
    """Seconds that the start of a process may take by its options."""
    by_itself = spec.ready == "spawn" or ready_delay(spec) > 0
    return max(spec.warmup_delay, ready_delay(spec) if by_itself else spec.ready_timeout)


def stop_step(spec: WatcherSpec) -> float:
    """Seconds that the stop of a process may take by its options."""
    stages = range(len(spec.stop_signal) + 1)
    return sum(stage_timeout(spec, stage) for stage in stages) + spec.drain_timeout


class Herald:
    """Who tells.

    Args:
        watchers: those of the app, at any time.
        options: of the daemon.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        notifier: Notifier,
        watchers: Mapping[str, Watcher],
        options: DaemonSpec,
    ) -> None:
        self._loop = loop
        self._notifier = notifier
        self._watchers = watchers
        self._options = options
        self._serving = self._begun = self._ready = self._stopping = False
        self._progress = -1
        self._left: int | None = None
        self._said = ""
        self._failed_reload = ""
        self._timer: asyncio.TimerHandle | None = None
        self._not_before = loop.time()
        self._pulse: Pulse | None = None

    # ---- what has happened ---------------------------------------------------------------

    def serve(self, heart: Heart, endpoint: str) -> None:
        """The control socket is open at `endpoint`: signs of life from now on."""
        self._serving = True
        interval = watchdog_interval(self._notifier.environ())
        if self._notifier.connected and interval is not None:
            alive = self._notifier.watchdog
            self._pulse = Pulse(self._loop, heart, endpoint, interval, alive)
            self._pulse.begin()
        self.changed()

    def begun(self) -> None:
        """All that starts by itself has been told to."""
        self._begun = True
        self.changed()

    def changed(self) -> None:
        """Something is different."""
        if self._notifier.connected and self._timer is None:
            self._timer = self._loop.call_at(self._not_before, self._look)

    @contextmanager
    def reload(self) -> Iterator[None]:
        """The config is being read again and followed."""
        if self._ready:
            self._notifier.reloading()
            self._extend(*map(stop_step, self._specs()))
        try:
            yield
            self.unfollowed("")
        except SysupError as error:
            self.unfollowed(str(error))
            raise
        finally:
            if self._ready and not self._stopping:
                self._tell_ready()
            self.changed()

    def unfollowed(self, why: str) -> None:
        """What of the config does not hold, since an earlier reload; empty: all does."""
        self._failed_reload = f"; {why}" if why else ""

    def stopping(self) -> None:
        """The end has begun."""
        self._stopping = True
        if self._notifier.stopping():
            self._look()

    def close(self) -> None:
        """Nothing more is told."""
        if self._pulse is not None:
            self._pulse.close()
        if self._timer is not None:
            self._timer.cancel()
        self._notifier.close()

    # ---- what is told --------------------------------------------------------------------

    def _look(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._not_before = self._loop.time() + PAUSE
        census = Census.take(self._watchers.values())
        if self._stopping:
            self._tell_stop(census)
        elif self._serving:
            self._tell(census)

    def _tell(self, census: Census) -> None:
        if not self._ready and self._is_ready(census):
            self._tell_ready()
            if not self._ready:
                self.changed()
                return
        if self._ready:
            self._say(f"{census}{self._failed_reload}")
            return
        if census.progress > self._progress:
            self._progress = census.progress
            self._extend(self._options.warmup_delay, *map(start_step, self._specs()))
        self._say(f"starting: {census}")

    def _tell_ready(self) -> None:
        """What systemd waits for: if it finds the queue full, it is told again at the next look."""
        self._ready = self._notifier.ready() or not self._notifier.is_full

    def _tell_stop(self, census: Census) -> None:
        left = census.occupied
        if self._left is None or left < self._left:
            self._left = left
            self._extend(*map(stop_step, self._specs()))
        self._say(f"stopping: {left} process{'' if left == 1 else 'es'} left")

    def _is_ready(self, census: Census) -> bool:
        match self._options.ready_when:
            case "loaded":
                return True
            case "started":
                return self._begun and census.launched
            case _:
                return self._begun and census.settled

    def _specs(self) -> list[WatcherSpec]:
        return [watcher.spec for watcher in self._watchers.values()]

    def _extend(self, *steps: float) -> None:
        self._notifier.extend(max(steps, default=0.0) + MARGIN)

    def _say(self, text: str) -> None:
        if text != self._said and self._notifier.status(text):
            self._said = text
