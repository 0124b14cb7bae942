"""What is sent to the standard input of processes: whole texts, in order, nobody held up.

A pipe takes what it has room for; the rest is queued here, and written as the process reads.
"""

from __future__ import annotations

import asyncio
import os
import select
import termios
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from sysup.protocol import SysupError

LIMIT = 1 << 20
"""Bytes that may wait for one process."""
CHUNK = 1 << 16
"""Bytes of one write: as many as a pipe holds (pipe(7))."""
LINE = 4095
"""Bytes of a line that a terminal keeps; it drops the others (termios(3), canonical mode)."""
DEAF = "it does not read its input any more"
CTRL_D = b"\x04"


def send(inputs: Sequence[Input], data: bytes, *, eof: bool) -> Coroutine[Any, Any, None]:
    """Send the same to several processes; what is returned ends when all of it is written.

    Raises SysupError when one of them can't take it, and then none gets it. Awaiting raises
    SysupError when some stopped to read before the end.
    """
    for each in inputs:
        each.check(data)
    return _all([each.send(data, eof=eof) for each in inputs])


async def _all(texts: Sequence[asyncio.Future[None]]) -> None:
    results = await asyncio.gather(*texts, return_exceptions=True)
    failed = [str(result) for result in results if result is not None]
    if failed:
        raise SysupError("; ".join(failed))


class Input:
    """Our end of the standard input of one process.

    Args:
        loop: the daemon's loop.
        fd: a pipe's writing end, or a terminal's master; this object's own from now (on
            OSError it stays the caller's).
        name: of the process, for messages.
        terminal: whether it is one. Whoever reads its output calls `close` at its end.
        on_close: called when the descriptor was closed.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        fd: int,
        name: str,
        *,
        terminal: bool = False,
        on_close: Callable[[], None] = lambda: None,
    ) -> None:
        self._loop, self._fd, self._name, self._terminal = loop, fd, name, terminal
        self._on_close = on_close
        self._queue = bytearray()
        self._queued = self._written = 0
        self._texts: deque[tuple[int, asyncio.Future[None]]] = deque()
        """By what number of written bytes whom to tell."""
        self._column = 0
        """Bytes since the last newline."""
        self._problem = ""
        """Why nothing can be sent any more."""
        os.set_blocking(fd, False)
        if not terminal:
            # A pipe that nobody reads is "readable" (EPOLLERR, see epoll_ctl(2)).
            loop.add_reader(fd, self.close)

    def check(self, data: bytes) -> None:
        """Raise SysupError with the reason when it can't be sent."""
        if not self._problem and self._hung_up():
            self.close()
        if self._problem:
            raise self._error(self._problem)
        if len(self._queue) + len(data) > LIMIT:
            queue = f"{len(self._queue)} bytes are still unread, at most {LIMIT} may be"
            raise self._error(f"the text has {len(data)} bytes, {queue}")
        if self._terminal and self._mode()[0] and self._longest_line(data) > LINE:
            raise self._error(f"a terminal takes no line of more than {LINE} bytes")

    def send(self, data: bytes, *, eof: bool = False) -> asyncio.Future[None]:
        """Write what `check` let pass; the future is done when the process can read all of it.

        With `eof` it then meets the end of its input. That is the last of a pipe, but not of
        a terminal. The future has a SysupError when the process stops to read before.
        """
        self._column = (
            len(data) - data.rfind(b"\n") - 1 if b"\n" in data else self._column + len(data)
        )
        if eof and self._terminal:
            canonical, character = self._mode()
            # In a line VEOF only hands over what there is of it (termios(3)).
            data += character * (2 if canonical and self._column else 1)
            self._column = 0
        elif eof:
            self._problem = "its input was closed"
        self._queue += data
        self._queued += len(data)
        text: asyncio.Future[None] = self._loop.create_future()
        self._texts.append((self._queued, text))
        self._write()
        return text

    def close(self) -> None:
        """The process reads no more: tell so to all whose texts were not read."""
        self._problem = self._problem or DEAF
        self._let_go()
        self._queue.clear()
        while self._texts:
            _, text = self._texts.popleft()
            if not text.done():
                text.set_exception(self._error(DEAF))

    def _write(self) -> None:
        """Write as much as there is room for; the loop calls again when there is more."""
        try:
            while self._queue and self._fd >= 0:
                if self._hung_up():  # a terminal that nobody has open takes bytes nevertheless
                    self.close()
                    return
                count = os.write(self._fd, self._queue[:CHUNK])
                del self._queue[:count]
                self._written += count
        except BlockingIOError:
            self._loop.add_writer(self._fd, self._write)
        except OSError:
            self.close()
        else:
            self._loop.remove_writer(self._fd)
        self._tell()

    def _tell(self) -> None:
        while self._texts and self._texts[0][0] <= self._written:
            _, text = self._texts.popleft()
            if not text.done():
                text.set_result(None)
        if self._problem and not self._texts:
            self._let_go()

    def _let_go(self) -> None:
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            self._loop.remove_writer(self._fd)
            os.close(self._fd)
            self._fd = -1
            self._on_close()

    def _hung_up(self) -> bool:
        """Whether nobody has the other end open."""
        poll = select.poll()
        poll.register(self._fd, 0)
        return bool(poll.poll(0))

    def _mode(self) -> tuple[bool, bytes]:
        """Of a terminal, which the process may set: whether it reads lines, what ends them all."""
        try:
            attributes = termios.tcgetattr(self._fd)
        except termios.error:
            return False, CTRL_D
        character = attributes[6][termios.VEOF]
        known = isinstance(character, bytes) and character != b"\0"
        return bool(attributes[3] & termios.ICANON), character if known else CTRL_D

    def _longest_line(self, data: bytes) -> int:
        first, *others = data.split(b"\n")
        return max(self._column + len(first), *map(len, others), 0)

    def _error(self, reason: str) -> SysupError:
        return SysupError(f"cannot send to {self._name}: {reason}")
