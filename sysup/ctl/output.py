"""sysupctl's `tail`: what processes write, byte for byte.

To follow is to subscribe, to wait until the daemon has seen it, and only then to ask for the
last lines. What comes both ways is told apart by its position in the stream, so every byte is
printed once, and what was lost on the way is known to the byte.
"""

from __future__ import annotations

import codecs
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import click

from sysup import protocol
from sysup.client import TIMEOUT, CallError, ConnectionLost, TimedOut
from sysup.ctl import render
from sysup.ctl.session import (
    Command,
    Session,
    complete_source,
    complete_watcher,
    session,
    tell_change,
)
from sysup.protocol import SysupError

STREAMS = ("stdout", "stderr")
ALL = 1 << 30
"""More lines than there can be."""
LONGEST_LINE = 1 << 16
"""Bytes that wait for the end of their line; then they are shown as one."""
PROCESSES = 8
"""Processes that are remembered of a source: one that was replaced may still have words."""
TRIES = 3
COLOURS = ("cyan", "yellow", "green", "magenta", "blue", "red")


class Source(NamedTuple):
    """A stream of a slot, whichever process is in it."""

    wid: int
    stream: str


class Seam:
    """Joins last lines and live output: each byte once."""

    def __init__(self) -> None:
        self._known: dict[Source, dict[int, int]] = {}

    def take(self, told: Mapping[str, Any]) -> tuple[int, bytes]:
        """How many bytes were missed, and those that follow and were not there yet."""
        data = protocol.unpack(told["data"])
        at, pid = int(told["at"]), int(told["pid"])
        begin = at - len(data)
        positions = self._known.setdefault(source_of(told), {})
        known = positions.pop(pid, None)
        if known is None:
            known = begin - int(told.get("missed", 0))
        positions[pid] = max(at, known)
        while len(positions) > PROCESSES:
            del positions[next(iter(positions))]
        return max(0, begin - known), data[max(0, known - begin) :]

    def is_new(self, told: Mapping[str, Any]) -> bool:
        """Whether nothing is known of the process."""
        return int(told["pid"]) not in self._known.get(source_of(told), {})


def source_of(told: Mapping[str, Any]) -> Source:
    """Whose output it is."""
    return Source(int(told["wid"]), str(told["stream"]))


class Printer:
    """Prints output of the processes of one watcher.

    Args:
        name: of the watcher.
        sources: those that are known at the beginning.
        on_terminal: whether what is printed could command one.
    """

    def __init__(self, name: str, sources: Iterable[Source], on_terminal: bool) -> None:
        self._name = name
        self._on_terminal = on_terminal
        self._sources = set(sources)
        self._unfinished: dict[Source, bytes] = {}
        self._decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")

    def write(self, source: Source, data: bytes) -> None:
        """Print output of a source, each line marked if there are several."""
        self._sources.add(source)
        if len(self._sources) > 1:
            self._write_lines(source, data)
        elif self._on_terminal:
            lines = self._decoder.decode(data).split("\n")
            click.echo("\n".join(map(render.clean, lines)), nl=False)
        else:
            click.echo(data, nl=False)

    def _write_lines(self, source: Source, data: bytes) -> None:
        *lines, rest = (self._unfinished.pop(source, b"") + data).split(b"\n")
        for line in lines:
            self._write_line(source, line)
        if len(rest) > LONGEST_LINE:
            self._write_line(source, rest)
        elif rest:
            self._unfinished[source] = rest

    def _write_line(self, source: Source, line: bytes) -> None:
        mark = f"{render.clean(self._name)}.{source.wid} {source.stream} | "
        if not self._on_terminal:
            click.echo(mark.encode() + line)
            return
        colour = COLOURS[(source.wid * len(STREAMS) + (source.stream == "stderr")) % len(COLOURS)]
        text = render.clean(line.decode("utf-8", "backslashreplace"))
        click.echo(click.style(mark, fg=colour) + text)

    def finish(self, source: Source) -> None:
        """Nothing more comes of the line that is unfinished."""
        if line := self._unfinished.pop(source, b""):
            self._write_line(source, line)


class Follower:
    """Prints each byte of what it is told once, or as JSON where that is asked for."""

    def __init__(self, here: Session, name: str, tails: list[dict[str, Any]]) -> None:
        self._here = here
        self._name = name
        self._seam = Seam()
        self._pids: dict[Source, int] = {}
        self._printer = Printer(name, map(source_of, tails), sys.stdout.isatty())
        for told in tails:
            self.take(told)

    def take(self, told: Mapping[str, Any]) -> None:
        """Print what is new in a message. Raises SysupError for one of another shape."""
        try:
            missed, data = self._seam.take(told)
        except (LookupError, TypeError, ValueError):
            raise SysupError(f"cannot read a message of {self._name}'s output") from None
        if self._here.json or self._here.prettify:
            if missed or data:
                line = {**told, "data": protocol.pack(data), "missed": missed}
                self._here.show({"watcher": self._name, **line}, ())
            return
        source, pid = source_of(told), told["pid"]
        if missed or self._pids.setdefault(source, pid) != pid:
            self._printer.finish(source)
            self._pids[source] = pid
        if missed:
            where = f"{render.clean(self._name)}.{source.wid} {source.stream}"
            click.echo(f"{where}: {render.count(missed, 'byte')} missed", err=True)
        self._printer.write(source, data)

    def catch_up(self, tails: list[dict[str, Any]]) -> None:
        """Print what came while there was no connection, as far as it is remembered."""
        for told in tails:
            begin = told["at"] - len(protocol.unpack(told["data"]))
            self.take({**told, "missed": begin} if self._seam.is_new(told) else told)


# ---- tail --------------------------------------------------------------------------------


@click.command(cls=Command)
@click.argument("name", shell_complete=complete_watcher)
@click.argument("which", metavar="[WID] [stdout|stderr]", nargs=-1, shell_complete=complete_source)
@click.option("-f", "--follow", is_flag=True, help="Go on with what they write, until Ctrl-C.")
@click.option(
    "-n",
    "--lines",
    metavar="N",
    type=click.IntRange(min=0),
    default=10,
    help="So many last lines of each stream (10); of what is remembered, about 2 KiB.",
)
def tail(name: str, which: tuple[str, ...], follow: bool, lines: int) -> None:
    """Print the last lines that processes wrote, and with -f what they write.

    Lines of several streams are marked. A single one is passed on byte for byte, if not to a
    terminal. Of a slot without a process it is the last one that was there. That the daemon has
    gone, and is back, is told on standard error, and how much of what was written meanwhile is
    not remembered.
    """
    wid, stream = _which(which)
    asked = {"name": name, "wid": wid, "stream": stream}
    here = session()
    if follow:
        with suppress(KeyboardInterrupt):
            _follow(here, asked, lines)
        return
    reply = here.call("tail", **asked, lines=lines)
    if here.json or here.prettify:
        here.show(reply, ())
    else:
        printer = Printer(name, map(source_of, reply["tails"]), sys.stdout.isatty())
        for told in reply["tails"]:
            printer.write(source_of(told), protocol.unpack(told["data"]))
            printer.finish(source_of(told))


def _which(words: tuple[str, ...]) -> tuple[int | None, str | None]:
    wids = [word for word in words if word.isdecimal()]
    streams = [word for word in words if word in STREAMS]
    if len(wids) > 1 or len(streams) > 1 or len(wids) + len(streams) < len(words):
        raise click.UsageError("the arguments are NAME [WID] [stdout|stderr]")
    return int(wids[0]) if wids else None, streams[0] if streams else None


def _follow(here: Session, asked: Mapping[str, Any], lines: int) -> None:
    name, wid = str(asked["name"]), asked["wid"]
    beginning = f"{protocol.OUTPUT}{protocol.event_name(name)}."
    with here.client().subscribe([beginning if wid is None else f"{beginning}{wid}."]) as events:
        events.notice(tell_change)
        if not events.wait_until_heard(here.timeout or TIMEOUT):
            raise SysupError(
                f"cannot follow {name}: {events.endpoint} carries no output; "
                "the app's own socket does (-a APP)"
            )
        follower = Follower(here, name, here.call("tail", **asked, lines=lines)["tails"])
        while True:
            heard = events.times_heard
            event = events.receive(None)
            if events.times_heard != heard:
                follower.catch_up(_tails_after_reconnection(here, asked))
            elif event is not None and _is_asked(asked, *event):
                follower.take(event[1])


def _is_asked(asked: Mapping[str, Any], topic: str, told: object) -> bool:
    """Whether output is of this watcher, as another's name may begin so, and the stream."""
    name = topic.removeprefix(protocol.OUTPUT).rsplit(".", 2)[0]
    return (
        isinstance(told, dict)
        and name == protocol.event_name(asked["name"])
        and asked["stream"] in (None, told.get("stream"))
    )


def _tails_after_reconnection(here: Session, asked: Mapping[str, Any]) -> list[dict[str, Any]]:
    """All that is remembered; nothing if the watcher is not there any more."""
    for _ in range(TRIES):
        try:
            tails: list[dict[str, Any]] = here.call("tail", **asked, lines=ALL)["tails"]
            return tails
        except (ConnectionLost, TimedOut):
            continue  # the other socket has yet to notice
        except CallError as error:
            click.echo(f"error: {error}", err=True)
            break
    return []
