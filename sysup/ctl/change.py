"""sysupctl's commands that say what is to be; they wait until it is done."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import click

from sysup.client import CallError, ConnectionLost
from sysup.ctl import options, render
from sysup.ctl.session import (
    FAILED,
    OK,
    Command,
    complete_signal,
    maybe_name_argument,
    name_argument,
    session,
    wait_option,
)
from sysup.protocol import MAX_MESSAGE

TAKEN_OVER_WITHIN = 30.0
"""Seconds within which a new daemon has to answer."""

match_option = click.option(
    "--match",
    type=click.Choice(["glob", "regex", "simple"]),
    help="How NAME means watchers: several by a glob (the default) or regex, or one.",
)


def _change(name: str | None, done: str, command: str, wait: bool, **properties: Any) -> int:
    """Have watchers changed as a whole, and say what became of it: `done`, if that is all."""
    here = session()
    reply = here.call(command, name=name, waiting=wait or None, **properties)
    if not wait:
        here.show(reply, "ok")
    elif name is None or not reply.get("info"):
        here.show(reply, f"{render.clean(name)}: {done}" if name else done)
    else:
        return options.came_up(name, reply["info"], reply)
    return OK


@click.command(cls=Command)
@maybe_name_argument
@match_option
@wait_option
def start(name: str | None, match: str | None, wait: bool) -> int:
    """Start watchers: all that start by themselves, or those that NAME means."""
    return _change(name, "started", "start", wait, match=match)


@click.command(cls=Command)
@maybe_name_argument
@match_option
@wait_option
def stop(name: str | None, match: str | None, wait: bool) -> int:
    """Stop watchers: all, or those that NAME means."""
    return _change(name, "stopped", "stop", wait, match=match)


@click.command(cls=Command)
@maybe_name_argument
@match_option
@wait_option
def restart(name: str | None, match: str | None, wait: bool) -> int:
    """Stop watchers and start them again."""
    return _change(name, "restarted", "restart", wait, match=match)


@click.command("reload", cls=Command)
@maybe_name_argument
@click.option("--sequential", is_flag=True, help="One process after the other.")
@click.option("--terminate", is_flag=True, help="End the old ones before there are new ones.")
@wait_option
def reload_(name: str | None, sequential: bool, terminate: bool, wait: bool) -> int:
    """Replace processes by new ones, without a gap."""
    graceful = False if terminate else None
    return _change(
        name, "reloaded", "reload", wait, sequential=sequential or None, graceful=graceful
    )


def _scaled(name: str, reply: Mapping[str, Any], stopped: bool = False) -> str:
    """`web: 4 processes`."""
    note = " (singleton)" if reply.get("singleton") else ""
    when = " once it is started" if stopped else ""
    return f"{render.clean(name)}: {render.count(reply['numprocesses'], 'process')}{when}{note}"


def _scale(command: str, name: str, number: int, save: bool, wait: bool) -> int:
    here = session()
    reply = here.call(command, name=name, nb=number, save=save or None, waiting=wait or None)
    if "numprocesses" not in reply:
        here.show(reply, ["ok", *options.saved(reply)])
        return OK
    watchers: dict[str, Any] = {}
    with suppress(CallError):  # it is done; how the watcher is adds to that
        watchers = here.call("status", name=name).get("watchers", {})
    stopped = any(watcher["want"] == "down" for watcher in watchers.values())
    lines = [_scaled(name, reply, stopped), *options.saved(reply)]
    failing = any(watcher["state"] in render.TROUBLED for watcher in watchers.values())
    if failing:
        lines += render.status(watchers, processes=False, width=here.width)
    here.show(reply, lines)
    return FAILED if failing else OK


@click.command(cls=Command)
@name_argument
@click.argument("number", metavar="[N]", type=click.IntRange(min=0), default=1)
@options.save_option
@wait_option
def incr(name: str, number: int, save: bool, wait: bool) -> int:
    """Have N more processes (1); a singleton stays as it is."""
    return _scale("incr", name, number, save, wait)


@click.command(cls=Command)
@name_argument
@click.argument("number", metavar="[N]", type=click.IntRange(min=0), default=1)
@options.save_option
@wait_option
def decr(name: str, number: int, save: bool, wait: bool) -> int:
    """Have N fewer processes (1); a singleton stays as it is."""
    return _scale("decr", name, number, save, wait)


def _signal(text: str) -> int | str:
    """A signal as the wire has it: a number, or a name."""
    return int(text) if text.isdecimal() else text.upper()


@click.command("signal", cls=Command)
@name_argument
@click.argument(
    "pid_and_signal",
    metavar="[PID] SIGNAL",
    nargs=-1,
    required=True,
    shell_complete=complete_signal,
)
@click.option("--children", is_flag=True, help="To the children, not the process.")
@click.option("--recursive", is_flag=True, help="To the process and all its descendants.")
def signal_(name: str, pid_and_signal: tuple[str, ...], children: bool, recursive: bool) -> int:
    """Send a signal to the processes of a watcher, or to one."""
    *pids, signum = pid_and_signal
    if len(pids) > 1 or not all(pid.isdecimal() for pid in pids):
        raise click.UsageError("the arguments are NAME [PID] SIGNAL")
    pid = int(pids[0]) if pids else None
    reply = session().call(
        "signal",
        name=name,
        pid=pid,
        signum=_signal(signum),
        children=children or None,
        recursive=recursive or None,
    )
    return _reached(name, pid, "signalled", reply)


def _reached(name: str, pid: int | None, done: str, reply: dict[str, Any]) -> int:
    """Say to how many processes something was done; to none is a failure."""
    number = reply.get("processes")  # circusd does not tell, nor a reply that comes at once
    if number == 0:
        which = "no process" if pid is None else f"no process {pid}"
        click.echo(f"error: {render.clean(name)} has {which}", err=True)
        session().show(reply, ())
        return FAILED
    told = f"{render.clean(name)}: {render.count(number, 'process')} {done}" if number else "ok"
    session().show(reply, told)
    return OK


def _sent(name: str, reply: Mapping[str, Any]) -> str:
    """`web: 6 bytes to 2 processes`."""
    sizes = render.count(reply["bytes"], "byte"), render.count(reply["processes"], "process")
    return f"{render.clean(name)}: {' to '.join(sizes)}"


@click.command(cls=Command)
@name_argument
@click.argument("words", metavar="TEXT...", nargs=-1)
@click.option("--wid", metavar="N", type=int, help="To the process in this slot alone.")
@click.option("--pid", metavar="PID", type=int, help="To this process alone.")
@click.option("--no-newline", is_flag=True, help="Don't end TEXT with a newline.")
@click.option("--eof", is_flag=True, help="End the input after it; TEXT may be left out.")
@wait_option
def send(
    name: str,
    words: tuple[str, ...],
    wid: int | None,
    pid: int | None,
    no_newline: bool,
    eof: bool,
    wait: bool,
) -> None:
    """Write TEXT to the standard input of a watcher's processes, if that is a pipe.

    It goes to all that run, or to none, and ends with a newline. TEXT - is what sysupctl reads
    from its own input. Words that begin with - stand after --. A terminal (pty = yes) takes
    lines of at most 4095 bytes.
    """
    if not words and not eof:
        raise click.UsageError("there is no TEXT")
    # As many bytes as make the request too long, if there are so many, which is then told.
    data = sys.stdin.buffer.read(MAX_MESSAGE) if words == ("-",) else os.fsencode(" ".join(words))
    reply = session().call(
        "send",
        name=name,
        text=data.decode("utf-8", "surrogateescape"),
        wid=wid,
        pid=pid,
        newline=False if no_newline or not words else None,
        eof=eof or None,
        waiting=wait or None,
    )
    session().show(reply, _sent(name, reply))


@click.command(cls=Command)
@name_argument
@click.argument("pid", required=False, type=int)
@click.option("--signum", metavar="SIGNAL", shell_complete=complete_signal, help="Ask by this.")
@click.option(
    "--graceful_timeout",
    "--graceful-timeout",
    metavar="SECONDS",
    type=click.FloatRange(min=0),
    help="SIGKILL follows after so long.",
)
@wait_option
def kill(
    name: str, pid: int | None, signum: str | None, graceful_timeout: float | None, wait: bool
) -> int:
    """End the processes of a watcher, or one; new ones take their places."""
    reply = session().call(
        "kill",
        name=name,
        pid=pid,
        signum=None if signum is None else _signal(signum),
        graceful_timeout=graceful_timeout,
        waiting=wait or None,
    )
    return _reached(name, pid, "ended", reply)


@click.command(cls=Command)
@name_argument
@click.option("--nostop", is_flag=True, help="Leave its processes running, and forget them.")
@wait_option
def rm(name: str, nostop: bool, wait: bool) -> int:
    """Stop a watcher and remove it."""
    return _change(name, "removed", "rm", wait, nostop=nostop or None)


@click.command(cls=Command)
def upgrade() -> None:
    """Have the daemon become the sysupd that is installed now; all processes run on."""
    here = session()
    reply = here.call("upgrade", waiting=True)
    until = time.monotonic() + TAKEN_OVER_WITHIN
    while time.monotonic() < until:
        with suppress(CallError):  # for a moment nobody is there
            if here.call("version")["takeovers"] > reply["takeovers"]:
                break
        time.sleep(0.02)
    else:
        raise CallError("the new sysupd does not answer: see the daemon's log")
    here.show(reply, f"sysupd {reply['from']} is replaced by {reply['to']}")


@click.command("quit", cls=Command)
@wait_option
def quit_(wait: bool) -> None:
    """Stop everything, and end the daemon."""
    try:
        reply = session().call("quit", waiting=wait or None)
    except ConnectionLost:  # its last words may be lost, but it is gone
        reply = {"status": "ok"}
    session().show(reply, "stopped" if wait else "ok")
