"""sysupctl's commands that show what is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import click

from sysup.client import CallError
from sysup.ctl import render
from sysup.ctl.report import report
from sysup.ctl.session import (
    NOT_RUNNING,
    OK,
    UNREACHABLE,
    Command,
    Session,
    complete_watcher,
    is_well,
    maybe_name_argument,
    name_argument,
    session,
    tell_change,
)
from sysup.protocol import event_name, split_topic


@click.command(cls=Command)
@maybe_name_argument
@click.option("--processes", is_flag=True, help="Show each process, too.")
def status(name: str | None, processes: bool) -> int:
    """Show how the watchers, or one and its processes, are.

    Exits with 0 if all that is wanted runs, 3 if not, 4 if that can't be told.
    """
    here = session()
    if sessions := here.several():
        from sysup.ctl import several

        return several.status(here, sessions, name, processes)
    try:
        reply = here.call("status", name=name, processes=True)
    except CallError as error:
        here.explain(error)
        return UNREACHABLE
    watchers = reply.get("watchers")
    if watchers is not None:
        used = None if here.json or here.prettify else usage(here, name and next(iter(watchers)))
        lines = render.status(watchers, processes or name is not None, used, here.width)
        here.show(reply, lines)
        for line in hints(reply):
            click.echo(f"hint: {line}", err=True)
        well = all(is_well(watcher, named=name is not None) for watcher in watchers.values())
    else:  # a daemon of Circus
        states = {name: reply["status"]} if name else reply["statuses"]
        here.show(reply, render.key_values(states))
        well = all(state == "active" for state in states.values())
    return OK if well else NOT_RUNNING


def hints(reply: Mapping[str, Any]) -> Iterator[str]:
    """What is strange about the config, but for what the watchers tell themselves."""
    if not reply["watchers"]:
        yield "there are no watchers: add a [watcher:NAME] to the config"
    if changed := reply.get("changed_files"):
        files = ", ".join(map(render.clean, changed))
        yield f"{files} changed: `sysupctl reloadconfig --dry-run` tells what a reload would do"
    told = {f"watcher:{name.lower()}" for name in reply["watchers"]}
    for section, why in reply.get("kept", {}).items():
        if section not in told:
            yield f"[{render.clean(section)}] is not followed: {render.clean('; '.join(why))}"


def usage(here: Session, name: str | None) -> render.Used | None:
    """What processes take; None where that can't be told."""
    try:
        reply = here.call("stats", name=name)
    except CallError:
        return None
    return render.usages(reply["infos"] if name is None else {name: reply["info"]})


@click.command(cls=Command)
@name_argument
def show(name: str) -> None:
    """Show all that is known of a watcher."""
    reply = session().call("show", name=name)
    session().show(reply, report(reply["watcher"]))


@click.command("list", cls=Command)
@maybe_name_argument
def list_(name: str | None) -> int:
    """Print the names of the watchers, or the pids of one."""
    here = session()
    if sessions := here.several():
        from sysup.ctl import several

        return several.names(here, sessions, name)
    reply = here.call("list", name=name)
    here.show(reply, map(render.clean, reply["watchers" if name is None else "pids"]))
    return OK


@click.command(cls=Command)
@maybe_name_argument
def numprocesses(name: str | None) -> None:
    """Print how many processes there are, or a watcher has."""
    reply = session().call("numprocesses", name=name)
    session().show(reply, str(reply["numprocesses"]))


@click.command(cls=Command)
def numwatchers() -> None:
    """Print how many watchers there are."""
    reply = session().call("numwatchers")
    session().show(reply, str(reply["numwatchers"]))


@click.command(cls=Command)
@maybe_name_argument
@click.argument("pid", required=False, type=int)
@click.option("--extended", is_flag=True, help="All that is known, as JSON shows it.")
def stats(name: str | None, pid: int | None, extended: bool) -> int:
    """Show memory and CPU time of processes."""
    here = session()
    if pid is None and (sessions := here.several()):
        from sysup.ctl import several

        return several.stats(here, sessions, name)
    reply = session().call("stats", name=name, process=pid, extended=extended or None)
    if name is None:
        infos = reply["infos"]
    elif pid is None:
        infos = {name: reply["info"]}
    else:
        infos = {name: {str(pid): reply["info"]}}
    here.show(reply, render.stats(infos))
    return OK


def _blocked(info: Mapping[str, Any]) -> Iterator[str]:
    """How long the daemon could do nothing else; nothing where it doesn't tell."""
    longest, lately = (
        render.number(info.get("loop_blocked")),
        render.number(info.get("loop_blocked_lately")),
    )
    if longest >= 0:
        yield f"blocked at most {1000 * longest:.0f} ms, lately {1000 * max(0.0, lately):.0f} ms"


@click.command(cls=Command)
def dstats() -> None:
    """Show memory and CPU time of the daemon itself, and how long it was blocked at most."""
    reply = session().call("dstats")
    info = reply["info"]
    lines = render.stats({"daemon": {str(info.get("pid", 0)): info}})
    session().show(reply, [*lines, *_blocked(info)])


def _sockets(found: Iterable[Mapping[str, Any]]) -> list[str]:
    """A line for each listening socket."""
    rows = [
        [
            str(socket.get("fd", "")),
            render.clean(socket.get("name", "")),
            render.clean(socket.get("path") or f"{socket.get('host')}:{socket.get('port')}"),
            str(socket.get("backlog", "")),
        ]
        for socket in found
    ]
    return render.table(("FD", "NAME", "ADDRESS", "BACKLOG"), rows)


@click.command(cls=Command)
def listsockets() -> None:
    """Show the listening sockets that watchers are given."""
    reply = session().call("listsockets")
    session().show(reply, _sockets(reply["sockets"]))


@click.command(cls=Command)
@click.argument("topics", metavar="[TOPIC]...", nargs=-1, shell_complete=complete_watcher)
def listen(topics: tuple[str, ...]) -> None:
    """Print events as they happen, until Ctrl-C.

    A TOPIC is the beginning of the topics wanted, as watcher.web.reap, or the name of a watcher.
    With --json each event is a line of JSON. That the daemon has gone, and is back, is told on
    standard error: what happens meanwhile is not heard.
    """
    here = session()
    with here.client().subscribe([_topic(word) for word in topics] or ["watcher."]) as subscription:
        subscription.notice(tell_change)
        try:
            for topic, payload in subscription:
                watcher, event = split_topic(topic.encode())
                if not isinstance(payload, dict):
                    payload = {"payload": payload}
                line = {"topic": topic, "watcher": watcher, "event": event, **payload}
                here.show(line, render.event(watcher, event, payload))
        except KeyboardInterrupt:
            return


def _topic(word: str) -> str:
    """The beginning of topics that a word means: Circus's syntax, or a watcher's name."""
    if word.startswith(("watcher.", "stat.")):
        return word
    return f"watcher.{event_name(word)}."
