"""The client of asyncio: calls side by side, events, and what goes wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

import sysup
from sysup.aio import AsyncClient
from sysup.client import CallError, ConnectionLost, TimedOut, Unreachable
from sysup.protocol import SysupError
from tests.canned import CannedDaemon, Gone

SOON = 60.0


def play(scene: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(scene, SOON))


def test_it_is_found_at_the_top() -> None:
    assert sysup.AsyncClient is AsyncClient
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        sysup.Nothing  # noqa: B018


def test_calls_do_not_wait_for_each_other(daemon: CannedDaemon) -> None:
    daemon.replies["version"] = {"version": "1"}
    daemon.replies["stop"] = None

    async def scene() -> None:
        async with AsyncClient(daemon.endpoint, timeout=None) as client:
            slow = asyncio.create_task(client.call("stop", name="web"))
            await asyncio.to_thread(daemon.request)
            assert (await client.call("version"))["version"] == "1"
            assert not slow.done()
            slow.cancel()

    play(scene())


def test_a_refusal_is_raised(daemon: CannedDaemon) -> None:
    async def scene() -> None:
        async with AsyncClient(daemon.endpoint) as client:
            with pytest.raises(CallError) as caught:
                await client.call("nope")
            assert caught.value.reply["status"] == "error"
            with pytest.raises(CallError, match="bytes, at most"):
                await client.call("send", text="x" * (1 << 24))

    play(scene())


def test_no_reply_in_time(daemon: CannedDaemon) -> None:
    daemon.replies["status"] = None

    async def scene() -> None:
        async with AsyncClient(daemon.endpoint, timeout=0.05) as client:
            with pytest.raises(TimedOut, match="no reply to status"):
                await client.call("status")

    play(scene())


def test_a_daemon_that_ends_ends_all_calls(daemon: CannedDaemon) -> None:
    def gone(request: dict[str, Any]) -> Any:
        raise Gone

    daemon.replies["status"] = None
    daemon.replies["quit"] = gone

    async def scene() -> list[Any]:
        async with AsyncClient(daemon.endpoint, timeout=None) as client:
            calls = [client.call("status"), client.call("quit")]
            ended: list[Any] = await asyncio.gather(*calls, return_exceptions=True)
            return ended

    assert [type(error) for error in play(scene())] == [ConnectionLost, ConnectionLost]


def test_nobody_is_there(tmp_path: Path) -> None:
    async def scene() -> None:
        async with AsyncClient(f"ipc://{tmp_path}/nothing"):
            pytest.fail("there is nothing")

    with pytest.raises(Unreachable, match="there is no such socket"):
        play(scene())


def test_it_has_to_be_opened(daemon: CannedDaemon) -> None:
    async def scene() -> None:
        await AsyncClient(daemon.endpoint).call("status")

    with pytest.raises(SysupError, match="use `async with`"):
        play(scene())


def test_a_cast_is_not_answered(daemon: CannedDaemon) -> None:
    async def scene() -> None:
        async with AsyncClient(daemon.endpoint) as client:
            await client.cast("stop", name="web")

    play(scene())
    assert daemon.request()["msg_type"] == "cast"


def test_events(daemon: CannedDaemon) -> None:
    daemon.events = [("watcher.web.start", {"a": 1}), ("watcher.web.odd", b"{")]

    async def scene() -> None:
        async with (
            AsyncClient(daemon.endpoint) as client,
            await client.subscribe(["watcher."]) as events,
        ):
            assert await anext(events) == ("watcher.web.start", {"a": 1})
            with pytest.raises(SysupError, match="cannot read an event"):
                await anext(events)

    play(scene())
