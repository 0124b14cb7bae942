"""Puts the app together: loads the config, runs the watchers, serves the sockets, ends cleanly.

The composition root: nothing else knows all the parts. Everything runs in one asyncio
loop and no call in it waits; the pump has a thread of its own in C.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import logging
import os
import random
import signal
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar

from sysup import __version__, pace, reach, reload
from sysup.board import Board
from sysup.config import Config
from sysup.control import Control
from sysup.estate import Estate, Inheritance, is_part
from sysup.herald import Herald
from sysup.log import Log, tell_event
from sysup.meter import Meter
from sysup.pace import Breath, in_turns
from sysup.process import (
    OS,
    Cgroups,
    become_subreaper,
    raise_nofile,
    set_nice,
    take_precedence,
)
from sysup.protocol import CONTROL_SOCKET, SysupError
from sysup.restore import end_left_behind, restore_watchers
from sysup.roster import Roster
from sysup.runtime import runtime_directory, take_lock
from sysup.serving import Serving
from sysup.sharing import Sharing
from sysup.signals import Signals
from sysup.sockets import Sockets
from sysup.source import Files
from sysup.streams import Pump, is_own_output
from sysup.systemd import Notifier
from sysup.turns import Superseded
from sysup.upgrade import become, program, self_test
from sysup.watcher import Watcher

log = logging.getLogger("sysup")
T = TypeVar("T")

REAP_WITHIN = 0.1
"""Seconds until strangers are reaped after a SIGCHLD; many of them are reaped at once."""
PATIENT = 1.0
"""Seconds after which a second signal to end is impatience; before, it is the same one, sent
both to the process and to its group."""
FLUSH = 2.0
"""Seconds that the pump has for its last bytes."""
CONFIG = ("config",)
"""In the ledger: what the config was read from."""
TAKEOVERS = ("takeovers",)
NOFILE = ("nofile",)
NICE = ("nice",)
"""In the ledger: the limits of descriptors and the niceness that children get."""
JOURNAL = ("journal",)
"""In the ledger: whether the daemon's own output was the journal when the app began."""
LOCK = "lock"
AT_ONCE = 0.05
"""Seconds that the first request waits for the first processes, at most."""
REPLY_WITHIN = 0.05
"""Seconds until the program is replaced, for the reply to who asked for it."""
LAST_LOOK = 0.01
"""Seconds between two looks whether killed processes are gone."""
ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)


def wall() -> float:
    """Seconds since the epoch: for what people and the wire read, and nothing else."""
    return time.time()  # noqa: TID251


class Daemon:
    """One app.

    Args:
        loaded: its config.
        loop: a running loop.
        own_log: the daemon's log.
        files: what the config was read from, for the next daemon.
        inherited: what came from the daemon before.
        notifier: the way to systemd.
    """

    def __init__(
        self,
        loaded: Config,
        loop: asyncio.AbstractEventLoop,
        own_log: Log,
        files: Files | None = None,
        inherited: Inheritance | None = None,
        notifier: Notifier | None = None,
    ) -> None:
        self.config = loaded
        self.files = files or Files()
        self.loop = loop
        self.watchers: dict[str, Watcher] = {}
        self.exit_status = 0
        self._quitting = False
        self._told_at = 0.0
        self._ended = asyncio.Event()
        self._jobs: set[asyncio.Task[Any]] = set()
        self._reaping: asyncio.TimerHandle | None = None
        self._signals = Signals(loop)
        self._ticking: asyncio.TimerHandle | None = None
        self._nofile = raise_nofile()
        self._directory = runtime_directory(loaded)
        inherited = inherited or Inheritance()
        self._lock = take_lock(self._directory, loaded.app, *inherited.fds.get(LOCK, ()))
        self._notifier = notifier or Notifier()
        self._herald = Herald(loop, self._notifier, self.watchers, loaded.daemon)
        store = self._notifier if self._notifier.connected else None
        self._estate = Estate(loop, self._directory, inherited, store)
        self._reloads = reload.Reloads(self._reload, self._estate.ledger)
        fds = inherited.fds
        self._given = {n: fds[n] for n in fds if n != LOCK and not is_part(n)}
        """Sockets that systemd holds, by name."""
        self._log = own_log
        if loaded.daemon.umask is not None:
            os.umask(loaded.daemon.umask)
        become_subreaper()
        self._nice: int = self._estate.ledger.table.get(NICE, os.getpriority(os.PRIO_PROCESS, 0))
        self._os = OS(self._estate.ledger.table.get(NOFILE, self._nofile), self._nice)
        self._pump = self._take_pump()
        self._control = Control(loop, self, wall)
        self._serving = Serving(
            loop,
            self._control,
            loaded.daemon,
            self._directory,
            self._given.get(CONTROL_SOCKET, ()),
            lambda: self._quitting,
        )
        self._board = Board(loop, self._os, self._pump, self.publish, random.random)
        self._board.on_give_up = self._give_up
        self.roster = Roster(self._board, self.watchers, lambda: self.config)
        sockets = {name: fds for name, fds in self._given.items() if name != CONTROL_SOCKET}
        self.sharing = Sharing(
            self._board, self._estate, self._serving, Sockets(sockets), self.watchers
        )
        self._meter = Meter(
            loop, self.watchers, self.sharing.sockets.describe, wall, self._os.figures
        )
        self._set()

    def _take_pump(self) -> Pump:
        """A pump that goes on with what the daemon before had read and not written.

        It has no precedence over the children: if they write much, it works as much.
        """
        set_nice(self._nice)
        try:
            return self._make_pump()
        finally:
            take_precedence()

    def _make_pump(self) -> Pump:
        try:
            return Pump(self._estate.arena, self.loop.call_later)
        except OSError as error:
            if error.errno != errno.EPROTO:
                raise SysupError(f"cannot make the pump: {error.strerror}") from None
        log.error("the buffers of the sysupd before are of another version: what they held is lost")
        return Pump(self._estate.new_arena(), self.loop.call_later)

    def _set(self) -> None:
        """Say what all processes share; connect the pump to those who subscribe to it."""
        setting = self._board.setting
        setting.app, setting.circus = self.config.app, self.config.circus
        setting.estate = self._estate
        setting.import_path = (os.path.dirname(self.config.path),)
        # As it was when the app began: systemd gives a daemon that it starts while journald is
        # away /dev/null for standard error.
        setting.to_journal = self._estate.ledger.table.get(JOURNAL, is_own_output())
        setting.serials = itertools.count(time.monotonic_ns())  # those before were lower
        setting.cgroups = cgroups = Cgroups.find()
        if cgroups:
            cgroups.enter()
        taps, events = setting.taps, self._control.events
        self._pump.on_tap = taps.take
        events.on_output_wanted = taps.want
        taps.publish = events.publish_output
        events.on_stats_wanted = self._meter.want
        self._meter.publish = events.publish_stats

    # ---- life ----------------------------------------------------------------------------

    async def run(self) -> int:
        """Run the app until it is told to end; returns the daemon's exit status."""
        self._watch_signals()
        self.loop.add_reader(self._pump.fileno(), self._pump.dispatch)
        self._log.pump(self._pump)
        for problem in self.config.problems:
            log.warning("%s", problem)
        if self._estate.inherited:
            self._restore()
        else:
            self._begin()
        start = self._job(self.roster.begin(self.watchers.values()))
        start.add_done_callback(lambda _: self._herald.begun())
        await self.roster.settle(start, AT_ONCE)
        self._serving.begin()
        pace.begin(self.loop)
        self._herald.serve(self._pump, self._serving.endpoint)
        self._tick()
        number = len(self.watchers)
        log.info("%s: %d watcher%s", self.config.app, number, "" if number == 1 else "s")
        await self._ended.wait()
        await self._shut_down()
        return self.exit_status

    def _begin(self) -> None:
        """Begin with nothing but the config."""
        end_left_behind(self._os, self._estate.left_behind())
        self._estate.begin()
        self._estate.ledger.put(CONFIG, self.files.record())
        self._estate.ledger.put(NOFILE, self._nofile)
        self._estate.ledger.put(NICE, self._nice)
        self._estate.ledger.put(JOURNAL, self._board.setting.to_journal)
        self.sharing.begin(self.config.sockets)
        for spec in self.config.watchers.values():
            self.roster.adopt(spec).save()
        self._estate.begun()

    def _restore(self) -> None:
        """Go on where the daemon before was: its processes run on."""
        self._estate.ledger.put(NICE, self._nice)
        self.sharing.begin(self.config.sockets)
        for work in restore_watchers(self._estate, self.config, self._board, self.roster.adopt):
            self._job(work)
        if self._reloads.left:
            self._job(self.reload_config())
        reload.mark(self)
        self._herald.unfollowed(reload.shortfall(self.config))
        self._estate.settle()
        self._estate.ledger.put(TAKEOVERS, self.takeovers + 1)
        kept = len(self._board.bodies)
        log.info(
            "%s: taken over from the daemon before, %d processes run on", self.config.app, kept
        )

    def quit(self, exit_status: int | None = None) -> None:
        """Stop everything and end; called once more, don't wait for anybody."""
        now = self.loop.time()
        if self._quitting:
            if now - self._told_at >= PATIENT:
                self.roster.kill_all()
            return
        self._told_at = now
        self._quitting = self._board.ending = True
        if exit_status is not None:
            self.exit_status = exit_status
        log.info("%s: ending", self.config.app)
        self._herald.stopping()
        for job in self._jobs:
            job.cancel()
        self.loop.create_task(self._stop_and_end())

    @property
    def takeovers(self) -> int:
        """How many daemons there were before that this one took over from, one after the other."""
        return int(self._estate.ledger.table.get(TAKEOVERS, 0))

    async def upgrade(self) -> Mapping[str, Any]:
        """Become the program that is installed now, in place: processes and output run on.

        Ends when all is ready for it, and the reply can be sent. Raises SysupError, with
        nothing changed, when the new program can't go on from here.
        """
        async with self._reloads.alone:
            if self._quitting:
                raise SysupError("cannot upgrade: sysupd is ending")
            version = await self_test(program(), self._estate.ledger.fd)
            self._estate.tidy()
        self._job(self._replace_soon())
        return {"from": __version__, "to": version, "takeovers": self.takeovers}

    async def _replace_soon(self) -> None:
        """When no reload is under way, and who asked for the last one has been told."""
        async with self._reloads.alone:
            await asyncio.sleep(REPLY_WITHIN)
            self._control.pause()
            try:
                await asyncio.sleep(0)  # what was answered has begun, or is noted
                self._replace()
            finally:
                self._control.go_on()

    def _replace(self) -> None:
        """Execute the new program; there is no way back, but from the end that was told first."""
        if self._quitting:
            return
        self._signals.hold()
        if self._signals.due & {*ENDING}:  # it came this moment: it must not be lost
            self._signals.let()
            return
        log.info("%s: a new sysupd takes over", self.config.app)
        self._control.close()
        self._log.stop_pumping()
        self._pump.park(FLUSH)
        os.environ.update(self._notifier.successor_environ())
        others = {LOCK: [self._lock.fileno()], **self._given}
        become(program(), self._estate.hand_over(others))

    async def ended(self) -> None:
        """Wait until all processes are gone."""
        await self._ended.wait()

    async def _stop_and_end(self) -> None:
        await self.roster.stop_all()
        self._os.kill_strangers()
        await self._clear_cgroups()
        with contextlib.suppress(TimeoutError):
            # Somebody out of our reach may hold a pipe: it is read once more, and closed.
            await asyncio.wait_for(self._board.remains.cleared(), FLUSH)
        self._ended.set()

    async def _clear_cgroups(self) -> None:
        """Kill what is left in them by `stop_scope = main`, or could not be killed before."""
        cgroups = self._board.setting.cgroups
        until = self.loop.time() + FLUSH
        try:
            while cgroups and not cgroups.kill_all():
                if self.loop.time() >= until:
                    raise SysupError("some processes do not end though they were killed")
                await asyncio.sleep(LAST_LOOK)
        except SysupError as error:
            log.error("%s", error)

    async def _shut_down(self) -> None:
        await asyncio.sleep(0)  # replies to those who waited for the end
        for watcher in self.watchers.values():
            watcher.close()
        self._herald.close()
        self._meter.close()
        self.loop.remove_reader(self._pump.fileno())
        self._log.stop_pumping()
        if lost := self._pump.stop(FLUSH):
            self._log.last_words(f"{lost} bytes of output could not be written, and are lost")
        self._control.close()
        self.sharing.sockets.close()
        self._estate.end()
        self._lock.close()
        # From here signals have nothing to end, and nobody to tell.
        self._signals.hold()
        self._signals.end()

    def _give_up(self, exit_code: int | None) -> None:
        """A watcher with `on_give_up = exit` gave up: end with its code."""
        code = 1 if exit_code is None else exit_code if exit_code >= 0 else 128 - exit_code
        self.quit(code or 1)

    def _job(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = self.loop.create_task(work)
        self._jobs.add(task)
        task.add_done_callback(self._job_done)
        return task

    def _job_done(self, task: asyncio.Task[Any]) -> None:
        self._jobs.discard(task)
        if task.cancelled() or not (error := task.exception()):
            return
        if isinstance(error, Superseded):
            log.warning("%s", error)
        else:
            log.error("%s", error, exc_info=None if isinstance(error, SysupError) else error)

    def _watch_signals(self) -> None:
        self._signals.watch(
            {
                **dict.fromkeys(ENDING, self.quit),
                signal.SIGHUP: self._reload_on_hangup,
                signal.SIGUSR1: self._pump.reopen,
                signal.SIGUSR2: lambda: self._job(self.upgrade()),
                signal.SIGCHLD: self._reap_soon,
            }
        )

    def _reload_on_hangup(self) -> None:
        """Hangups while a reload waits for its turn are answered by that one."""
        if not self._reloads.waiting:
            self._job(self.reload_config())

    def _reap_soon(self) -> None:
        if self._reaping is None:
            self._reaping = self.loop.call_later(REAP_WITHIN, self._reap)

    def _reap(self) -> None:
        self._reaping = None
        if self._board.backlog:  # a dead main is before them, and they would have to be searched
            self._reap_soon()
            return
        self._os.reap_strangers(self._board.bodies.keys())

    def _tick(self) -> None:
        """The safety reconcile: nothing depends on it but max_age."""
        if self._ticking is not None:
            self._ticking.cancel()
            self._ticking = None
        delay = self.config.daemon.check_delay
        if delay <= 0:
            return
        self._job(self._reconcile())
        self._ticking = self.loop.call_later(delay, self._tick)

    async def _reconcile(self) -> None:
        breath = Breath()
        for name in list(self.watchers):
            await breath.taken()
            if watcher := self.watchers.get(name):
                await in_turns(reach.recycle_old(watcher.slots))
                self._board.wake(watcher)

    # ---- what the commands need ----------------------------------------------------------

    def publish(self, watcher: str, event: str, payload: Mapping[str, Any]) -> None:
        """Tell the log, the subscribers and systemd what happens to a watcher."""
        tell_event(watcher, event, payload)
        self._control.events.publish(watcher, event, payload)
        self._herald.changed()

    @property
    def reading(self) -> asyncio.Lock:
        """Held while files are read that the config is to be of."""
        return self._reloads.reading

    @property
    def is_ending(self) -> bool:
        """Whether it was told to end."""
        return self._quitting

    def plan_reload(self) -> Coroutine[Any, Any, Mapping[str, Any]]:
        """What `reload_config` would do; raises as it would."""
        return reload.dry_run(self)

    def reload_config(self) -> Coroutine[Any, Any, Mapping[str, Any]]:
        """Read the config again and do exactly what differs; raises as `reload.run`."""
        return self._reloads.ask()

    async def _reload(self, has_read: Callable[[], None]) -> Mapping[str, Any]:
        delay = self.config.daemon.check_delay
        try:
            with self._herald.reload():
                return await reload.run(self, has_read)
        finally:
            if self.config.daemon.check_delay != delay:
                self._tick()

    def keep_config(self) -> None:
        """Have the config as it was read be that of the next daemon, too."""
        self._estate.ledger.put(CONFIG, self.files.record())

    @property
    def kept(self) -> Mapping[str, Any]:
        """The sections of the config that are not followed, and why."""
        return self.config.kept

    async def save(self, watcher: Watcher, options: Mapping[str, Any]) -> str:
        """Have options outlast the daemon; returns the file. Raises SysupError."""
        path = await reload.save(self, watcher, options)
        self.keep_config()
        return path

    def differences(self) -> Coroutine[Any, Any, Mapping[str, Any]]:
        """How what runs differs from the config."""
        return reload.differences(self)

    @property
    def changed_files(self) -> list[str]:
        """Files of the config that are not what was read any more."""
        return self.files.changed()

    def options(self) -> Mapping[str, Any]:
        """Circus's five global options, and where this daemon is."""
        options = self.config.daemon
        return {
            "endpoint": options.endpoint or self._serving.endpoint,
            "stats_endpoint": self._serving.stats_endpoint,
            "pubsub_endpoint": options.pubsub_endpoint or self._serving.events_endpoint,
            "check_delay": options.check_delay,
            "multicast_endpoint": options.multicast_endpoint,
        }

    def sockets(self) -> list[Mapping[str, Any]]:
        """The listening sockets, by descriptor."""
        return self.sharing.sockets.describe()

    def own_stats(self) -> Any:
        """Figures of the daemon itself, and how long its loop was blocked at most."""
        own = self._meter.own()
        return {**own, **pace.figures(self.loop)} if isinstance(own, dict) else own

    async def stats(self, watchers: list[Watcher]) -> dict[str, dict[str, Any]]:
        """Figures of the watchers' processes, by watcher and pid."""
        return await self._meter.infos(watchers)
