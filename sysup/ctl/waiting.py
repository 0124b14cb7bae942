"""sysupctl's `wait`: until watchers are ready, or stopped. Events say when to look."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import click

from sysup import protocol
from sysup.client import TIMEOUT, CallError, ConnectionLost, Subscription, TimedOut, Unreachable
from sysup.ctl import render
from sysup.ctl.session import (
    FAILED,
    NOT_RUNNING,
    OK,
    UNREACHABLE,
    Command,
    Session,
    complete_watcher,
    is_well,
    session,
)
from sysup.protocol import SysupError

ENOUGH = 100
"""Events after which it is looked again, though more are there."""
SOON = 0.05
"""Seconds until a daemon that has ended is looked for again."""

Watchers = Mapping[str, Mapping[str, Any]]


@click.command(cls=Command)
@click.argument("names", metavar="[NAME]...", nargs=-1, shell_complete=complete_watcher)
@click.option("--ready", "goal", flag_value="ready", default="ready", help="The default.")
@click.option("--stopped", "goal", flag_value="stopped", help="Until no process is left.")
def wait(names: tuple[str, ...], goal: str) -> int:
    """Wait until watchers are ready: all their processes are, or have done their work.

    Without NAME it is all that is wanted up. It waits for ever, or --timeout SECONDS. Exits with
    0 when it is so, 1 as soon as one has failed for good, 3 if it is not so in time, 4 if the
    daemon can't be reached or there is no such watcher.
    """
    here = session()
    until = time.monotonic() + (math.inf if here.timeout is None else here.timeout)
    here.timeout = None
    topics = [f"watcher.{protocol.event_name(name)}." for name in names] or ["watcher."]
    with here.client().subscribe(topics) as events:
        if not events.wait_until_heard(TIMEOUT):
            raise SysupError(
                f"cannot wait: {events.endpoint} does not tell whether it is heard; "
                "the app's own socket does (-a APP)"
            )
        try:
            return wait_for(here, events, names, goal, until)
        except CallError as error:
            here.explain(error)
            return UNREACHABLE


def wait_for(
    here: Session, events: Subscription, names: tuple[str, ...], goal: str, until: float
) -> int:
    """Look at each event; returns the exit code. Raises CallError if there is no such watcher."""
    watchers: Watchers = {}
    while True:
        seen = look(here, names)
        if seen is not None:
            watchers = seen
            if all(has_reached(watcher, goal, bool(names)) for watcher in watchers.values()):
                here.show({"watchers": watchers}, [])
                return OK
            if goal == "ready" and any(map(has_failed, watchers.values())):
                return tell(here, watchers, FAILED)
        left = until - time.monotonic()
        if left <= 0:
            return tell(here, watchers, NOT_RUNNING)
        listen(events, left if seen is not None else min(left, SOON))


def look(here: Session, names: tuple[str, ...]) -> Watchers | None:
    """How these watchers, or all, are now; None while there is no daemon to tell."""
    with suppress(ConnectionLost, TimedOut, Unreachable):
        if not names:
            found: Watchers = here.call("status", processes=True)["watchers"]
            return found
        replies = [here.call("status", name=name, processes=True) for name in names]
        return {k: w for reply in replies for k, w in reply["watchers"].items()}
    return None


def has_reached(watcher: Mapping[str, Any], goal: str, named: bool) -> bool:
    """Whether it is as it was waited for."""
    if goal == "stopped":
        return not any(process.get("pid") for process in watcher["processes"])
    return is_well(watcher, named)


def has_failed(watcher: Mapping[str, Any]) -> bool:
    """Whether it is wanted, and has given up."""
    return watcher.get("want") != "down" and watcher["state"] == "failed"


def listen(events: Subscription, seconds: float) -> None:
    """Wait until something happens, and pass over what has happened already."""
    events.receive(None if seconds == math.inf else seconds)
    for _ in range(ENOUGH):
        if events.receive(0) is None:
            return


def tell(here: Session, watchers: Watchers, code: int) -> int:
    """Show how they are instead."""
    here.show({"watchers": watchers}, render.status(watchers, processes=False, width=here.width))
    return code
