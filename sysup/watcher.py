"""Runs one watcher: performs what the slots' machines and the plan ask for.

Two doors lead in. The *commands* (start, stop, restart, reload, scale, set) change
what is wanted, wait for their turn behind earlier commands to the same watcher, and end when
the watcher has come to rest; a stop pre-empts whatever else is going on. The *reports*
(a process ended, a deadline came, a pipe was read out) feed the machines. Both end in
`Board.wake`, after which the plan is made and carried out in the loop's next turn.
"""

from __future__ import annotations

import asyncio
import logging
import math
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from sysup import config
from sysup.board import Board
from sysup.body import Body, Death, Inherited, Mould
from sysup.config import Impact, WatcherSpec
from sysup.machine import (
    Abandon,
    Action,
    Clear,
    Event,
    Exited,
    History,
    Kill,
    Lifecycle,
    Publish,
    Recycle,
    Released,
    Signal,
    Signalled,
    Spawn,
    Spawned,
    SpawnFailed,
    Start,
    State,
    Timeout,
    Want,
    describe_exit,
)
from sysup.plan import (
    LOOPING,
    NOT_SERVING,
    Forget,
    Goal,
    Launch,
    Rollout,
    Send,
    Slot,
    plan,
    public_state,
)
from sysup.process import Unreaped
from sysup.protocol import SysupError
from sysup.stdin import Input
from sysup.streams import Losses
from sysup.turns import Condition, Superseded, Turns

log = logging.getLogger("sysup.watcher")

REAPED_WITHIN = 0.005
"""Seconds until a parent that is not us is asked again whether it has reaped the process."""
REPORT_WITHIN = 0.25
"""Seconds that a death report waits at most for the last output of the dead."""


@dataclass
class Place(Slot):
    """A slot with what the shell keeps of it."""

    body: Body | None = None
    timer: asyncio.TimerHandle | None = None
    luck: float = 0.0
    """In [0, 1), drawn once for each process: its share of `max_age_variance`."""
    output: str = ""


class Watcher:
    """One watcher of the app: its options and its slots."""

    def __init__(
        self, board: Board, spec: WatcherSpec, added: Mapping[str, Any] | None = None
    ) -> None:
        self.board = board
        self.spec = spec
        self.added = added
        """What it was added with at run time; None: it stands in the config."""
        self.overrides: Mapping[str, Any] = {}
        """Options that were set at run time."""
        self.touched = False
        """Whether it was told to start or to stop; else it is yet to start by itself."""
        self.places: dict[int, Place] = {}
        self.want = Want.DOWN
        self._generation = 1
        self._specs = {1: spec}
        self._moulds: dict[int, Mould] = {}
        self._rollout = Rollout(surge=0, max_unavailable=spec.numprocesses)
        self._launched = -math.inf
        """When the last slot was made."""
        self._closed = False
        self._history = History()
        """Of all slots together, under `flapping.scope = watcher`."""
        self._turns = Turns(board.loop)
        self._again: asyncio.TimerHandle | None = None
        self._published = "stopped"
        self.dead: dict[int, Body] = {}
        """By wid: the last process there that has ended."""
        self.losses: dict[str, Counter[str]] = {}
        """By stream: the output that was left out."""

    def __repr__(self) -> str:
        return f"<watcher {self.spec.name} want={self.want} {len(self.places)} slots>"

    @property
    def name(self) -> str:
        """As the config has it."""
        return self.spec.name

    @property
    def state(self) -> str:
        """Circus's word: stopped, starting, active or stopping."""
        return public_state(self.want, self.places.values())

    @property
    def is_stopped(self) -> bool:
        """Whether it is down to stay: no command is under way that may bring it up."""
        return self.want is Want.DOWN and not self._turns.taken

    @property
    def is_settled(self) -> bool:
        """Whether every slot has come to a verdict: it runs, waits for its retry, or is over."""
        return self._is_up()

    @property
    def bodies(self) -> list[tuple[Place, Body]]:
        """The slots that hold a living process, by wid."""
        return [(p, p.body) for _, p in sorted(self.places.items()) if p.body and p.life.alive]

    @property
    def newest(self) -> dict[int, Body]:
        """By wid: the process there, or the last one where none is."""
        living = {wid: p.body for wid, p in self.places.items() if p.body}
        return dict(sorted({**self.dead, **living}.items()))

    @property
    def moulds(self) -> list[Mould]:
        """What processes are made by; the newest is the last."""
        return [mould for _, mould in sorted(self._moulds.items())]

    # ---- commands ------------------------------------------------------------------------

    async def start(self) -> dict[str, Any]:
        """Be up; ends when every process runs, waits to be retried, or was given up."""
        return await self._bring_up()

    async def restart(self) -> dict[str, Any]:
        """Stop all, then start all."""
        return await self._bring_up(afresh=True)

    async def _bring_up(self, *, afresh: bool = False) -> dict[str, Any]:
        before = self._pids()
        async with self._my_turn() as still_mine:
            if afresh:
                self.want = Want.DOWN
                self.board.wake(self)
            if self.want is Want.DOWN and self.places:  # a stop is not through
                await self._rest(self._is_down)
                still_mine()
            self.begin_start()
            await self._rest(self._is_up)
        return self._difference(before)

    def begin_start(self) -> None:
        """The part of `start` that needs no waiting."""
        self.want = Want.UP
        self.touched = True
        self._history.forget()
        for place in list(self.places.values()):
            if place.life.state is not State.STOPPED:
                self._handle(place, Start())
        self.board.wake(self)

    async def stop(self) -> dict[str, Any]:
        """Be down; pre-empts other commands; ends when nothing of the processes is left."""
        before = self._pids()
        self.begin_stop()
        await self._rest(self._is_down)
        return self._difference(before)

    def begin_stop(self) -> None:
        """The part of `stop` that needs no waiting."""
        self._supersede()
        self.board.wake(self)

    def _supersede(self) -> None:
        """Want nothing any more; commands that want something end."""
        self.want = Want.DOWN
        self.touched = True
        self._turns.supersede(f"{self.name} was told to stop", self._is_down)

    async def reload(self, *, sequential: bool = False) -> dict[str, Any]:
        """Replace every process by one of the present options, without a gap.

        Old processes go as new ones have proven themselves. Raises SysupError when the new
        ones fail; the old ones run on, and go if the new ones recover.
        """
        before = self._pids()
        async with self._my_turn():
            if self.want is Want.DOWN:
                raise SysupError(f"{self.name} is stopped")
            if self.spec.send_hup:
                self.signal(signal.SIGHUP)
                return self._difference(before)
            self._next_generation(sequential)
            await self._rest(self._is_rolled_out)
            self._check_generation()
            self._publish("reload")
        return self._difference(before)

    async def scale(self, change: int) -> int:
        """Have so many processes more; those that stay are not touched. Returns the number.

        Raises MessageError when that would be more than there can be.
        """
        async with self._turns.mine():
            number = max(0, self.spec.numprocesses + change)
            if self.spec.singleton:
                number = min(number, 1)
            self._replace_spec(config.with_option(self.spec, "numprocesses", number))
            self.overrides = {**self.overrides, "numprocesses": number}
            self.board.wake(self)
            await self._rest_if_up(self._is_up)
            return self.spec.numprocesses

    async def set_options(self, options: Mapping[str, Any]) -> dict[str, str]:
        """Change options; returns how each took effect.

        Raises MessageError for an unknown option or a value of the wrong type; then none
        of them is changed. Raises SysupError when processes of the new options fail; the
        old ones run on meanwhile.
        """
        async with self._turns.mine():
            spec = config.with_options(self.spec, options)
            impacts = {key: config.impact(key) for key in options}
            self.apply(spec, set(impacts.values()), {**self.overrides, **options})
            for _ in options:
                self._publish("updated")
            if Impact.RELOAD in impacts.values():
                await self._rest_if_up(self._is_rolled_out)
                self._check_generation()
            elif Impact.SCALE in impacts.values():
                await self._rest_if_up(self._is_up)
        return {key: str(impact) for key, impact in impacts.items()}

    def apply(
        self, spec: WatcherSpec, impacts: Collection[Impact], overrides: Mapping[str, Any]
    ) -> None:
        """Take new options over; the processes follow as each change needs.

        `overrides` are those of them that don't stand in the config.

        Raises SysupError, and then the options stay, when a process can't be given a limit.
        """
        if Impact.LIMITS in impacts:
            self._limit_running(spec)
        if Impact.RELOAD in impacts:
            self._next_generation(sequential=False)
        self._replace_spec(spec)
        self.overrides = overrides
        if Impact.LIMITS in impacts:
            self._break_moulds()
        self.board.wake(self)

    async def kill(
        self, pid: int | None, signum: int | None, graceful_timeout: float | None
    ) -> None:
        """End processes (one, or all) and let them be started afresh.

        `signum` and `graceful_timeout` (seconds) stand in for the watcher's own.
        """
        for place, body in self.bodies:
            if pid is not None and body.process.pid != pid:
                continue
            if signum is not None or graceful_timeout is not None:
                stage = self.spec.stop_signal[0]
                stage = replace(
                    stage,
                    signum=stage.signum if signum is None else signum,
                    timeout=stage.timeout if graceful_timeout is None else graceful_timeout,
                )
                place.life.spec = replace(place.life.spec, stop_signal=(stage,))
            self._handle(place, Recycle())
        await self._rest(self._is_up if self.want is Want.UP else self._is_down)

    def signal(
        self,
        signum: int,
        pid: int | None = None,
        child_pid: int | None = None,
        children: bool = False,
        recursive: bool = False,
    ) -> None:
        """Send a signal to processes, or below them; dying of it counts as no crash."""
        for place, body in self.bodies:
            if pid is not None and body.process.pid != pid:
                continue
            if child_pid is not None:
                self.board.os.signal_child(body.process, child_pid, signum)
            elif children or recursive:
                self.board.os.signal_children(body.process, signum, recursive=recursive)
            if child_pid is None and (recursive or not children):
                self._handle(place, Signalled(body.serial, signum))
                self.board.os.signal(body.process, signum)

    def inputs(self, wid: int | None = None, pid: int | None = None) -> list[Input]:
        """The standard inputs of its processes: of all that are not being stopped, or of one.

        Raises SysupError when there is none.
        """
        if wid is None and pid is None:
            meant = [body for p, body in self.bodies if p.life.state is not State.STOPPING]
        else:
            meant = [b for p, b in self.bodies if wid in (None, p.wid)]
            meant = [body for body in meant if pid in (None, body.process.pid)]
        inputs = [body.stdin for body in meant if body.stdin]
        if not inputs and self.spec.stdin != "pipe":
            raise SysupError(f"cannot send to {self.name}: set stdin = pipe")
        if not meant:
            numbers = [f"{key} {n}" for key, n in (("wid", wid), ("pid", pid)) if n is not None]
            which = f"process with {' and '.join(numbers)}" if numbers else "running process"
            raise SysupError(f"cannot send to {self.name}: it has no {which}")
        if not inputs:
            raise SysupError(f"cannot send to {self.name}: it was started before stdin = pipe")
        return inputs

    def check_age(self) -> None:
        """Begin to replace processes that are older than `max_age` allows."""
        spec, now = self.spec, self.board.loop.time()
        for place, _ in self.bodies if spec.max_age else ():
            lifetime = spec.max_age + spec.max_age_variance * place.luck
            if now - place.life.started > lifetime:
                self._handle(place, Recycle())

    def close(self) -> None:
        """The watcher is removed: let go of what it holds open; commands that wait end."""
        self._closed = True
        self._supersede()
        self._break_moulds()
        if self.board.setting.cgroups:
            self.board.setting.cgroups.forget(self.name)
        if self.board.setting.estate:
            self.board.setting.estate.ledger.drop(("watcher", self.name))
        for handle in (self._again, *(p.timer for p in self.places.values())):
            if handle is not None:
                handle.cancel()

    def forget_processes(self) -> None:
        """Leave the processes running and know them no more (`rm --nostop`)."""
        for _, body in self.bodies:
            self.board.loop.remove_reader(body.process.pidfd)
            self.board.os.close(body.process)
            self.board.bodies.pop(body.process.pid, None)
            body.on_buried()
        for place in self.places.values():
            if place.timer is not None:
                place.timer.cancel()
            self._drop(place)
        self.places.clear()
        self._supersede()
        self._turns.answer()

    # ---- acting on the plan --------------------------------------------------------------

    def act(self, until: float) -> bool:
        """Carry the plan out until the time is over; True: there is more to do."""
        now = self.board.loop.time()
        planned = plan(self._goal(), self.places.values(), now)
        for step in planned.steps:
            match step:
                case Launch(wid):
                    self._launch(wid)
                case Send(wid, event):
                    self._handle(self.places[wid], event)
                case Forget(wid):
                    self._forget(wid)
            if self.board.loop.time() >= until:
                return True
        self._come_to_rest(planned.again_at)
        return bool(planned.steps)

    def _goal(self) -> Goal:
        spec = self.spec
        return Goal(
            want=self.want,
            numprocesses=spec.numprocesses,
            generation=self._generation,
            rollout=self._rollout,
            not_before=self._launched + spec.warmup_delay,
            one_by_one=spec.warmup_delay > 0,
            together=self._together,
        )

    def _come_to_rest(self, again_at: float | None) -> None:
        if self._again is not None:
            self._again.cancel()
            self._again = None
        if again_at is not None:
            self._again = self.board.loop.call_at(again_at, self.board.wake, self)
        state = self.state
        up = any(place.life.state is State.RUNNING for place in self.places.values())
        if state != self._published and (state == "stopped" or (state == "active" and up)):
            self._publish("start" if state == "active" else "stop")
            self._published = state
        self._turns.answer()

    def _launch(self, wid: int) -> None:
        now = self.board.loop.time()
        history = self._history if self._together else None
        life = Lifecycle(self.spec, now, self.board.rand, history)
        place = Place(wid, self._generation, life)
        self.places[wid] = place
        self._launched = now
        self._handle(place, Start(afresh=not self._together))

    def _forget(self, wid: int) -> None:
        place = self.places.pop(wid)
        self._drop(place)
        if place.timer is not None:
            place.timer.cancel()
        if place.generation != self._generation:
            self._drop_generation(place.generation)

    def _handle(self, place: Place, event: Event) -> None:
        """Feed a machine, do what it asks, and set its timer."""
        if self.places.get(place.wid) is not place:
            return  # forgotten, and this is about an earlier process of it
        before = place.life.state
        for action in place.life.handle(event, self.board.loop.time()):
            self._perform(place, action)
        self._set_timer(place)
        self._save_place(place)
        if place.life.state is not before or not place.life.alive:
            self.board.wake(self)

    def _set_timer(self, place: Place) -> None:
        if place.timer is not None:
            place.timer.cancel()
            place.timer = None
        deadline = place.life.deadline
        if deadline is not None:
            place.timer = self.board.loop.call_at(deadline, self._handle, place, Timeout())

    def _perform(self, place: Place, action: Action) -> None:
        match action:
            case Spawn():
                self._spawn(place)
            case Signal(signum):
                self._signal(place, signum)
            case Kill():
                self._signal(place, signal.SIGKILL)
            case Clear() if place.body is not None:
                body = place.body
                scope = place.life.spec.stop_scope
                self.board.remains.clear(
                    body,
                    scope,
                    partial(self._on_released, place),
                    awaited=place.life.state is State.STOPPING,
                )
            case Abandon() if place.body is not None:
                self.board.remains.abandon(place.body)
            case Publish(event, fields) if "reason" in fields:
                self._report(place, event, fields)
            case Publish(event, fields):
                pid = place.body.process.pid if place.body else None
                self._publish(event, process_pid=pid, wid=place.wid, **fields)

    # ---- processes -----------------------------------------------------------------------

    def _spawn(self, place: Place) -> None:
        board = self.board
        try:
            body = self._mould(place.generation).make(place.wid, place.generation)
        except SysupError as error:
            place.body = None
            self._handle(place, SpawnFailed(str(error)))
            return
        place.life.spec = self.spec
        place.luck = board.rand()
        self._watch(place, body)
        self._publish("spawn", process_pid=body.process.pid, wid=place.wid)
        self._handle(place, Spawned(body.serial))

    def _watch(self, place: Place, body: Body) -> None:
        """Have `_on_exit` called when the process ends."""
        place.body = body
        self.board.bodies[body.process.pid] = body
        self.board.loop.add_reader(body.process.pidfd, self._on_exit, place, body)

    def _on_exit(self, place: Place, body: Body) -> None:
        """The pidfd is readable: the process has ended, once and for all."""
        board = self.board
        board.loop.remove_reader(body.process.pidfd)
        try:
            status = board.os.wait(body.process)
        except Unreaped:
            board.loop.call_later(REAPED_WITHIN, self._on_exit, place, body)
            return
        board.os.close(body.process)
        if body.stdin:
            body.stdin.close()
        board.bodies.pop(body.process.pid, None)
        self._publish("reap", process_pid=body.process.pid, wid=place.wid, exit_code=status)
        body.on_output.append(lambda output: setattr(place, "output", output))
        body.death = Death(status, describe_exit(status), board.loop.time())
        self.dead[place.wid] = body
        self._handle(place, Exited(body.serial, status))

    def _signal(self, place: Place, signum: int) -> None:
        body = place.body
        if body is None:
            return
        self._publish("kill", process_pid=body.process.pid, wid=place.wid, signum=signum)
        try:
            self._send(place, body, signum)
        except SysupError as error:
            self._publish("kill_failed", process_pid=body.process.pid, reason=str(error))

    def _send(self, place: Place, body: Body, signum: int) -> None:
        os, scope = self.board.os, place.life.spec.stop_scope
        if body.cgroup and scope == "tree" and signum == signal.SIGKILL:
            body.cgroup.kill()
            return
        if scope == "group" or (scope == "tree" and signum == signal.SIGKILL):
            if os.signal_group(body.process.pid, signum):
                return  # it leads the group; a second signal might mean more to it
        elif place.life.spec.stop_children and signum != signal.SIGKILL:
            os.signal_children(body.process, signum, recursive=False)
        os.signal(body.process, signum)

    def _limit_running(self, spec: WatcherSpec) -> None:
        """Change the limits of what runs. Raises SysupError with all that can't be."""
        failed = []
        for _, body in self.bodies:
            for limit in spec.rlimits:
                try:
                    self.board.os.set_limit(body.process, limit.name, limit.soft, limit.hard)
                except SysupError as error:
                    failed.append(str(error))
        if failed:
            raise SysupError("; ".join(failed))

    def _mould(self, generation: int) -> Mould:
        """What makes the processes of a generation: an old one keeps its own options."""
        mould = self._moulds.get(generation)
        if mould is None:
            board = self.board
            spec = self._specs[generation]
            mould = Mould(
                board.setting,
                spec,
                on_read_out=board.remains.check,
                on_sink=self._on_sink,
                on_loss=self._on_loss,
                on_rotated=lambda path: self._publish("sink_rotated", path=path),
            )
            self._moulds[generation] = mould
        return mould

    def _on_sink(self, reason: str | None) -> None:
        """Output can't be written, or can again."""
        if reason is None:
            self._publish("sink_recovered")
        else:
            self._publish("sink_failed", reason=reason)

    def _on_loss(self, stream: str, losses: Losses) -> None:
        """Some output was left out."""
        self.losses.setdefault(stream, Counter()).update(asdict(losses))
        self._publish("output_lost", stream=stream, **asdict(losses))

    def _break_moulds(self) -> None:
        """Later processes are made from the options as they are then."""
        moulds, self._moulds = self._moulds, {}
        for mould in moulds.values():
            mould.close()

    def _drop_generation(self, generation: int) -> None:
        """Forget an old generation that has no slot."""
        if all(place.generation != generation for place in self.places.values()):
            self._specs.pop(generation, None)
            if mould := self._moulds.pop(generation, None):
                mould.close()

    @property
    def _together(self) -> bool:
        """Whether all slots count their deaths together, and wait together."""
        return self.spec.flapping.scope == "watcher"

    # ---- over the end of the daemon ------------------------------------------------------

    def save(self) -> None:
        """Have the next daemon know what is wanted."""
        if estate := self.board.setting.estate:
            estate.ledger.put(
                ("watcher", self.name),
                {
                    "want": self.want,
                    "touched": self.touched,
                    "generation": self._generation,
                    "rollout": [self._rollout.surge, self._rollout.max_unavailable],
                    "launched": self._launched,
                    "published": self._published,
                    "history": self._history.record(),
                    "added": self.added,
                    "overrides": self.overrides,
                },
            )

    def _save_place(self, place: Place) -> None:
        estate = self.board.setting.estate
        if estate and self.places.get(place.wid) is place:
            life = place.life.record()
            record = {"generation": place.generation, "luck": place.luck, "life": life}
            estate.ledger.put(("place", self.name, place.wid), record)

    def _drop(self, place: Place) -> None:
        if estate := self.board.setting.estate:
            estate.ledger.drop(("place", self.name, place.wid))

    def restore(
        self,
        record: Mapping[str, Any],
        places: Iterable[tuple[int, Mapping[str, Any]]],
        bodies: Iterable[Inherited],
    ) -> None:
        """Go on where another daemon ended, by what it saved.

        The processes run on. What has happened to them meanwhile is taken for happening now.
        """
        self.overrides = record["overrides"]
        self.want, self.touched = Want(record["want"]), record["touched"]
        self._generation = record["generation"]
        self._rollout = Rollout(*record["rollout"])
        self._launched, self._published = record["launched"], record["published"]
        self._history = History.restored(record["history"])
        self._specs = {self._generation: self.spec}
        for wid, saved in places:
            self._restore_place(wid, saved)
        if self.places:
            with suppress(SysupError):  # the plan tells
                self._mould(self._generation)  # whose sinks take up what was on its way
        # Of a slot the newest is its process; what comes after that is dead.
        for inherited in sorted(bodies, key=lambda body: -body.serial):
            try:
                self._restore_body(inherited)
            except SysupError as error:
                log.error("cannot go on with process %d: %s", inherited.record["pid"], error)
        for place in list(self.places.values()):
            self._set_timer(place)
            if place.body is None and place.life.alive:  # it ended, and its descriptors are lost
                self._handle(place, Exited(place.life.serial, None))
            elif place.body is None and not place.life.released:
                self._handle(place, Released(place.life.serial))
        self.board.wake(self)

    def _restore_place(self, wid: int, saved: Mapping[str, Any]) -> Place:
        history = self._history if self._together else None
        life = Lifecycle.restored(self.spec, self.board.rand, saved["life"], history)
        generation = saved["generation"]
        self._specs.setdefault(generation, self.spec)
        place = Place(wid, generation, life, luck=saved["luck"])
        self.places[wid] = place
        return place

    def _restore_body(self, inherited: Inherited) -> None:
        board, serial = self.board, inherited.serial
        wid, generation = inherited.record["wid"], inherited.record["generation"]
        self._specs.setdefault(generation, self.spec)
        try:
            mould = self._mould(generation)
        except SysupError:
            inherited.give_up(board.os)
            raise
        body = mould.adopt(inherited)
        place = self.places.get(wid)
        if place is None or place.life.serial < serial:  # it was born, and then the end came
            life = place.life if place else Lifecycle(self.spec, board.loop.time(), board.rand)
            place = Place(wid, generation, life)
            self.places[wid] = place
            life.want, life.state = Want.UP, State.STARTING
            self._watch(place, body)
            self._handle(place, Spawned(serial))
        elif place.life.serial == serial and place.life.alive:
            self._watch(place, body)
        else:
            board.os.close(body.process)
            if place.life.serial == serial:
                place.body = body
            board.remains.clear(
                body,
                place.life.spec.stop_scope,
                partial(self._on_released, place),
                awaited=place.life.state is State.STOPPING,
            )

    def _on_released(self, place: Place, serial: int) -> None:
        self._handle(place, Released(serial))

    # ---- at rest -------------------------------------------------------------------------

    @asynccontextmanager
    async def _my_turn(self) -> AsyncIterator[Callable[[], None]]:
        """Wait behind earlier commands; a stop that came meanwhile ends the command."""
        async with self._turns.mine() as is_mine:

            def still_mine() -> None:
                if self.board.ending:
                    raise Superseded(f"cannot start {self.name}: sysupd is ending")
                if self._closed or not is_mine():
                    raise Superseded(f"{self.name} was told to stop")

            still_mine()
            yield still_mine

    async def _rest(self, condition: Condition) -> None:
        """Wait until the condition holds after the plan has been carried out."""
        self.board.wake(self)
        await self._turns.rest(condition)

    async def _rest_if_up(self, condition: Condition) -> None:
        """As _rest, for a change that holds though a stop makes its effect invisible."""
        if self.want is Want.UP:
            with suppress(Superseded):
                await self._rest(condition)

    def _is_down(self) -> bool:
        return not self.places

    def _is_up(self) -> bool:
        """Every slot has come to a verdict: it runs, waits for its retry, or is over."""
        moving = (State.STOPPED, State.STARTING, State.STOPPING)
        current = [p for p in self.places.values() if p.life.want is Want.UP]
        settled = all(p.life.state not in moving for p in self.places.values())
        looping = any(p.life.state in LOOPING for p in current)
        return settled and (len(current) >= self.spec.numprocesses or looping)

    def _is_rolled_out(self) -> bool:
        """No older generation is left, or the new one fails."""
        if self._failed_generation():
            return True
        return self._is_up() and all(p.generation == self._generation for p in self.places.values())

    def _failed_generation(self) -> str:
        """Why processes of the newest generation don't run; empty if they do."""
        for place in self.places.values():
            if place.generation == self._generation and place.life.state in NOT_SERVING - {
                State.DONE
            }:
                return place.life.reason
        return ""

    def _check_generation(self) -> None:
        """Raise SysupError if the newest generation fails and older ones serve in its place."""
        failed = self._failed_generation()
        if failed and any(p.generation != self._generation for p in self.places.values()):
            raise SysupError(f"cannot replace {self.name}: {failed}; the old processes run on")
        if failed:
            raise SysupError(f"cannot replace {self.name}: {failed}")

    def _next_generation(self, sequential: bool) -> None:
        number = self.spec.numprocesses
        self._generation += 1
        self._specs[self._generation] = self.spec
        self._rollout = Rollout(0, 1) if sequential else Rollout(number, 0)
        for generation in [*self._specs][:-1]:
            self._drop_generation(generation)
        self.board.wake(self)

    def _replace_spec(self, spec: WatcherSpec) -> None:
        before, self.spec = self.spec, spec
        self._specs[self._generation] = spec
        for place in self.places.values():
            place.life.spec = spec
            if before.flapping.scope != spec.flapping.scope:
                place.life.history = self._history if self._together else History()

    # ---- what others see -----------------------------------------------------------------

    def _publish(self, event: str, **fields: Any) -> None:
        self.board.publish(self.name, event, fields)

    def _report(self, place: Place, event: str, fields: Mapping[str, Any]) -> None:
        """Publish a death with the last output, as soon as that is read."""
        body = place.body
        pid = body.process.pid if body else None

        def tell(output: str) -> None:
            self._publish(event, process_pid=pid, wid=place.wid, last_output=output, **fields)
            if event == "gave_up" and self.spec.flapping.on_give_up == "exit":
                self.board.on_give_up(fields["exit_code"])

        if body is None:
            tell("")
            return
        body.on_output.append(tell)
        self.board.loop.call_later(REPORT_WITHIN, body.tell_output)

    def _pids(self) -> set[int]:
        return {body.process.pid for _, body in self.bodies}

    def _difference(self, before: set[int]) -> dict[str, Any]:
        """What a command did, in pids, as Circus tells it."""
        after = self._pids()
        return {
            "started": sorted(after - before),
            "stopped": sorted(before - after),
            "kept": sorted(after & before),
        }

    def describe(self) -> dict[str, Any]:
        """All that `status` tells about the watcher."""
        now = self.board.loop.time()
        processes = [self._describe_place(place, now) for _, place in sorted(self.places.items())]
        retries = [p["retry_in"] for p in processes if p["retry_in"] is not None]
        uptimes = [p["uptime"] for p in processes if p["uptime"] is not None]
        reasons = [p["reason"] for p in processes if p["reason"]]
        return {
            "state": self._worst_state(),
            "want": str(self.want),
            "numprocesses": self.spec.numprocesses,
            "ready": sum(p["state"] == State.RUNNING for p in processes),
            "restarts": sum(p["restarts"] for p in processes),
            "uptime": min(uptimes, default=None),
            "retry_in": min(retries, default=None),
            "reason": reasons[0] if reasons else None,
            "problem": "; ".join(m.problem for m in self._moulds.values() if m.problem) or None,
            "processes": processes,
        }

    def _worst_state(self) -> str:
        """The state an operator should know: the worst of the slots, else Circus's word."""
        states = {place.life.state for place in self.places.values()}
        for state in (State.FAILED, State.FLAPPING, State.BACKOFF):
            if state in states:
                return str(state)
        if self.want is Want.UP and states == {State.DONE}:
            return str(State.DONE)
        return self.state

    def _describe_place(self, place: Place, now: float) -> dict[str, Any]:
        life = place.life
        uptime = life.uptime(now)
        waits = life.state in (State.BACKOFF, State.FLAPPING)
        return {
            "wid": place.wid,
            "pid": place.body.process.pid if place.body and life.alive else None,
            "state": str(life.state),
            "uptime": None if uptime is None else round(uptime, 3),
            "restarts": life.restarts,
            "tries": life.history.tries,
            "retry_in": round(max(0.0, (life.deadline or now) - now), 3) if waits else None,
            "exit_code": life.last_exit,
            "reason": life.reason or None,
            "last_output": place.output or None,
        }
