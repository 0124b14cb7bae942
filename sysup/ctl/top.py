"""sysupctl's `top`: the figures of processes, live or once, from the statistics stream."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator

import click

from sysup.client import TIMEOUT, Subscription, TimedOut
from sysup.ctl import figures
from sysup.ctl.figures import BLOCKS, END, ORDERS, PLAIN_BLOCKS, Figures
from sysup.ctl.render import clean
from sysup.ctl.screen import Screen
from sysup.ctl.session import Command, Session, complete_watcher, session
from sysup.protocol import EVENTS_SOCKET, STATS, stats_topic

KEYS = {"c": "cpu", "m": "mem", "t": "time", "a": "age", "n": "name", "p": "pid", "u": "user"}
"""Keys that sort."""
HELP = "sort: c cpu  m mem  t time  a age  n name  p pid  u user  r reverse    q quit"
LATE = 3.0
"""Seconds without figures after which that is said."""
FIRST = 2
"""The round that is shown first where it is only one: CPU is told since the one before."""


@click.command(cls=Command)
@click.argument("names", metavar="[NAME]...", nargs=-1, shell_complete=complete_watcher)
@click.option(
    "--sort", "order", type=click.Choice(list(ORDERS)), default="cpu", help="By what (cpu)."
)
@click.option("--reverse", is_flag=True, help="The other way round.")
@click.option(
    "-n",
    "--count",
    metavar="N",
    type=click.IntRange(min=1),
    help="Print so many tables, one a second, and end; in a pipe it is one.",
)
def top(names: tuple[str, ...], order: str, reverse: bool, count: int | None) -> None:
    """Show processor time and memory of processes, of all watchers or these, each second.

    On a terminal until q or Ctrl-C: c, m, t, a, n, p and u sort, r reverses, arrows scroll. The
    graphs are the last seconds; a full bar is 100% of a CPU or what it needed most, and the most
    memory. With -n, --json, or in a pipe: a plain table, after two seconds.
    """
    here = session()
    for name in names:
        here.call("list", name=name)  # it is told if there is none
    live = count is None and not (here.json or here.prettify) and on_terminal()
    found = Figures(names)
    topics = [stats_topic(name).decode() for name in names] or [STATS]
    with here.client().subscribe_stats([*topics, END]) as events:
        if live:
            title = here.app or title_of(events.endpoint)
            Live(events, found, order, reverse=reverse, title=title).run()
            return
        until = (count or 1) + FIRST - 1
        for number in rounds(events, found, here.timeout or TIMEOUT):
            if number >= FIRST:
                show(here, found, order, reverse)
            if number >= until:
                return


def title_of(endpoint: str) -> str:
    """What to call an app that was not named: the directory of its socket is named after it."""
    directory, _, name = endpoint.removeprefix("ipc://").rpartition("/")
    is_own = endpoint.startswith("ipc:///") and name == EVENTS_SOCKET
    return directory.rpartition("/")[2] if is_own else endpoint


def on_terminal() -> bool:
    """Whether there is somebody to look on, and a terminal that can be drawn on."""
    both = sys.stdin.isatty() and sys.stdout.isatty()
    return both and os.environ.get("TERM", "dumb") != "dumb"


def rounds(events: Subscription, found: Figures, timeout: float) -> Iterator[int]:
    """The number of each round that is over. Raises TimedOut when none comes."""
    until = time.monotonic() + timeout
    while (left := until - time.monotonic()) > 0:
        event = events.receive(left)
        if event is not None and found.take(*event):
            yield found.rounds
            until = time.monotonic() + timeout
    raise TimedOut(f"timed out after {timeout:g} s: no statistics from {events.endpoint}")


def show(here: Session, found: Figures, order: str, reverse: bool) -> None:
    """Print all at once."""
    processes = found.sorted(order, reverse=reverse)
    reply = {"processes": [p.plain() for p in processes], "daemon": dict(found.daemon)}
    here.show(reply, figures.table(processes))


class Live:
    """What goes on on the terminal."""

    def __init__(
        self, events: Subscription, found: Figures, order: str, *, reverse: bool, title: str
    ) -> None:
        self._events = events
        self._figures = found
        self._order = order
        self._reverse = reverse
        self._title = title
        self._first = 0
        """Of the processes that are seen."""
        self._is_there = True
        """The daemon."""
        self._colour = not os.environ.get("NO_COLOR")
        utf = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
        self._blocks = BLOCKS if utf else PLAIN_BLOCKS

    def run(self) -> None:
        """Until somebody has seen enough."""
        source, drain = sys.stdin.fileno(), sys.stdout.fileno()
        heard = time.monotonic()
        self._events.notice(self._note)
        try:
            with Screen(source, drain) as screen:
                self._draw(screen, 0.0)
                while True:
                    ready = self._events.wait([source, screen.wake], 1.0)
                    drawn = bool(ready)
                    if source in ready and not self._press(screen.key(), screen.size.lines):
                        return
                    screen.rest()
                    was_there = self._is_there
                    while (event := self._events.receive(0)) is not None:
                        if self._figures.take(*event):
                            drawn, heard = True, time.monotonic()
                    late = time.monotonic() - heard
                    if drawn or late > LATE or self._is_there != was_there:
                        self._draw(screen, late)
        except KeyboardInterrupt:
            return

    def _note(self, is_there: bool) -> None:
        self._is_there = is_there

    def _press(self, key: str, lines: int) -> bool:
        """Do what a key says; False: it is enough. The end of the input is, too."""
        page = max(1, lines - 5)
        steps = {"up": -1, "k": -1, "down": 1, "j": 1, "page up": -page, "page down": page}
        if key in ("q", ""):
            return False
        if key in KEYS:
            self._order, self._first = KEYS[key], 0
        elif key == "r":
            self._reverse = not self._reverse
        elif key == "home":
            self._first = 0
        else:
            self._first += steps.get(key, 0)
        return True

    def _draw(self, screen: Screen, late: float) -> None:
        columns, lines = screen.size
        shown = self.lines(columns, lines, late)
        screen.draw(shown if self._colour else map(click.unstyle, shown))

    def lines(self, columns: int, lines: int, late: float) -> list[str]:
        """The whole screen."""
        state = f"no figures for {late:.0f} s" if late > LATE else self._figures.summary()
        if not self._figures.rounds and late <= LATE:
            state = "waiting for figures"
        if not self._is_there:
            state = "sysupd has gone; this goes on when it is back"
        way = " reversed" if self._reverse else ""
        head = f"{clean(self._title)}: {state}; by {self._order}{way}"
        processes = self._figures.sorted(self._order, reverse=self._reverse)
        room = max(1, lines - 4)
        self._first = max(0, min(self._first, len(processes) - room))
        seen = processes[self._first : self._first + room]
        body = figures.table(seen, columns, self._blocks)
        body += [""] * (room + 1 - len(body))
        more = len(processes) - self._first - len(seen)
        foot = f"{HELP}    {more} more below" if more else HELP
        whole = [
            figures.fit(head, columns),
            "",
            *body,
            click.style(figures.fit(foot, columns), dim=True),
        ]
        return whole[:lines]
