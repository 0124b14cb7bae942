"""Scenarios of the control socket, which Circus and sysup have in common.

Each takes a supervisor and returns its figures.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import zmq

from tests.bench.peers import Ini, Peer
from tests.bench.run import SETTLE, Figures, Missing, Run, Scale, Tools

PATIENCE = 120.0
"""Seconds that a reply may take."""
ENDLESS = ("lines", str(10**9))
"""What a child does that writes for longer than anything is measured."""
BLOCK, LINE = "4000", "100"
"""Bytes of a write: as stdio(3) writes into a pipe, and of who writes each line at once."""
MANY = 1000
"""Questions of a kind, of which the slowest are of interest."""
ENOUGH = 10
"""Questions of a kind, if they don't take too long."""


class Asker:
    """A client, with one question at a time."""

    def __init__(self, sock: zmq.Socket[bytes]) -> None:
        self._socket = sock

    def send(self, command: str, **properties: Any) -> None:
        request = {"id": command, "command": command, "properties": properties}
        self._socket.send(json.dumps(request).encode())

    def is_answered(self, timeout: float) -> bool:
        return bool(self._socket.poll(int(timeout * 1000)))

    def receive(self) -> dict[str, Any]:
        """Raises Missing when it takes too long."""
        return self._read(self._wait())

    def _wait(self) -> bytes:
        if not self.is_answered(PATIENCE):
            raise Missing("no reply")
        return self._socket.recv()

    def _read(self, data: bytes) -> dict[str, Any]:
        reply: dict[str, Any] = json.loads(data)
        if reply.get("status") == "error":
            raise Missing(f"refused: {reply['reason']}")
        return reply

    def ask(self, command: str, **properties: Any) -> float:
        """Seconds that the reply took; not counted is what the client makes of it."""
        began = time.monotonic()
        self.send(command, **properties)
        data = self._wait()
        took = time.monotonic() - began
        self._read(data)
        return took


@contextmanager
def askers(run: Run, number: int) -> Iterator[list[Asker]]:
    """Clients of a supervisor."""
    assert isinstance(run.peer, Ini)
    with zmq.Context() as context:
        socks: list[zmq.Socket[bytes]] = [context.socket(zmq.DEALER) for _ in range(number)]
        for sock in socks:
            sock.linger = 0
            sock.connect(run.peer.endpoint(run.directory))
        try:
            yield [Asker(sock) for sock in socks]
        finally:
            for sock in socks:
                sock.close()


def statistics_of_many(peer: Peer, tools: Tools, scale: Scale) -> Figures:
    """`stats` of many children; how long another client waits meanwhile for something light."""
    took: list[float] = []
    light: list[float] = []
    with Run(peer, tools.child, ("sleep",), scale.many) as run:
        run.all_up()
        time.sleep(SETTLE)
        with askers(run, 2) as (asker, other):
            for each in (asker, other):
                each.ask("numwatchers")
            before = run.cost()
            deadline = time.monotonic() + scale.killing
            while len(took) < ENOUGH and (not took or time.monotonic() < deadline):
                began = time.monotonic()
                asker.send("stats")
                while not asker.is_answered(0.0):
                    light.append(other.ask("numwatchers"))
                found = sum(map(len, asker.receive()["infos"].values()))
                took.append(time.monotonic() - began)
                if found != scale.many:
                    raise Missing(f"figures of {found} children")
            cpu = run.cost().cpu - before.cpu
    return {
        "p50 ms": 1000 * statistics.median(took),
        "max ms": 1000 * max(took),
        "another waits max ms": 1000 * max(light, default=0.0),
        "CPU ms": 1000 * cpu / len(took),
    }


def requests(peer: Peer, tools: Tools, scale: Scale) -> Figures:
    """One client that asks again and again: something light, and figures of all children."""
    with Run(peer, tools.child, ("sleep",), scale.children) as run:
        run.all_up()
        time.sleep(SETTLE)
        with askers(run, 1) as (asker,):
            rates = [rate(asker, word, scale.watching / 4) for word in ("numwatchers", "stats")]
    return {"light/s": rates[0], "stats/s": rates[1]}


def status_of_ten(peer: Peer, tools: Tools, scale: Scale) -> Figures:
    """`status` of many processes of ten watchers, of which those of one write all the time."""
    return _status(peer, tools, scale, 9, BLOCK)


def status_of_two(peer: Peer, tools: Tools, scale: Scale) -> Figures:
    """The same where nearly all processes are of one watcher."""
    return _status(peer, tools, scale, 1, BLOCK)


def status_between_lines(peer: Peer, tools: Tools, scale: Scale) -> Figures:
    """The same with ten watchers, and writers that are held up by nothing but each other."""
    return _status(peer, tools, scale, 9, LINE)


def _status(peer: Peer, tools: Tools, scale: Scale, watchers: int, size: str) -> Figures:
    took: dict[str, list[float]] = {"all": [], "one": [], "each process": []}
    with Run(peer, tools.child, (*ENDLESS, size), scale.writers, log=True) as run:
        run.all_up()
        with askers(run, 1) as (asker,):
            number = (scale.many - scale.writers) // watchers
            for name in (f"quiet{each}" for each in range(watchers)):
                asker.ask("add", name=name, cmd="sleep 1000000", options={"numprocesses": number})
                asker.ask("start", name=name, waiting=True)
            run.open_gate()
            time.sleep(SETTLE)
            deadline = time.monotonic() + scale.killing
            while len(took["one"]) < MANY and time.monotonic() < deadline:
                took["all"].append(asker.ask("status"))
                took["one"].append(asker.ask("status", name="quiet0"))
                took["each process"].append(asker.ask("status", processes=True))
            asker.send("dstats")
            blocked = asker.receive()["info"]["loop_blocked"]
    figures = {
        f"{of} {word} ms": 1000 * value
        for of, times in took.items()
        for word, value in (("p50", statistics.median(times)), ("p99", percentile(times)))
    }
    return {**figures, "loop blocked ms": 1000 * blocked}


def percentile(values: list[float]) -> float:
    """What 99 of 100 are not above."""
    return sorted(values)[max(0, round(len(values) * 0.99) - 1)]


def rate(asker: Asker, command: str, seconds: float) -> float:
    """How often in a second it is answered."""
    number, began = 0, time.monotonic()
    while (took := time.monotonic() - began) < seconds:
        asker.ask(command)
        number += 1
    return number / took
