"""Figures of processes: read while somebody wants them, in turns, and under the right topics."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from sysup import meter as module
from sysup.meter import INTERVAL, Meter, is_wanted, together
from sysup.process import OS
from sysup.stats import GONE, TICKS, Infos, Steps
from sysup.watcher import Watcher
from tests.world import World


class Stage:
    """A meter over three processes of two watchers, whose figures are made up."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.watchers: dict[str, Watcher] = {}
        self.rows: list[Mapping[str, Any]] = []
        look = OS().figures
        self.meter = Meter(world.loop, self.watchers, lambda: self.rows, lambda: 5000.0, look)
        self.told: list[tuple[str, Mapping[str, Any]]] = []
        self.meter.publish = lambda topic, told: self.told.append((topic.decode(), told))
        self.gone: set[int] = set()
        self.passes: list[list[int]] = []
        self.meter._asked.infos = self._infos  # type: ignore[method-assign]
        self.meter._streamed.info = self._info  # type: ignore[method-assign]
        for name, number in (("Web App", 2), ("db.main", 1)):
            watcher = self.watchers[name.lower()] = world.watcher(name, numprocesses=number)
            world.run(watcher.start())

    def _info(self, pid: int, wall: float) -> dict[str, Any] | str:
        return GONE if pid in self.gone else {"pid": pid, "cpu": pid / 10, "mem": 1.0, "age": pid}

    def _infos(self, pids: Any, wall: float) -> Steps[Infos]:
        self.passes.append(list(pids))
        yield
        return {pid: self._info(pid, wall) for pid in pids}

    def topics(self) -> list[str]:
        """Those that were told of since the last time."""
        topics = [topic for topic, _ in self.told]
        self.told.clear()
        return topics


@pytest.fixture
def stage(world: World) -> Iterator[Stage]:
    stage = Stage(world)
    yield stage
    stage.meter.close()
    world.loop.settle()


# ---- for those who subscribe -------------------------------------------------------------


def test_nothing_is_read_while_nobody_wants_it(stage: Stage) -> None:
    stage.meter.want(frozenset())
    stage.world.loop.settle()
    assert stage.topics() == []
    stage.meter.want(frozenset({b"stat."}))
    stage.world.loop.settle()
    assert stage.topics() != []
    stage.meter.want(frozenset())
    stage.world.loop.advance(10 * INTERVAL)
    assert stage.topics() == []


def test_a_round_is_made_each_second_in_circus_shape(stage: Stage) -> None:
    stage.meter.want(frozenset({b"stat."}))
    stage.world.loop.settle()
    own = os.getpid()
    topics = [
        *("stat.web_app.101", "stat.web_app.102", "stat.web_app"),
        *("stat.db-main.103", "stat.db-main"),
        *(f"stat.circus.{own}", "stat.circus"),
    ]
    told = dict(stage.told)
    assert stage.topics() == topics
    assert told["stat.web_app.102"] == {
        **{"pid": 102, "cpu": 10.2, "mem": 1.0, "age": 102},
        **{"subtopic": 102, "name": None, "watcher": "Web App", "wid": 2},
    }
    assert told["stat.web_app"] == {
        **{"pid": [101, 102], "cpu": 10.15, "mem": 2.0, "age": 102},
        "watcher": "Web App",
    }
    assert (told[f"stat.circus.{own}"]["name"], told["stat.circus"]["pid"]) == ("circusd", [own])
    stage.world.loop.advance(3 * INTERVAL)
    assert stage.topics() == 3 * topics


def test_only_what_is_subscribed_to_is_read(stage: Stage) -> None:
    stage.meter.want(frozenset({b"stat.db-main."}))
    stage.world.loop.settle()
    assert stage.topics() == ["stat.db-main.103", "stat.db-main"]


def test_what_has_gone_is_passed_over(stage: Stage) -> None:
    stage.gone = {101, 103}
    stage.meter.want(frozenset({b"stat.web", b"stat.db"}))
    stage.world.loop.settle()
    assert stage.topics() == ["stat.web_app.102", "stat.web_app"]


def test_a_failure_costs_its_round_alone(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    def fail(pid: int, wall: float) -> Any:
        raise OSError(24, "Too many open files")

    stage.meter._streamed.info = fail  # type: ignore[method-assign]
    stage.meter.want(frozenset({b"stat."}))
    stage.world.loop.advance(3 * INTERVAL)
    assert [record.message for record in caplog.records] == [
        "cannot read statistics: Too many open files"
    ]
    stage.meter._streamed.info = stage._info  # type: ignore[method-assign]
    stage.world.loop.advance(INTERVAL)
    assert stage.topics() != []


def test_connections_that_wait_are_seen(stage: Stage) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy, socket.create_server(("", 0)) as idle:
        with socket.create_connection(busy.getsockname()):
            fds = busy.fileno(), idle.fileno()
            stage.rows = [
                {"fd": fds[0], "name": "s", "host": "127.0.0.1", "port": 80},
                {"fd": fds[1], "name": "u", "path": "/run/u"},
            ]
            stage.meter.want(frozenset({b"stat.sockets"}))
            stage.world.loop.advance(INTERVAL * 1.05)
        assert [(topic, *told.values()) for topic, told in stage.told] == [
            (f"stat.sockets.{fds[0]}", fds[0], fds[0], module.LOOKS, "127.0.0.1:80"),
            (f"stat.sockets.{fds[1]}", fds[1], fds[1], 0, "/run/u"),
            ("stat.sockets", ["127.0.0.1:80", "/run/u"], module.LOOKS),
        ]


@pytest.mark.parametrize(
    ("subscribed", "wanted"),
    [
        (b"", True),
        (b"stat.", True),
        (b"stat.we", True),
        (b"stat.web", True),
        (b"stat.web.", True),
        (b"stat.web.12", True),
        (b"stat.website", False),
        (b"stat.web2.", False),
        (b"watcher.", False),
    ],
)
def test_whom_a_subscription_means(subscribed: bytes, wanted: bool) -> None:
    assert is_wanted(b"stat.web", frozenset({b"stat.other", subscribed})) is wanted


def test_figures_of_several_as_one() -> None:
    infos = [{"pid": n, "cpu": n * 1.0, "mem": 0.25, "age": n} for n in (1, 3)]
    assert together(infos) == {"pid": [1, 3], "cpu": 2.0, "mem": 0.5, "age": 3}


# ---- for who asks ------------------------------------------------------------------------


def test_who_asks_is_told_of_all(stage: Stage) -> None:
    stage.gone = {102}
    stage.world.loop.advance(7.0)
    table = stage.world.run(stage.meter.infos(stage.watchers.values()))
    assert [(name, [*rows]) for name, rows in table.items()] == [
        ("Web App", ["101", "102"]),
        ("db.main", ["103"]),
    ]
    assert table["Web App"]["102"] == GONE
    row = table["Web App"]["101"]
    assert (row["wid"], row["started"]) == (1, 5000.0 - 7.0)


def test_those_who_ask_for_the_same_share_a_pass(stage: Stage) -> None:
    async def ask() -> None:
        web, db = stage.watchers.values()
        groups = [[web, db], [web], [web, db], [db], [web]]
        tables = await asyncio.gather(*(stage.meter.infos(group) for group in groups))
        assert [len(table) for table in tables] == [2, 1, 2, 1, 1]
        await stage.meter.infos([db])

    stage.world.run(ask())
    assert stage.passes == [[101, 102, 103], [101, 102], [103]]


def test_who_asks_again_within_a_clock_tick_is_told_the_same(stage: Stage) -> None:
    everybody = list(stage.watchers.values())
    world, meter = stage.world, stage.meter
    first = world.run(meter.infos(everybody))
    assert world.run(meter.infos(everybody)) == first
    assert len(stage.passes) == 1
    world.run(meter.infos(everybody[:1]))
    world.run(meter.infos(everybody))
    assert len(stage.passes) == 3, "another question"
    world.run(stage.watchers["db.main"].scale(1))
    assert len(world.run(meter.infos(everybody))["db.main"]) == 2, "a process more"
    world.loop.advance(1 / TICKS)
    world.run(meter.infos(everybody))
    assert len(stage.passes) == 5
    world.loop.advance(1 / TICKS)
    assert meter._newest is None, "not kept for long"


def test_each_of_those_has_a_turn_of_its_own(stage: Stage) -> None:
    """To write out what it was told, which takes time."""
    turn, told_in = 0, []

    async def count() -> None:
        nonlocal turn
        while True:
            turn += 1
            await asyncio.sleep(0)

    async def ask() -> None:
        await stage.meter.infos(stage.watchers.values())
        told_in.append(turn)

    async def all_of_them() -> None:
        counting = asyncio.ensure_future(count())
        await asyncio.gather(*(ask() for _ in range(5)))
        counting.cancel()

    stage.world.run(all_of_them())
    assert len(set(told_in)) == 5
    assert stage.passes == [[101, 102, 103]]


def test_a_watcher_that_is_removed_meanwhile_has_no_processes(stage: Stage) -> None:
    async def ask() -> dict[str, Any]:
        asked = asyncio.ensure_future(stage.meter.infos([stage.watchers["db.main"]]))
        await asyncio.sleep(0)
        del stage.watchers["db.main"]
        return await asked

    assert stage.world.run(ask()) == {"db.main": {}}


def test_who_is_impatient_does_not_spoil_it_for_others(stage: Stage) -> None:
    async def ask() -> dict[str, Any]:
        one, two = (asyncio.ensure_future(stage.meter.infos(stage.watchers.values())) for _ in "12")
        await asyncio.sleep(0)
        one.cancel()
        return await two

    assert len(stage.world.run(ask())) == 2
