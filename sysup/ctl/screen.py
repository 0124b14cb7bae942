"""A whole terminal for one program: taken, drawn on, and always given back as it was.

Given back means on a normal end, an exception, Ctrl-C, Ctrl-Z (and taken again when the program
goes on), SIGTERM and SIGHUP. Only SIGKILL leaves it; `reset` helps.
"""

from __future__ import annotations

import os
import signal
import termios
import tty
from collections.abc import Iterable
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any

ENTER = "\x1b[?1049h\x1b[?25l"
"""The alternate screen, no cursor (xterm's control sequences, which all now understand)."""
LEAVE = "\x1b[?25h\x1b[?1049l"
HOME, END_OF_LINE, END_OF_SCREEN = "\x1b[H", "\x1b[K", "\x1b[J"
ENDING = (signal.SIGTERM, signal.SIGHUP)
KEYS = {
    "\x1b[A": "up",
    "\x1b[B": "down",
    "\x1bOA": "up",
    "\x1bOB": "down",
    "\x1b[5~": "page up",
    "\x1b[6~": "page down",
    "\x1b[H": "home",
    "\x1b": "escape",
}
FALLBACK = os.terminal_size((80, 24))


class Screen:
    """The terminal of descriptors `source` and `drain`, as a context.

    Attributes:
        wake: a descriptor that is readable when the size has changed, or the program goes on.
    """

    def __init__(self, source: int, drain: int) -> None:
        self._source = source
        self._drain = drain
        self._before: list[Any] = []
        self._handlers: dict[int, Any] = {}
        self._taken = False
        self.wake, self._woken = -1, -1

    def __enter__(self) -> Screen:
        self._before = termios.tcgetattr(self._source)
        self.wake, self._woken = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            for signum in ENDING:
                self._handlers[signum] = signal.signal(signum, self._end)
            self._handlers[signal.SIGTSTP] = signal.signal(signal.SIGTSTP, self._pause)
            self._handlers[signal.SIGWINCH] = signal.signal(signal.SIGWINCH, self._wake_up)
            self._take()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self._give_back()
        for signum, handler in self._handlers.items():
            signal.signal(signum, handler)
        for fd in (self.wake, self._woken):
            os.close(fd)

    @property
    def size(self) -> os.terminal_size:
        """Columns and lines."""
        try:
            size = os.get_terminal_size(self._drain)
        except OSError:
            return FALLBACK
        return size if size.columns and size.lines else FALLBACK

    def draw(self, lines: Iterable[str]) -> None:
        """Show these lines, which fit."""
        text = f"{END_OF_LINE}\r\n".join(lines)
        self._write(f"{HOME}{text}{END_OF_LINE}{END_OF_SCREEN}")

    def key(self) -> str:
        """The key that was pressed: its letter, or a name of KEYS."""
        text = os.read(self._source, 64).decode("utf-8", "replace")
        return KEYS.get(text, text[:1])

    def rest(self) -> None:
        """Forget that it was woken."""
        with suppress(BlockingIOError):
            while os.read(self.wake, 64):
                pass

    def _take(self) -> None:
        self._taken = True
        tty.setcbreak(self._source, termios.TCSADRAIN)
        self._write(ENTER)

    def _give_back(self) -> None:
        if self._taken:
            self._taken = False
            with suppress(OSError, termios.error):  # it may be gone
                self._write(LEAVE)
                termios.tcsetattr(self._source, termios.TCSADRAIN, self._before)

    def _write(self, text: str) -> None:
        data = text.encode("utf-8", "replace")
        while data:
            data = data[os.write(self._drain, data) :]

    def _wake_up(self, signum: int, frame: FrameType | None) -> None:
        with suppress(BlockingIOError):
            os.write(self._woken, b"x")

    def _pause(self, signum: int, frame: FrameType | None) -> None:
        self._give_back()
        os.kill(os.getpid(), signal.SIGSTOP)
        self._take()
        self._wake_up(signum, frame)

    def _end(self, signum: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + signum)
