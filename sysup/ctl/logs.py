"""sysupctl's `logs`: the journal of an app, and the files of its watchers.

Without `rotate` or `reopen` the journal is read, for which no daemon has to run. What stands in
it anybody may have written: on a terminal nothing of an entry can command it, and none can look
like two, as the further lines of its text are indented.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

import click

from sysup import discovery
from sysup.client import CallError
from sysup.ctl import moments, render
from sysup.ctl.session import Command, Group, Session, common_options, complete_watcher, session
from sysup.protocol import CONTROL_SOCKET, SysupError

PRIORITIES = ("emerg", "alert", "crit", "err", "warning", "notice", "info", "debug")
OTHER_NAMES = {"panic": "emerg", "error": "err", "warn": "warning"}
STYLES: tuple[dict[str, Any], ...] = (
    *({"fg": "red", "bold": True},) * 3,
    {"fg": "red"},
    {"fg": "yellow"},
    {"bold": True},
    {"fg": "cyan"},
    {"fg": "bright_black"},
)
"""By priority, of the word that says whose an entry is."""
LINES, FOLLOWED = 100, 10
"""Entries that are shown if nothing is said, and before those that are followed."""
ALL = -1
CONFIGS = ("/etc/sysup", "~/.config/sysup")
INFO = PRIORITIES.index("info")
NUMBERS = frozenset("01234567")


# ---- what is typed -----------------------------------------------------------------------


def to_moment(_: click.Context, __: click.Parameter, text: str | None) -> int | None:
    """A time, in microseconds since the epoch."""
    if text is None:
        return None
    try:
        return moments.parse(text, time.time_ns() // 1000)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def to_priorities(_: click.Context, __: click.Parameter, text: str | None) -> tuple[int, ...]:
    """The numbers of priorities, of which the lowest is the most urgent: of one and those above
    it, or of `FROM..TO`."""
    if text is None:
        return ()
    first, dots, last = text.lower().partition("..")
    try:
        ends = [priority(first), priority(last)] if dots else [0, priority(first)]
    except ValueError as error:
        names = ", ".join(PRIORITIES)
        raise click.BadParameter(f"there is no priority {str(error)!r}, but {names}") from None
    return tuple(range(min(ends), max(ends) + 1))


def priority(word: str) -> int:
    """The number of a priority. Raises ValueError."""
    word = OTHER_NAMES.get(word, word)
    if word in PRIORITIES:
        return PRIORITIES.index(word)
    if word in NUMBERS:
        return int(word)
    raise ValueError(word)


def complete_priority(_: click.Context, __: click.Parameter, typed: str) -> list[str]:
    """The priorities that begin so."""
    return [name for name in PRIORITIES if name.startswith(typed.lower())]


def to_count(_: click.Context, __: click.Parameter, text: str | None) -> int | None:
    """How many entries: a number, ALL, or None if nothing is said."""
    if text is None:
        return None
    if text.lower() == "all":
        return ALL
    if not (text.isascii() and text.isdecimal()):
        raise click.BadParameter(f"{text!r} is neither a number nor 'all'")
    return int(text)


def app_of(here: Session) -> str:
    """Which app is meant; none has to run. Raises SysupError where that can't be told."""
    if here.app:
        return here.app
    try:
        endpoint = here.endpoint or discovery.find_endpoint()
    except discovery.Unreachable as error:
        known = set(discovery.apps()) or set(configured())
        if len(known) == 1:
            return known.pop()
        others = f" of {', '.join(sorted(known))}" if known else ""
        raise SysupError(f"cannot tell whose logs: {error}; name an app{others} (-a APP)") from None
    path = endpoint.removeprefix("ipc://")
    if path == endpoint or os.path.basename(path) != CONTROL_SOCKET:
        raise SysupError(f"cannot tell which app is at {endpoint}: name it (-a APP)")
    return os.path.basename(os.path.dirname(path))


def configured() -> Iterable[str]:
    """The apps that systemd would find a config of."""
    for directory in map(os.path.expanduser, CONFIGS):
        with suppress(OSError):
            names = map(os.path.splitext, os.listdir(directory))
            yield from (name for name, extension in names if extension == ".ini")


# ---- what is shown -----------------------------------------------------------------------


def single(fields: Mapping[str, Any], name: str) -> str:
    """A field's value; the last, if there are several, and none if there is none."""
    value = fields.get(name, "")
    return value if isinstance(value, str) else str(value[-1])


def who(fields: Mapping[str, Any]) -> str:
    """Whose an entry is: `web.2`, or for what doesn't come from a stream its program."""
    watcher, wid = single(fields, "SYSUP_WATCHER"), single(fields, "SYSUP_WID")
    if watcher and "SYSUP_STREAM" in fields:
        return f"{watcher}.{wid}" if wid else watcher
    name = single(fields, "SYSLOG_IDENTIFIER") or single(fields, "_COMM") or "?"
    pid = single(fields, "_PID") or single(fields, "SYSLOG_PID")
    return f"{name}[{pid}]" if pid else name


def line(fields: Mapping[str, Any], on_terminal: bool) -> bytes:
    """An entry as people read it: exact but for its newlines, or safe for a terminal."""
    urgency = single(fields, "PRIORITY")
    style = STYLES[int(urgency) if urgency in NUMBERS else INFO]
    at = single(fields, "__REALTIME_TIMESTAMP")
    stamp, label = moments.show(int(at)), render.clean(who(fields))
    indent = "\n" + " " * (len(stamp) + 1 + len(label) + 2)
    lines = single(fields, "MESSAGE").removesuffix("\n").split("\n")
    if on_terminal:
        label = click.style(label, **style)
        lines = [harmless(each) for each in lines]
    return raw(f"{stamp} {label}: {indent.join(lines)}\n")


def raw(text: str) -> bytes:
    """The bytes of a field."""
    return text.encode("utf-8", "surrogateescape")


def harmless(text: str) -> str:
    """Text that can't command a terminal; a tab may well be in it."""
    shown = raw(text).decode("utf-8", "backslashreplace")
    return "\t".join(map(render.clean, shown.split("\t")))


def as_json(fields: Mapping[str, Any]) -> dict[str, Any]:
    """All fields, as `journalctl -o json` has them: bytes that are no text are numbers."""
    return {
        name: value_as_json(value)
        if isinstance(value, str)
        else [value_as_json(each) for each in value]
        for name, value in fields.items()
    }


def value_as_json(text: str) -> str | list[int]:
    """A field's value."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return list(raw(text))
    return text


class Printer:
    """Prints entries, as the options and the terminal would have it."""

    def __init__(self, here: Session) -> None:
        self._as_json = here.json or here.prettify
        self._indent = 2 if here.prettify else None
        self._on_terminal = sys.stdout.isatty()

    def write(self, fields: Mapping[str, Any]) -> None:
        """Print one, into a pipe at the next flush."""
        if self._as_json:
            text = json.dumps(as_json(fields), indent=self._indent)
            sys.stdout.buffer.write(f"{text}\n".encode())
        elif self._on_terminal:
            click.echo(line(fields, True).decode(), nl=False)
        else:
            sys.stdout.buffer.write(line(fields, False))

    def flush(self) -> None:
        """Have all of it be seen."""
        sys.stdout.flush()


# ---- the commands ------------------------------------------------------------------------


class Logs(Group):
    """`logs`: a command of its own, unless its first word is one of those in it.

    Attributes:
        reading: what it does by itself.
    """

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.common = common_options()
        self.params += self.common
        self.reading: click.Command = self

    def make_context(
        self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any
    ) -> click.Context:
        """That of the command, or of reading."""
        if self._names_a_command(args):
            return super().make_context(info_name, args, parent, **extra)
        return self.reading.make_context(info_name, args, parent, **extra)

    def _names_a_command(self, args: list[str]) -> bool:
        """Whether one comes first; before it only common options may stand, with their values."""
        options = [option for option in self.common if isinstance(option, click.Option)]
        flags = {name for option in options if option.is_flag for name in option.opts}
        valued = {name for option in options if not option.is_flag for name in option.opts}
        words = iter(args)
        for word in words:
            if word in valued:
                next(words, None)
            elif word not in flags and word.partition("=")[0] not in valued:
                return word in self.commands
        return False


@click.group(cls=Logs)
def logs() -> None:
    """Read the journal; care for the files that output goes to."""


def complete_name(context: click.Context, parameter: click.Parameter, typed: str) -> list[str]:
    """The watchers that begin so, or a command of `logs`."""
    first = not context.params.get("names")
    commands = [name for name in logs.commands if first and name.startswith(typed)]
    return [*complete_watcher(context, parameter, typed), *commands]


@click.command(cls=Command)
@click.argument("names", metavar="[NAME]...", nargs=-1, shell_complete=complete_name)
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes, until Ctrl-C.")
@click.option(
    "-n",
    "--lines",
    metavar="N",
    callback=to_count,
    help="So many last entries, or `all`. "
    f"Default: {LINES}, with -f {FOLLOWED}, with --since or --until all.",
)
@click.option("--since", metavar="TIME", callback=to_moment, help="What came then or later.")
@click.option("--until", metavar="TIME", callback=to_moment, help="What came then or before.")
@click.option(
    "-p",
    "--priority",
    "priorities",
    metavar="PRIORITY",
    callback=to_priorities,
    shell_complete=complete_priority,
    help="What is as urgent or more: err, warning, ..., or their numbers; or FROM..TO.",
)
@click.option("--wid", metavar="N", type=click.IntRange(min=0), help="Of the process in this slot.")
@click.option("--stream", type=click.Choice(["stdout", "stderr"]), help="Of this stream alone.")
def read(
    names: tuple[str, ...],
    follow: bool,
    lines: int | None,
    since: int | None,
    until: int | None,
    **which: Any,
) -> None:
    """Print what the journal has of the app: of its processes, of sysupd, and of systemd about it.

    With NAME it is of these watchers: what their processes wrote, and what sysupd says of them.
    No daemon has to run. TIME is 2026-11-25 10:00, 10:00, yesterday, -1h, "10 min ago" or
    @1795600800. With --json each entry is an object in a line, with all its fields, as
    journalctl -o json has them.

    `sysupctl logs rotate` and `sysupctl logs reopen` care for log files.
    """
    if follow and until is not None:
        raise click.UsageError("there is no end to follow: -f and --until exclude each other")
    from sysup.ctl.journal import Journal, Query

    here = session()
    bounds = {"since": since, "until": until}
    which |= {name: moment for name, moment in bounds.items() if moment is not None}
    spellings = dict.fromkeys(word for name in names for word in (name, name.lower()))
    query = Query(app_of(here), tuple(spellings), uid=os.geteuid(), **which)
    if lines is None:
        bounded = since is not None or until is not None
        lines = ALL if bounded else FOLLOWED if follow else LINES
    printer = Printer(here)
    with Journal(query) as journal:
        if journal.complaint:
            click.echo(f"hint: {journal.complaint}", err=True)
        with suppress(KeyboardInterrupt):
            for entry in journal.read(None if lines == ALL else lines):
                printer.write(entry)
            while follow:
                printer.flush()
                journal.wait(sys.stdout.fileno())
                for entry in journal.go_on():
                    printer.write(entry)


logs.reading = read


@logs.command()
@click.argument("name", required=False, shell_complete=complete_watcher)
def reopen(name: str | None) -> None:
    """Open files again by their names: those of all watchers, or of one.

    Exits with 1 when one can't be opened, and says why.
    """
    here = session()
    try:
        reply = here.call("logs", action="reopen", name=name)
    except CallError as error:
        if error.reply.get("files") and not (here.json or here.prettify):
            here.show(error.reply, _files("reopened", error.reply))
        raise
    here.show(reply, _files("reopened", reply))


@logs.command()
@click.argument("name", shell_complete=complete_watcher)
def rotate(name: str) -> None:
    """Rotate the files of a watcher now."""
    reply = session().call("logs", action="rotate", name=name)
    session().show(reply, _files("rotated", reply))


def _files(done: str, reply: Mapping[str, Any]) -> list[str]:
    return [f"{done} {render.clean(path)}" for path in reply["files"]] or ["there are no files"]
