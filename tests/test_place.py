"""What is told of slots: the JSON that is kept says what there is, whatever has happened."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sysup import reach
from sysup.config import FlappingSpec, Restart
from sysup.protocol import SysupError
from sysup.watcher import Watcher
from tests.fakes import whole
from tests.world import World

HIDDEN = "(hidden)"
EVENTS: dict[str, Callable[[World, Watcher], object]] = {
    "start": lambda world, watcher: begin(world, watcher.start()),
    "begin": lambda world, watcher: watcher.begin_start(),
    "stop": lambda world, watcher: watcher.begin_stop(),
    "more": lambda world, watcher: begin(world, watcher.scale(1)),
    "fewer": lambda world, watcher: begin(world, watcher.scale(-1)),
    "recycle": lambda world, watcher: whole(reach.recycle(watcher.slots, None, None, 1.0)),
    "signal": lambda world, watcher: whole(reach.send_signal(watcher.slots, 10)),
    "one dies": lambda world, watcher: die(world, 1),
    "all die": lambda world, watcher: die(world, 9),
    "reload": lambda world, watcher: begin(world, watcher.reload()),
    "set": lambda world, watcher: begin(
        world, watcher.set_options({"flapping.scope": "watcher", "flapping.retry_in": 3.0})
    ),
    "set back": lambda world, watcher: begin(
        world, watcher.set_options({"flapping.scope": "process"})
    ),
    "bad": lambda world, watcher: world.os.fails.update(web="cannot execute web: gone"),
    "good": lambda world, watcher: world.os.fails.clear(),
    "full": lambda world, watcher: fail(world, "disk full"),
    "not full": lambda world, watcher: fail(world, ""),
    "not followed": lambda world, watcher: setattr(watcher, "unfollowed", ("cmd: missing",)),
    "a moment": lambda world, watcher: world.loop.advance(0.1234567),
    "a second": lambda world, watcher: world.loop.advance(1.0),
    "a minute": lambda world, watcher: world.loop.advance(60.0),
    "forget": lambda world, watcher: forget(world, watcher),
}


def begin(world: World, work: Coroutine[Any, Any, Any]) -> None:
    """Have a command go on; that it may be refused is no matter here."""

    async def quietly() -> None:
        with suppress(SysupError):
            await work

    world.loop.create_task(quietly())


def die(world: World, number: int) -> None:
    for pid in list(world.os.living)[:number]:
        world.os.die(pid, 1, b"oh\n")


def fail(world: World, reason: str) -> None:
    """The files can't be written, or can be again."""
    for sink in world.pump.sinks:
        sink.fail(reason)


def forget(world: World, watcher: Watcher) -> None:
    watcher.forget_processes()
    world.os.living.clear()


def same(watcher: Watcher) -> None:
    """The JSON is what there is; without output for whom that is hidden from."""
    wanted = watcher.describe()
    assert json.loads(watcher.written(None, True)) == wanted
    for row in wanted["processes"]:
        row["last_output"] = row["last_output"] and HIDDEN
    assert json.loads(watcher.written(HIDDEN, True)) == wanted
    del wanted["processes"]
    assert json.loads(watcher.written(HIDDEN, False)) == wanted


@settings(max_examples=200)
@given(
    st.lists(st.sampled_from([*EVENTS]), max_size=25),
    st.sampled_from(["watcher", "process"]),
    st.sampled_from(Restart),
)
def test_what_is_kept_is_what_there_is(events: list[str], scope: str, restart: Restart) -> None:
    with pytest.MonkeyPatch.context() as patch:
        world = World(patch.setattr)
        flapping = FlappingSpec(scope=scope, max_retry=2)
        watcher = world.watcher(numprocesses=2, flapping=flapping, restart=restart)
        watcher.begin_start()
        try:
            for event in events:
                with suppress(SysupError):
                    EVENTS[event](world, watcher)
                same(watcher)  # also in the midst of it
                world.loop.settle()
                same(watcher)
        finally:
            watcher.close()
            for task in asyncio.all_tasks(world.loop):
                task.cancel()
            world.loop.settle()
            world.close()


def test_nothing_is_written_again_while_nothing_changes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    watcher = world.watcher(numprocesses=100)
    world.run(watcher.start())
    texts = 0
    dumps = json.dumps

    def count(value: object) -> str:
        nonlocal texts
        texts += 1
        return dumps(value)

    monkeypatch.setattr(json, "dumps", count)
    watcher.written(None, True)
    world.loop.advance(5.0)
    assert texts == 101
    texts = 0
    told = json.loads(watcher.written(None, True))
    assert (texts, told["uptime"], told["processes"][99]["uptime"]) == (0, 5.0, 5.0)
    world.os.die(101)
    world.loop.settle()
    texts = 0
    watcher.written(None, True)
    assert texts == 2
