"""Which names a pattern means, in bounded time.

Python's `re` tries, where a pattern is made for it (`(a+)+b`), more ways than there is time. It
looks for signals while it does so, in the main thread, which is where the daemon's loop runs: a
timer of processor time ends it.
"""

from __future__ import annotations

import fnmatch
import re
import signal
import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

from sysup.protocol import MessageError

LONGEST = 1000
"""Characters of a pattern."""
TIME = 0.02
"""Seconds that all names together may take."""


class _TooLong(Exception):
    """The time is over."""


def matching(names: Iterable[str], pattern: str, *, regex: bool) -> list[str]:
    """The names that a regex, which ignores case, or a glob means. Raises MessageError."""
    if len(pattern) > LONGEST:
        raise MessageError(f"message invalid 'name' isn't a pattern: longer than {LONGEST}")
    try:
        with _time_limit(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what a later Python may understand otherwise
            text = pattern if regex else fnmatch.translate(pattern)
            compiled = re.compile(text, re.IGNORECASE if regex else 0)
            return [name for name in names if compiled.match(name)]
    except (re.error, OverflowError, RecursionError) as error:
        raise MessageError(f"message invalid 'name' isn't a pattern: {error}") from None
    except _TooLong:
        raise MessageError("message invalid 'name' is a pattern that takes too long") from None


@contextmanager
def _time_limit() -> Iterator[None]:
    """Raise _TooLong when it takes too long; in another thread than the main one nothing does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    is_on = True

    def over(signum: int, frame: FrameType | None) -> None:
        if is_on:  # else it came late: nobody would catch what it raises
            raise _TooLong

    before = signal.signal(signal.SIGVTALRM, over)
    signal.setitimer(signal.ITIMER_VIRTUAL, TIME)
    try:
        yield
    finally:
        is_on = False
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
