"""What all commands share: their common options, the connection, printing, errors, completion.

The common options are taken before and after the command's name, as one types them, so each
command has them too; wherever they stand they end in the one `Session` of this run.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import click

from sysup import discovery
from sysup.client import (
    TIMEOUT,
    CallError,
    Client,
    ConnectionLost,
    NotRunning,
    TimedOut,
    Unreachable,
)
from sysup.protocol import Errno, SysupError

OK, FAILED, USAGE, NOT_RUNNING, UNREACHABLE = range(5)
"""The exit codes; NOT_RUNNING is that of `status` (LSB) and `wait`."""
INTERRUPTED = 130
WHOLE = 1000
"""Characters that no first sentence of a command's help has."""

WAIT = 600.0
"""Seconds that a command which changes something waits for the outcome."""
COMPLETION_TIMEOUT = 1.0


class Session:
    """One run of sysupctl: what the common options say, and the connection."""

    def __init__(self) -> None:
        self.apps: list[str] = []
        self.endpoints: list[str] = []
        self.all = False
        self.key: str | None = None
        self.server_key: str | None = None
        self.timeout: float | None = None
        self.json = False
        self.prettify = False
        self._client: Client | None = None
        self._others: list[Session] = []
        """Those with each of several apps."""

    def client(self) -> Client:
        """The connection, made at its first use. Raises Unreachable, SysupError."""
        if self._client is None:
            target = self.endpoint or self.app
            self._client = Client(target, key=self.key, server_key=self.server_key)
        return self._client

    @property
    def app(self) -> str | None:
        """The app that is named. Raises UsageError if it is not one."""
        self._be_one()
        return self.apps[0] if self.apps else None

    @property
    def endpoint(self) -> str | None:
        """The endpoint that is named. Raises UsageError if it is not one."""
        self._be_one()
        return self.endpoints[0] if self.endpoints else None

    def _be_one(self) -> None:
        if self.is_several:
            raise click.UsageError("this is for one app, not several")

    @property
    def is_several(self) -> bool:
        """Whether several apps are meant."""
        return self.all or len(self.apps) + len(self.endpoints) > 1

    def several(self) -> dict[str, Session]:
        """A session with each of several apps, by what it is called; empty if one is meant.

        Raises Unreachable when all are meant and none runs.
        """
        if not self.is_several:
            return {}
        endpoints = {endpoint: endpoint for endpoint in self.endpoints}
        running = discovery.running() if self.all else {}
        made = {}
        for name in (*self.apps, *running, *endpoints):
            made[name] = each = Session()
            each.key, each.server_key, each.timeout = self.key, self.server_key, self.timeout
            if name in running or name in endpoints:
                each.endpoints = [running.get(name) or name]
            else:
                each.apps = [name]
        self._others += made.values()
        return made

    @property
    def width(self) -> int | None:
        """The columns of the terminal; None if it is none that is written to."""
        if not sys.stdout.isatty():
            return None
        from shutil import get_terminal_size

        return get_terminal_size().columns

    def close(self) -> None:
        """Close the connection, if there is one."""
        for each in self._others:
            each.close()
        if self._client is not None:
            self._client.close()
            self._client = None

    def call(self, command: str, /, **properties: Any) -> dict[str, Any]:
        """The reply to a command; properties that are None are left out. Raises CallError."""
        given = {key: value for key, value in properties.items() if value is not None}
        connection = self.client()
        wait = WAIT if given.get("waiting") else TIMEOUT
        connection.timeout = wait if self.timeout is None else self.timeout
        try:
            return connection.call(command, **given)
        except CallError as error:
            if not _is_unknown_name(error):
                raise
            near = self._near(given.get("name"))
            raise CallError(f"{error}{near}", error.errno, error.reply) from None

    def _near(self, name: object) -> str:
        """What to write instead of the name of a watcher that there is not."""
        from difflib import get_close_matches

        try:
            names = [str(known) for known in self.client().call("list")["watchers"]]
        except CallError:
            return ""
        close = get_close_matches(str(name).lower(), names, n=1)
        if close:
            return f"; did you mean {close[0]}?"
        return f"; there is {', '.join(names)}" if names else "; there are no watchers"

    def show(self, reply: Mapping[str, Any], lines: str | Iterable[str]) -> None:
        """Print a reply: as it came if JSON is asked for, else as `lines`."""
        if self.json or self.prettify:
            click.echo(json.dumps(reply, indent=2 if self.prettify else None))
            return
        for line in [lines] if isinstance(lines, str) else lines:
            click.echo(line)

    def explain(self, error: SysupError) -> int:
        """Print why something failed, and what to do about it; returns the exit code."""
        if isinstance(error, CallError) and error.reply and (self.json or self.prettify):
            self.show(error.reply, ())
        click.echo(f"error: {error}", err=True)
        if isinstance(error, TimedOut):
            hint = "sysupd may still be at it: see `sysupctl status`, or wait longer by --timeout"
            click.echo(f"hint: {hint}", err=True)
        if isinstance(error, NotRunning):
            app = next(iter(self.apps), "APP")
            hint = f"start it by `systemctl start sysup@{app}`, or here by `sysupd {app}.ini`"
            click.echo(f"hint: {hint}", err=True)
        unknown = isinstance(error, (Unreachable, ConnectionLost, TimedOut))
        return UNREACHABLE if unknown else FAILED


def _is_unknown_name(error: CallError) -> bool:
    text = str(error)
    is_refusal = error.errno is Errno.MESSAGE_ERROR
    return is_refusal and text.startswith("program ") and text.endswith(" not found")


def session() -> Session:
    """The session of the command that runs."""
    return click.get_current_context().ensure_object(Session)


def tell_change(is_there: bool) -> None:
    """Say to who listens that the daemon has gone, or that it is back."""
    what = "is back" if is_there else "has gone; this goes on when it is back"
    click.echo(f"hint: sysupd {what}", err=True)


def is_well(watcher: Mapping[str, Any], named: bool) -> bool:
    """Whether all processes that are wanted run; one that is asked for by name is wanted."""
    if watcher.get("want") == "down" and not named:
        return True
    if watcher["state"] == "active":
        return bool(watcher["ready"] >= watcher["numprocesses"])
    return bool(watcher["state"] == "done")


# ---- common options ----------------------------------------------------------------------


def _keep(context: click.Context, option: click.Parameter, value: Any) -> None:
    """Note a common option in the session, where it is given."""
    if value not in (None, False):
        setattr(context.ensure_object(Session), str(option.name), value)


def _add(context: click.Context, option: click.Parameter, values: tuple[str, ...]) -> None:
    """Note apps or endpoints in the session, once each."""
    found = getattr(context.ensure_object(Session), f"{option.name}s")
    found += [value for value in values if value not in found]


def complete_app(_: click.Context, __: click.Parameter, typed: str) -> list[str]:
    """The apps whose names begin so."""
    return [name for name in discovery.apps() if name.startswith(typed)]


@cache
def common_options() -> list[click.Option]:
    """The options that all commands take."""
    given: dict[str, Any] = {"expose_value": False, "callback": _keep}
    return [
        click.Option(
            ["-a", "--app"],
            metavar="APP",
            help="The app; not needed where just one runs. Several for list, stats and status.",
            shell_complete=complete_app,
            multiple=True,
            expose_value=False,
            callback=_add,
        ),
        click.Option(["--all"], is_flag=True, help="All apps that run; for the same.", **given),
        click.Option(
            ["--endpoint"],
            metavar="ENDPOINT",
            help="The daemon's endpoint, ipc://PATH or tcp://HOST:PORT.",
            multiple=True,
            expose_value=False,
            callback=_add,
        ),
        click.Option(
            ["--key"],
            metavar="FILE",
            help="Your keys for TCP, as keygen makes them.",
            **given,
        ),
        click.Option(
            ["--server-key"],
            metavar="FILE",
            help="The daemon's public key.",
            **given,
        ),
        click.Option(
            ["--timeout"],
            metavar="SECONDS",
            type=click.FloatRange(min=0, min_open=True),
            help=f"Wait so long for a reply ({TIMEOUT:g}; {WAIT:g} for an outcome).",
            **given,
        ),
        click.Option(["--json"], is_flag=True, help="Print the reply as JSON, in a line.", **given),
        click.Option(["--prettify"], is_flag=True, help="Print it as indented JSON.", **given),
    ]


class Command(click.Command):
    """A command with the common options."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.common = common_options()
        self.params += self.common

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """The command's own options, then the common ones, apart."""
        options = [each for each in self.get_params(context) if isinstance(each, click.Option)]
        own = [option for option in options if option not in self.common]
        for title, listed in (("Options", own), ("Common options", self.common)):
            records = [option.get_help_record(context) for option in listed]
            with formatter.section(title):
                formatter.write_dl([record for record in records if record is not None])


class Elsewhere(click.Command):
    """A command of a module that is yet to be loaded."""

    def __init__(self, name: str, module: str) -> None:
        super().__init__(name)
        self.module = module

    def load(self) -> click.Command:
        """The command itself."""
        for found in vars(importlib.import_module(self.module)).values():
            if isinstance(found, click.Command) and found.name == self.name:
                return found
        raise LookupError(f"{self.module} has no command {self.name}")


class Group(click.Group):
    """The program: its commands in the order of their declaration, and help with typos."""

    command_class = Command

    def add_later(self, module: str, *names: str) -> None:
        """Have commands of a module which is loaded when somebody wants one of them."""
        for name in names:
            self.add_command(Elsewhere(name, module))

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """A command, loaded."""
        command = self.commands.get(name)
        if isinstance(command, Elsewhere):
            command = self.commands[name] = command.load()
        return command

    def load_all(self, context: click.Context) -> None:
        """Load all commands now."""
        for name in self.commands:
            self.get_command(context, name)

    def list_commands(self, context: click.Context) -> list[str]:
        """The commands' names, as declared."""
        return list(self.commands)

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """The first sentence of each command, to its end."""
        rows = []
        for name in self.list_commands(context):
            command = self.get_command(context, name)
            if command is not None:
                rows.append((name, command.get_short_help_str(WHOLE)))
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def resolve_command(
        self, context: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that is meant; the nearest is named where there is no such."""
        name = args[0]
        if name in self.commands or name.startswith("-") or context.resilient_parsing:
            return super().resolve_command(context, args)
        if name == "help":
            context.fail("no such command: help; it is `sysupctl [COMMAND] --help`")
        from difflib import get_close_matches

        close = get_close_matches(name.lower(), self.commands, n=1)
        instead = f"; did you mean {close[0]}?" if close else ""
        context.fail(f"no such command: {name}{instead}")


# ---- completion --------------------------------------------------------------------------


def _ask(context: click.Context, command: str, **properties: Any) -> dict[str, Any]:
    """A reply for the completion; empty where there is none, in silence."""
    asking = context.ensure_object(Session)
    asking.timeout = COMPLETION_TIMEOUT
    try:
        return asking.call(command, **properties)
    except SysupError:
        return {}
    finally:
        asking.close()


def complete_watcher(context: click.Context, _: click.Parameter, typed: str) -> list[str]:
    """The watchers whose names begin so."""
    names = _ask(context, "list").get("watchers", [])
    return [name for name in names if name.startswith(typed.lower())]


def complete_source(context: click.Context, _: click.Parameter, typed: str) -> list[str]:
    """The slots of the watcher, and the streams, that begin so."""
    name = str(context.params.get("name"))
    watchers = _ask(context, "status", name=name, processes=True).get("watchers", {})
    slots = [str(process["wid"]) for w in watchers.values() for process in w["processes"]]
    given = context.params.get("which") or ()
    words = [*([] if any(word.isdecimal() for word in given) else slots), "stdout", "stderr"]
    return [word for word in words if word.startswith(typed)]


def complete_option(context: click.Context, _: click.Parameter, typed: str) -> list[str]:
    """The options of the watcher whose names begin so."""
    pairs = context.params.get("pairs")
    if pairs is not None and len(pairs) % 2:
        return []  # the value's turn
    options = _ask(context, "options", name=context.params.get("name")).get("options", {})
    return sorted(key for key in options if key.startswith(typed))


def complete_signal(_: click.Context, __: click.Parameter, typed: str) -> list[str]:
    """The signals whose names begin so."""
    from signal import Signals

    names = [signum.name.removeprefix("SIG") for signum in Signals]
    return [name for name in names if name.startswith(typed.upper())]


# ---- the run -----------------------------------------------------------------------------


name_argument = click.argument("name", shell_complete=complete_watcher)
maybe_name_argument = click.argument("name", required=False, shell_complete=complete_watcher)
wait_option = click.option(
    "--wait/--no-wait",
    "--waiting",
    "wait",
    default=True,
    help="Wait for the outcome (the default), or only for the command to be accepted.",
)


def has_colours() -> bool:
    """Whether colours are wanted (https://no-color.org: not with any value but the empty one),
    and what we write to could show them if it is a terminal."""
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def run(program: click.Group, args: list[str] | None) -> int:
    """Run the command in `args` (None: of the process); returns the exit code."""
    here = Session()
    try:
        code = program.main(
            args,
            "sysupctl",
            standalone_mode=False,
            obj=here,
            color=None if has_colours() else False,
        )
        sys.stdout.flush()
        return code or OK
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:
        return INTERRUPTED
    except SysupError as error:
        return here.explain(error)
    except BrokenPipeError:
        # Whoever read the output has enough of it. At exit Python would flush and fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    finally:
        here.close()
