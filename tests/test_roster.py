"""Which watcher starts before which, and what is told meanwhile."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from sysup import pace
from sysup.machine import Want
from tests.test_daemon import Host, finish
from tests.world import World

SLOW = "[sysup]\nwarmup_delay = 2\n" + "".join(
    f"[watcher:{name}]\ncmd = {name}\n" for name in "abcd"
)


@pytest.fixture
def host(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    host = Host(world, tmp_path, monkeypatch)
    yield host
    host.close()


def wanted(host: Host) -> str:
    watchers = host.daemons[0].watchers
    return "".join(name for name, each in watchers.items() if each.want is Want.UP)


@pytest.mark.parametrize("again", [False, True])
def test_what_is_told_during_the_pauses_holds(host: Host, again: bool) -> None:
    daemon, run = host.run(SLOW)
    roster, watchers = daemon.roster, daemon.watchers
    if again:
        host.world.loop.advance(10.0)
        host.world.run(roster.stop_all())
        host.world.begin(roster.start_all())
    assert wanted(host) == "a"
    host.world.loop.advance(1.0)
    host.world.begin(watchers["b"].stop())  # its pause has begun
    host.world.begin(watchers["c"].stop())
    host.world.run(roster.remove(watchers["d"], nostop=False))
    host.world.loop.advance(10.0)
    assert wanted(host) == "a"
    assert {*watchers} == {"a", "b", "c"}
    assert not host.world.loop.problems
    finish(host, daemon, run)


def test_a_daemon_that_takes_over_finds_what_is_left(host: Host) -> None:
    daemon, run = host.run(SLOW)
    host.world.loop.advance(10.0)
    host.world.run(daemon.roster.stop_all())
    start = daemon.roster.start_all()
    records = dict(daemon._estate.ledger.find("watcher"))
    assert [record["touched"] for record in records.values()] == [False] * 4
    host.world.begin(start)
    host.world.loop.advance(10.0)
    assert wanted(host) == "abcd"
    records = dict(daemon._estate.ledger.find("watcher"))
    assert [record["touched"] for record in records.values()] == [True] * 4
    finish(host, daemon, run)


def test_a_stop_of_all_goes_in_turns_and_what_is_asked_after_it_holds(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "TURN", -1)  # others have a turn after each step
    daemon, run = host.run("".join(f"[watcher:{name}]\ncmd = {name}\n" for name in "abcd"))
    host.world.os.deaf = {signal.SIGTERM}
    stop = host.world.loop.create_task(daemon.roster.stop_all(wait=False))
    start = host.world.loop.create_task(daemon.watchers["b"].start())
    seen: list[str] = []

    def look() -> None:
        records = dict(daemon._estate.ledger.find("watcher"))
        seen.append("".join(str(n) for (n,), record in records.items() if record["want"] == "up"))
        if not stop.done():
            host.world.loop.call_soon(look)

    host.world.loop.call_soon(look)
    assert wanted(host) == ""
    host.world.loop.settle()
    assert (stop.done(), list(dict.fromkeys(seen))) == (True, ["acd", "ac", "a", ""])
    assert not start.done()
    assert all(watcher.slots.bodies for watcher in daemon.watchers.values()), "not down yet"
    host.world.loop.advance(60.0)
    assert (start.done(), wanted(host)) == (True, "b")
    finish(host, daemon, run)


def test_a_stop_of_all_ends_though_one_that_is_down_is_removed_meanwhile(host: Host) -> None:
    daemon, run = host.run("[watcher:a]\ncmd = a\n[watcher:b]\ncmd = b\n")
    host.world.run(daemon.watchers["a"].stop())
    stop = daemon.roster.stop_all()
    daemon.watchers.pop("a").close()  # as the last step of a removal
    host.world.run(stop)
    assert not daemon.watchers["b"].slots.bodies
    finish(host, daemon, run)
