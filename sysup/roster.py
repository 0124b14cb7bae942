"""The watchers of an app: who is one of them, and who goes before whom."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Collection, Coroutine, Mapping
from contextlib import suppress
from typing import Any, TypeVar

from sysup import config
from sysup.board import Board
from sysup.config import Config, WatcherSpec
from sysup.machine import Want
from sysup.pace import Breath
from sysup.protocol import MessageError, SysupError
from sysup.turns import Superseded
from sysup.watcher import Watcher

log = logging.getLogger("sysup")
T = TypeVar("T")


class Roster:
    """Those of one app.

    Args:
        board: what they share.
        watchers: where they are to be found, by name in lower case.
        config: the app's, as it is now.
    """

    def __init__(
        self, board: Board, watchers: dict[str, Watcher], config: Callable[[], Config]
    ) -> None:
        self._board = board
        self._watchers = watchers
        self._config = config

    def adopt(self, spec: WatcherSpec, added: Mapping[str, Any] | None = None) -> Watcher:
        """Have a watcher."""
        watcher = Watcher(self._board, spec, added)
        self._watchers[spec.name.lower()] = watcher
        return watcher

    def add(self, name: str, cmd: str, args: Any, options: Mapping[str, Any]) -> Watcher:
        """Make a watcher at run time, stopped.

        Raises MessageError for a name that is taken or options that are wrong.
        """
        spec = config.add(name, cmd, args, options, flapping=self._config().flapping)
        if spec.name.lower() in self._watchers:
            raise MessageError(f"program {spec.name} already exists")
        watcher = self.adopt(spec, {"name": name, "cmd": cmd, "args": args, "options": options})
        watcher.save()
        self._board.publish(spec.name, "add", {})
        return watcher

    async def remove(self, watcher: Watcher, *, nostop: bool) -> None:
        """Remove a watcher; its processes are stopped, or left running and forgotten."""
        if nostop:
            watcher.forget_processes()
        else:
            await watcher.stop()
        if self._is_there(watcher):  # not removed meanwhile
            watcher.close()
            del self._watchers[watcher.name.lower()]
            self._board.publish(watcher.name, "remove", {})

    async def begin(self, watchers: Collection[Watcher]) -> None:
        """Begin with those of them that are yet to start by themselves: high priority first."""
        await self._in_order(watchers, Watcher.begin_start)

    async def settle(self, begun: asyncio.Future[None], seconds: float) -> None:
        """Wait until all has begun, and what is wanted up has come to rest, so many seconds at
        most."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._settled(begun), seconds)

    async def _settled(self, begun: asyncio.Future[None]) -> None:
        await asyncio.wait({begun})
        for watcher in list(self._watchers.values()):
            if watcher.want is Want.UP and not watcher.is_settled:
                with suppress(Superseded):
                    await watcher.at_rest()

    def start_all(self) -> Coroutine[Any, Any, None]:
        """Start what is to be started by itself: high priority first."""
        for watcher in self._watchers.values():
            if watcher.spec.autostart:
                watcher.touched = False  # so a daemon that takes over starts what is left
                watcher.save()
        return self._start_all()

    async def _start_all(self) -> None:
        started = await self._in_order(
            self._watchers.values(),
            lambda watcher: self._board.loop.create_task(watcher.start()),
        )
        results = await asyncio.gather(*started, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception) and not isinstance(result, Superseded):
                raise result

    def stop_all(self, *, wait: bool = True) -> Coroutine[Any, Any, None]:
        """Stop everything: low priority first, all at the same time.

        Ends when all is down, or if nobody is to wait when that is noted for the next daemon.
        """
        stops = [(w, w.want_down()) for w in reversed(_by_priority(self._watchers.values()))]
        return self._all_down(stops, wait)

    async def _all_down(
        self, stops: list[tuple[Watcher, asyncio.Future[None]]], wait: bool
    ) -> None:
        breath = Breath()
        for watcher, _ in stops:
            await breath.taken()
            self._board.wake(watcher)  # also one that was removed meanwhile: it answers
        for _, down in stops if wait else ():
            await down

    async def _in_order(
        self, watchers: Collection[Watcher], begin: Callable[[Watcher], T]
    ) -> list[T]:
        """Begin with those that start by themselves: high priority first, `warmup_delay` between.

        What was told to start or to stop meanwhile is left alone.
        """
        pause, breath = self._config().daemon.warmup_delay, Breath()
        begun: list[T] = []
        for watcher in _by_priority(watchers):
            if pause and begun and self._is_left(watcher):
                await asyncio.sleep(pause)
            await breath.taken()
            if self._is_left(watcher):
                begun.append(begin(watcher))
        return begun

    def _is_left(self, watcher: Watcher) -> bool:
        return self._is_there(watcher) and watcher.spec.autostart and not watcher.touched

    def _is_there(self, watcher: Watcher) -> bool:
        return self._watchers.get(watcher.name.lower()) is watcher

    def kill_all(self) -> None:
        """Wait for nobody any more."""
        log.warning("told to end once more: killing what is left")
        for body in list(self._board.bodies.values()):
            try:
                self._board.os.signal_group(body.process.pid, signal.SIGKILL)
            except SysupError as error:
                log.error("%s", error)


def _by_priority(watchers: Collection[Watcher]) -> list[Watcher]:
    return sorted(watchers, key=lambda w: (-w.spec.priority, w.name))
