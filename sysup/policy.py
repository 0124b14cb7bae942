"""What the options say of a process's life: what its end is answered by, and how long what takes.

A death counts unless it was commanded. The first one after a stable run is answered at once,
further ones with growing delays, and `flapping.attempts` of them within `flapping.window` seconds
are a crash loop: its waits double, too, and after the last try it is given up.

Arithmetic alone: which state a slot is in meanwhile, and what else can happen, is the machine's
(machine.py).
"""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from sysup.config import Restart, WatcherSpec

EXEC_TIMEOUT = 30.0
"""Seconds that a process may take to execute its program: its directory or program may be on
a server that does not answer."""
EXEC_TIMEOUT_STOPPING = 1.0
"""The same if it is to be stopped."""
KILL_AGAIN = 5.0
"""Seconds until SIGKILL is sent once more to what has not died of it (a process in an
uninterruptible sleep, or one that forked while it was killed)."""


class Answer(StrEnum):
    """What a death that counts is answered by."""

    RETRY = "retry"
    """A new process at once."""
    WAIT = "wait"
    """A new one after a delay."""
    SUSPECT = "suspect"
    """It is a crash loop: a new one on trial, after a delay."""
    GIVE_UP = "give up"


@dataclass
class History:
    """Deaths that count. One for each slot, or one for a watcher (`flapping.scope`).

    `waited` is the time spent in back-off. The window leaves it out: else the growing
    waits would draw the deaths of a crash loop apart and hide it.
    """

    deaths: deque[float] = field(default_factory=deque)
    tries: int = 0
    on_trial: bool = False
    waited: float = 0.0

    def forget(self) -> None:
        """A clean record: after a command, or a stable run."""
        self.deaths.clear()
        self.tries = 0
        self.on_trial = False
        self.waited = 0.0

    def record(self) -> dict[str, Any]:
        """All of it, as JSON can say it."""
        return {**vars(self), "deaths": list(self.deaths)}

    @classmethod
    def restored(cls, record: Mapping[str, Any]) -> History:
        """From a `record`."""
        return cls(deque(record["deaths"]), record["tries"], record["on_trial"], record["waited"])

    def is_crash_loop(self, spec: WatcherSpec, now: float, uptime: float) -> bool:
        """Note a death and say whether it makes a crash loop.

        A try after a wait is a crash loop again by a single death within the window.
        """
        flapping = spec.flapping
        stamp = now - self.waited
        self.deaths.append(stamp)
        while self.deaths[0] < stamp - flapping.window:
            self.deaths.popleft()
        on_trial = self.on_trial and uptime < flapping.window
        self.on_trial = False
        return flapping.active and (on_trial or len(self.deaths) >= flapping.attempts)


def restarts(spec: WatcherSpec, status: int | None) -> bool:
    """Whether the restart policy wants a new process after this end."""
    if spec.restart is Restart.NEVER or status in spec.restart_prevent:
        return False
    return spec.restart is Restart.ALWAYS or status not in spec.success_codes


ENDING_SIGNALS = frozenset(
    {signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGKILL}
)


def is_commanded(status: int | None, signals: frozenset[int]) -> bool:
    """Whether an end is what a client's signals asked for.

    A program may answer SIGTERM by any exit code, so after such a signal every end is
    taken for the answer; after another one, say SIGUSR1, only a death of that very signal.
    """
    return bool(signals & ENDING_SIGNALS) or (status is not None and -status in signals)


def counts(spec: WatcherSpec, status: int | None, expected: frozenset[int], uptime: float) -> bool:
    """Whether an end is a failure: nobody asked for it by the signals that were `expected`.

    One of which nobody knows how it came about is a failure only if it came at once.
    """
    unclear = status is None and uptime >= spec.flapping.window
    return not (unclear or is_commanded(status, expected))


def is_stable(spec: WatcherSpec, uptime: float) -> bool:
    """Whether a process ran so long that what was before is forgotten."""
    return uptime > 0.0 and uptime >= max(spec.stable_after, spec.flapping.window)


def after_death(
    spec: WatcherSpec,
    history: History,
    failures: int,
    now: float,
    uptime: float,
    rand: Callable[[], float],
) -> tuple[Answer, float]:
    """The answer to a death that counts, the last of so many failures in a row, and its delay."""
    if history.is_crash_loop(spec, now, uptime):
        limit = spec.flapping.max_retry
        limit = spec.max_retry if limit is None else limit
        if 0 <= limit <= history.tries:
            return Answer.GIVE_UP, 0.0
        history.tries += 1
        history.on_trial = True
        flapping = spec.flapping
        delay = grown(flapping.retry_in, history.tries - 1, flapping.retry_max)
        return Answer.SUSPECT, jittered(spec, delay, rand)
    if failures == 1:
        return Answer.RETRY, 0.0
    delay = grown(spec.backoff_delay, failures - 2, spec.backoff_max)
    return Answer.WAIT, jittered(spec, delay, rand)


def grown(base: float, doublings: int, most: float) -> float:
    """A delay that was doubled so often, at most `most`."""
    return min(base * 2.0 ** min(doublings, 64), most)


def jittered(spec: WatcherSpec, delay: float, rand: Callable[[], float]) -> float:
    """A delay, and up to `backoff.jitter` of it more."""
    return delay * (1.0 + spec.backoff_jitter * rand())


# ---- how long ---------------------------------------------------------------------------


def ready_delay(spec: WatcherSpec) -> float:
    """Seconds a process must run to count as ready; 0 = as soon as it is spawned."""
    kind, _, seconds = spec.ready.partition(":")
    return float(seconds) if kind == "uptime" else 0.0


def exec_timeout(stage: int, *, stopping: bool) -> float:
    """Seconds that a process may be on the way to its program, until SIGKILL; then until SIGKILL
    once more."""
    if stage:
        return KILL_AGAIN
    return EXEC_TIMEOUT_STOPPING if stopping else EXEC_TIMEOUT


def stage_timeout(spec: WatcherSpec, stage: int) -> float:
    """Seconds from the signal of a stage of a stop to that of the next, or to SIGKILL once more."""
    if stage >= len(spec.stop_signal):
        return KILL_AGAIN
    timeout = spec.stop_signal[stage].timeout
    return spec.graceful_timeout if timeout is None else timeout


# ---- in words ---------------------------------------------------------------------------


def describe_exit(status: int | None) -> str:
    """An exit status in words."""
    if status is None:
        return "ended, nobody knows how"
    if status >= 0:
        return f"exit code {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"
