"""The daemon's own log: where it goes, how it looks, and that it never holds the daemon up.

Whoever reads our standard error may stop reading: a terminal that is paused, a pipe nobody
drains. So lines for it go into a pipe of our own that the pump reads, as those of the
children do, and when that is full lines are lost and counted, rather than time. Where it is the
journal that reads them it gets entries instead (diary.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import logging.handlers
import os
import select
import urllib.parse
from collections.abc import Mapping
from typing import Any, ClassVar

import click

from sysup.diary import Diary, about, priority
from sysup.protocol import SysupError
from sysup.streams import Direct, Pump, journal, open_sink

log = logging.getLogger("sysup")

STANDARD_ERROR = ("-", "stdout")
"""Circus's words for it, too."""
LEVELS = {
    "spawn": logging.DEBUG,
    "ready": logging.DEBUG,
    "kill": logging.DEBUG,
    "reap": logging.DEBUG,
    "sink_rotated": logging.DEBUG,
    "sink_failed": logging.WARNING,
    "output_lost": logging.WARNING,
    "backoff": logging.WARNING,
    "config_error": logging.ERROR,
    "flapping": logging.WARNING,
    "gave_up": logging.ERROR,
}
"""Of events; others are information."""


class Formatter(logging.Formatter):
    """`12:00:01 warning web.3: flapping`, the level in colour on a terminal."""

    COLOURS: ClassVar[dict[str, str]] = {
        "WARNING": "yellow",
        "ERROR": "red",
        "CRITICAL": "red",
        "DEBUG": "bright_black",
    }

    def __init__(self, coloured: bool) -> None:
        super().__init__("%(asctime)s %(level)s %(message)s", "%H:%M:%S")
        self._coloured = coloured

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        level = record.levelname.lower()
        colour = self.COLOURS.get(record.levelname)
        record.level = click.style(level, fg=colour) if self._coloured and colour else level
        return super().format(record)


class Pipe:
    """The text stream of a log handler: a pipe that takes what it can and counts the rest."""

    def __init__(self) -> None:
        self.reading, self._writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._lost = 0

    def write(self, text: str) -> None:
        """Take a line, or lose it."""
        notice = (
            f"{self._lost} lines of the log were lost: nobody read them\n" if self._lost else ""
        )
        try:
            os.write(self._writing, (notice + text).encode("utf-8", "backslashreplace"))
        except BlockingIOError:
            self._lost += 1
        else:
            self._lost = 0

    def flush(self) -> None:
        """There is nothing to do."""

    def close(self) -> None:
        """End it."""
        os.close(self._writing)


class Log:
    """The daemon's log.

    Args:
        level: the least that is logged: debug, info, warning, error, critical.
        output: `-` for standard error, `syslog://HOST:PORT?FACILITY`,
            `syslog:///dev/log?FACILITY`, or a file, which may be rotated.
        app: whose it is.

    Raises SysupError when it can't be opened.
    """

    def __init__(self, level: str, output: str, app: str) -> None:
        self._handler = make_handler(output, app)
        self._pipe: Pipe | None = None
        self._is_mute = False
        if type(self._handler) is logging.StreamHandler:
            self._pipe = Pipe()
            self._handler.setStream(self._pipe)
        logging.basicConfig(level=level.upper(), handlers=[self._handler])

    def pump(self, pump: Pump) -> None:
        """Have the lines for standard error written, also those that were logged so far; from
        within the running loop."""
        if isinstance(self._handler, Diary):
            self._handler.attach(asyncio.get_running_loop())
        if self._pipe is not None:
            sink = open_sink(pump, None, "stderr")
            assert not isinstance(sink, Direct)  # that is a class of the config
            pump.add(self._pipe.reading, os.getpid(), sink)
            sink.close()

    def stop_pumping(self) -> None:
        """The pump is about to stop: what is logged from now on is lost if nobody reads it."""
        if isinstance(self._handler, Diary):
            self._handler.detach()
        if self._pipe is not None:
            self._handler.setLevel(logging.CRITICAL + 1)
            self._pipe.close()
            self._pipe = None
            self._is_mute = True

    def last_words(self, text: str) -> None:
        """Log an error after the pump has stopped; nobody waits for who doesn't read it."""
        logging.getLogger("sysup").error("%s", text)
        poll = select.poll()
        poll.register(2, select.POLLOUT)
        if self._is_mute and poll.poll(0):
            with contextlib.suppress(OSError):
                os.write(2, f"{text}\n".encode())


def make_handler(output: str, app: str = "") -> logging.Handler:
    """The handler for an output. Raises SysupError when it can't be opened."""
    if output in STANDARD_ERROR and journal.leads_there(2):
        return Diary(app)
    if output in STANDARD_ERROR:
        handler: logging.Handler = logging.StreamHandler()
        plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
        handler.setFormatter(Formatter(os.isatty(2) and not plain))
        return handler
    try:
        if output.startswith("syslog://"):
            handler = syslog_handler(output)
        else:
            handler = logging.handlers.WatchedFileHandler(output)
    except OSError as error:
        raise SysupError(f"cannot log to {output}: {error.strerror}") from None
    handler.setFormatter(Formatter(False))
    return handler


def tell(text: str, level: int = logging.ERROR) -> None:
    """Say something on standard error before there is a log, or instead of it."""
    colour = Formatter.COLOURS[logging.getLevelName(level)]
    is_journal = journal.leads_there(2)
    click.secho(f"<{priority(level)}>{text}" if is_journal else text, fg=colour, err=True)


def syslog_handler(url: str) -> logging.handlers.SysLogHandler:
    """As in Circus: `syslog://host:port?facility` or `syslog:///path?facility`."""
    parts = urllib.parse.urlsplit(url)
    names = logging.handlers.SysLogHandler.facility_names
    facility = parts.query or "user"
    if facility not in names:
        raise SysupError(f"cannot log to {url}: no such facility: {facility}")
    address = parts.path if not parts.hostname else (parts.hostname, parts.port or 514)
    return logging.handlers.SysLogHandler(address, names[facility])


# ---- events ------------------------------------------------------------------------------


def tell_event(watcher: str, event: str, payload: Mapping[str, Any]) -> None:
    """Have what happens to a watcher in the log."""
    level = LEVELS.get(event, logging.INFO)
    if log.isEnabledFor(level):
        concerns = about(watcher, payload.get("wid"), event)
        log.log(level, "%s", describe_event(watcher, event, payload), extra=concerns)


def describe_event(watcher: str, event: str, payload: Mapping[str, Any]) -> str:
    """An event as a line of the daemon's log."""
    who = f"{watcher}.{payload['wid']}" if "wid" in payload else watcher
    parts = [f"{who}: {event.replace('_', ' ')}"]
    if payload.get("process_pid"):
        parts.append(f"pid {payload['process_pid']}")
    if event == "output_lost":
        parts += [str(payload.get("stream", "")), *lost(payload)]
    if "path" in payload:
        parts.append(str(payload["path"]))
    if "reason" in payload:
        parts.append(str(payload["reason"]))
    elif "exit_code" in payload:
        parts.append(f"exit code {payload['exit_code']}")
    if payload.get("retry_in"):
        parts.append(f"next try in {payload['retry_in']:.1f} s")
    return ", ".join(parts)


def lost(payload: Mapping[str, Any]) -> list[str]:
    """`12 lines (340 bytes) dropped`, and the same of those that were suppressed."""
    return [
        f"{payload[f'{how}_lines']} lines ({payload.get(f'{how}_bytes', 0)} bytes) {how}"
        for how in ("dropped", "suppressed")
        if payload.get(f"{how}_lines")
    ]
