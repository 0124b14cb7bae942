"""Runs one watcher: takes its commands, and carries its plan out.

Two doors lead in. The *commands* (start, stop, restart, reload, scale, set) change
what is wanted, wait for their turn behind earlier commands to the same watcher, and end when
the watcher has come to rest; a stop pre-empts whatever else is going on. The *reports* reach
its slots (slots.py). Both end in `Board.wake`, after which the plan is made and carried out in
the loop's next turn.
"""

from __future__ import annotations

import asyncio
import logging
import math
import signal
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, TypeAlias, TypeVar

from sysup import config, reach
from sysup.board import Board
from sysup.body import Inherited
from sysup.config import Impact, WatcherSpec
from sysup.machine import State, Want
from sysup.moves import Start
from sysup.pace import in_turns
from sysup.place import Tally
from sysup.plan import (
    LOOPING,
    Forget,
    Goal,
    Launch,
    Rollout,
    Send,
    plan,
    public_state,
)
from sysup.protocol import SysupError
from sysup.slots import Slots
from sysup.turns import Asked, Condition, Superseded, Turns

log = logging.getLogger("sysup.watcher")
T = TypeVar("T")
Work: TypeAlias = Coroutine[Any, Any, T]


class Watcher:
    """One watcher of the app: its options and its slots."""

    def __init__(
        self, board: Board, spec: WatcherSpec, added: Mapping[str, Any] | None = None
    ) -> None:
        self.board = board
        self.added = added
        """What it was added with at run time; None: it stands in the config."""
        self.overrides: Mapping[str, Any] = {}
        """Options that were set at run time."""
        self.unfollowed: tuple[str, ...] = ()
        """Why it is not as the config has it, where a reload could not make it so."""
        self.touched = False
        """Whether it was told to start or to stop; else it is yet to start by itself."""
        self.slots = Slots(board, spec, partial(board.wake, self))
        self.want = Want.DOWN
        self._rollout = Rollout(surge=0, max_unavailable=spec.numprocesses)
        self._launched = -math.inf
        """When the last slot was made."""
        self._closed = False
        self._turns = Turns(board.loop, self._note)
        self._again: asyncio.TimerHandle | None = None
        self._published = "stopped"

    def __repr__(self) -> str:
        return f"<watcher {self.spec.name} want={self.want} {len(self.slots.places)} slots>"

    @property
    def spec(self) -> WatcherSpec:
        """Its options."""
        return self.slots.spec

    @property
    def name(self) -> str:
        """As the config has it."""
        return self.spec.name

    @property
    def state(self) -> str:
        """Circus's word: stopped, starting, active or stopping."""
        return public_state(self.want, self.slots.states)

    @property
    def is_stopped(self) -> bool:
        """Whether it is down to stay: no command is under way that may bring it up."""
        return self.want is Want.DOWN and not self._turns.taken

    @property
    def is_settled(self) -> bool:
        """Whether every slot has come to a verdict: it runs, waits for its retry, or is over."""
        return self._is_up()

    async def at_rest(self) -> None:
        """Wait until it is settled. Raises Superseded when it is told to stop."""
        await self._rest(self._is_up)

    # ---- commands ------------------------------------------------------------------------
    #
    # Each is noted when it is called, not only when it is awaited.

    def start(self) -> Work[dict[str, Any]]:
        """Be up; ends when every process runs, waits to be retried, or was given up."""
        return self._bring_up(self._turns.ask(["start"]))

    def restart(self) -> Work[dict[str, Any]]:
        """Stop all, then start all."""
        return self._bring_up(self._turns.ask(["restart"]))

    async def _bring_up(self, asked: Asked) -> dict[str, Any]:
        before = self._pids()
        async with self._my_turn(asked) as still_mine:
            if asked.words == ["restart"]:
                self.want = Want.DOWN
                self.board.wake(self)
                self._turns.becomes(asked, ["start"])
            if self.want is Want.DOWN and self.slots.places:  # a stop is not through
                await self._rest(self._is_down)
                still_mine()
            self._turns.takes_effect(asked)
            self.begin_start()
            await self._rest(self._is_up)
        return self._difference(before)

    def begin_start(self) -> None:
        """The part of `start` that needs no waiting."""
        self.want = Want.UP
        self.touched = True
        self.slots.history.forget()
        for place in list(self.slots.places.values()):
            if place.life.state is not State.STOPPED:
                self.slots.handle(place, Start())
        self.board.wake(self)

    def stop(self) -> Work[dict[str, Any]]:
        """Be down; pre-empts other commands; ends when nothing of the processes is left."""
        return self._come_down(self._pids(), self.begin_stop())

    async def _come_down(self, before: set[int], down: asyncio.Future[None]) -> dict[str, Any]:
        await down
        return self._difference(before)

    def begin_stop(self) -> asyncio.Future[None]:
        """The part of `stop` that needs no waiting, and what is done at its end."""
        down = self.want_down()
        self.board.wake(self)
        return down

    def want_down(self) -> asyncio.Future[None]:
        """The same of `begin_stop`, but that nothing is done for it before the board wakes it."""
        self._supersede()
        return self._turns.rest(self._is_down)

    def _supersede(self) -> None:
        """Want nothing any more; commands that want something end."""
        self.want = Want.DOWN
        self.touched = True
        self._turns.supersede(f"{self.name} was told to stop", self._is_down)

    def reload(self, *, sequential: bool = False) -> Work[dict[str, Any]]:
        """Replace every process by one of the present options, without a gap.

        Old processes go as new ones have proven themselves. Raises SysupError when the new
        ones fail; the old ones run on, and go if the new ones recover.
        """
        return self._replace_all(self._turns.ask(["reload", sequential]), sequential)

    async def _replace_all(self, asked: Asked, sequential: bool) -> dict[str, Any]:
        before = self._pids()
        async with self._my_turn(asked):
            if self.want is Want.DOWN:
                raise SysupError(f"{self.name} is stopped")
            self._turns.takes_effect(asked)
            if self.spec.send_hup:
                await in_turns(reach.send_signal(self.slots, signal.SIGHUP))
                return self._difference(before)
            self._next_generation(sequential)
            await self._rest(self._is_rolled_out)
            self._check_generation()
            self._publish("reload")
        return self._difference(before)

    def scale(self, change: int) -> Work[int]:
        """Have so many processes more; those that stay are not touched. Returns the number.

        A singleton stays as it is: `set` alone changes how many it has, 0 or 1.

        Raises MessageError when that would be more than there can be.
        """
        return self._scale(self._turns.ask(["scale", change], outlasts=True), change)

    async def _scale(self, asked: Asked, change: int) -> int:
        async with self._turns.mine(asked):
            self._still_there()
            if self.spec.singleton:
                change = 0
            number = max(0, self.spec.numprocesses + change)
            self.slots.replace_spec(config.with_option(self.spec, "numprocesses", number))
            self.overrides = {**self.overrides, "numprocesses": number}
            self._turns.takes_effect(asked)
            self.board.wake(self)
            await self._rest_if_up(self._is_up)
            return self.spec.numprocesses

    def set_options(self, options: Mapping[str, Any]) -> Work[dict[str, str]]:
        """Change options; returns how each took effect.

        Raises MessageError for an unknown option or a value of the wrong type; then none
        of them is changed. Raises SysupError when processes of the new options fail; the
        old ones run on meanwhile.
        """
        asked = self._turns.ask(["set", dict(options)], outlasts=True)
        return self._set_options(asked, options)

    async def _set_options(self, asked: Asked, options: Mapping[str, Any]) -> dict[str, str]:
        async with self._turns.mine(asked):
            self._still_there()
            spec = config.with_options(self.spec, options)
            impacts = {key: config.impact(key) for key in options}
            self._turns.takes_effect(asked)
            self.apply(spec, set(impacts.values()), {**self.overrides, **options})
            for _ in options:
                self._publish("updated")
            await self.followed(impacts.values())
        return {key: str(impact) for key, impact in impacts.items()}

    async def followed(self, impacts: Collection[Impact]) -> None:
        """Until its processes are as options of these impacts have them; a stop ends it.

        Raises SysupError when processes of the new options fail.
        """
        if Impact.RELOAD in impacts:
            await self._rest_if_up(self._is_rolled_out)
            self._check_generation()
        elif Impact.SCALE in impacts:
            await self._rest_if_up(self._is_up)

    def apply(
        self, spec: WatcherSpec, impacts: Collection[Impact], overrides: Mapping[str, Any]
    ) -> None:
        """Take new options over; the processes follow as each change needs.

        `overrides` are those of them that don't stand in the config.

        Raises SysupError, and then the options stay, when a process can't be given a limit.
        """
        if Impact.LIMITS in impacts:
            self.slots.limit_running(spec)
        if Impact.RELOAD in impacts:
            self._next_generation(sequential=False)
        self.slots.replace_spec(spec)
        self.overrides = overrides
        if Impact.LIMITS in impacts:
            self.slots.generations.break_moulds()
        self.board.wake(self)

    def settle(self, options: Mapping[str, Any]) -> None:
        """Take note that the config says these options now; they are set already."""
        self.overrides = {key: self.overrides[key] for key in self.overrides.keys() - options}
        self.added = None
        self.save()

    def unsettle(self, options: Mapping[str, Any]) -> None:
        """Take note that the config does not say them after all, which are set."""
        self.overrides = {**self.overrides, **options}
        self.save()

    async def kill(
        self, pid: int | None, signum: int | None, graceful_timeout: float | None
    ) -> int:
        """End processes (one, or all) and let them be started afresh. Returns how many.

        `signum` and `graceful_timeout` (seconds) stand in for the watcher's own.
        """
        number = await in_turns(reach.recycle(self.slots, pid, signum, graceful_timeout))
        await self._rest(self._is_up if self.want is Want.UP else self._is_down)
        return number

    def close(self) -> None:
        """The watcher is removed: let go of what it holds open; commands that wait end."""
        self._closed = True
        self._supersede()
        self._turns.forget_all()
        self.slots.close()
        if self._again is not None:
            self._again.cancel()
        if self.board.setting.cgroups:
            self.board.setting.cgroups.forget(self.name)
        if self.board.setting.estate:
            self.board.setting.estate.ledger.drop(("watcher", self.name))

    def forget_processes(self) -> None:
        """Leave the processes running and know them no more (`rm --nostop`)."""
        self.slots.forget_processes()
        self._supersede()
        self._turns.answer()

    # ---- acting on the plan --------------------------------------------------------------

    def act(self, until: float) -> bool:
        """Carry the plan out until the time is over; True: there is more to do."""
        now = self.board.loop.time()
        planned = plan(self._goal(), self.slots.places.values(), now)
        for step in planned.steps:
            match step:
                case Launch(wid):
                    self._launched = now
                    self.slots.launch(wid)
                case Send(wid, event):
                    self.slots.handle(self.slots.places[wid], event)
                case Forget(wid):
                    self.slots.forget(wid)
            if self.board.must_pause(until):
                return True
        self._come_to_rest(planned.again_at)
        return bool(planned.steps)

    def _goal(self) -> Goal:
        spec = self.spec
        return Goal(
            want=self.want,
            numprocesses=spec.numprocesses,
            generation=self.slots.generations.newest,
            rollout=self._rollout,
            not_before=self._launched + spec.warmup_delay,
            one_by_one=spec.warmup_delay > 0,
            together=self.slots.together,
        )

    def _come_to_rest(self, again_at: float | None) -> None:
        if self._again is not None:
            self._again.cancel()
            self._again = None
        if again_at is not None:
            self._again = self.board.loop.call_at(again_at, self.board.wake, self)
        state = self.state
        up = any(place.life.state is State.RUNNING for place in self.slots.places.values())
        if state != self._published and (state == "stopped" or (state == "active" and up)):
            self._publish("start" if state == "active" else "stop")
            self._published = state
            self.save()
        self._turns.answer()

    # ---- over the end of the daemon ------------------------------------------------------

    def save(self) -> None:
        """Have the next daemon know what is wanted."""
        estate = self.board.setting.estate
        if estate and not self._closed:
            estate.ledger.put(
                ("watcher", self.name),
                {
                    "want": self.want,
                    "touched": self.touched,
                    "rollout": [self._rollout.surge, self._rollout.max_unavailable],
                    "launched": self._launched,
                    "published": self._published,
                    "turn": self._turns.number,
                    **self.slots.record(),
                    "added": self.added,
                    "overrides": self.overrides,
                },
            )

    def restore(
        self,
        record: Mapping[str, Any],
        places: Collection[tuple[int, Mapping[str, Any]]],
        bodies: Collection[Inherited],
    ) -> None:
        """Go on where another daemon ended, by what it saved.

        The processes run on. What has happened to them meanwhile is taken for happening now.
        """
        self._turns.go_on(record.get("turn", 0))
        self.overrides = record["overrides"]
        self.want, self.touched = Want(record["want"]), record["touched"]
        self._rollout = Rollout(*record["rollout"])
        self._launched, self._published = record["launched"], record["published"]
        self.slots.restore(record, places, bodies)
        self.board.wake(self)

    def resume(self, number: int, words: list[Any]) -> list[Work[Any]]:
        """Carry out what another daemon was asked, if it has not been. After `restore`."""
        if number <= self._turns.number:
            self._note(number, None)
            return []
        name, *rest = words
        asked = self._turns.ask(words, outlasts=name in ("scale", "set"), number=number)
        works = {"reload": self._replace_all, "scale": self._scale, "set": self._set_options}
        work: Any = works.get(name, self._bring_up)
        return [work(asked, *rest)]

    def _note(self, number: int, words: list[Any] | None) -> None:
        if estate := self.board.setting.estate:
            key = ("asked", self.name, number)
            estate.ledger.drop(key) if words is None else estate.ledger.put(key, words)

    # ---- at rest -------------------------------------------------------------------------

    @asynccontextmanager
    async def _my_turn(self, asked: Asked) -> AsyncIterator[Callable[[], None]]:
        """Wait behind earlier commands; a stop that came meanwhile ends the command."""
        async with self._turns.mine(asked):

            def still_mine() -> None:
                if self.board.ending:
                    raise Superseded(f"cannot start {self.name}: sysupd is ending")
                self._still_there()
                if asked.is_superseded:
                    raise Superseded(f"{self.name} was told to stop")

            still_mine()
            yield still_mine

    def _still_there(self) -> None:
        if self._closed:
            raise Superseded(f"{self.name} was removed")

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
        return not self.slots.places

    def _is_up(self) -> bool:
        """Every slot has come to a verdict: it runs, waits for its retry, or is over."""
        moving = (State.STOPPED, State.STARTING, State.STOPPING)
        current = [p for p in self.slots.places.values() if p.life.want is Want.UP]
        settled = all(p.life.state not in moving for p in self.slots.places.values())
        looping = any(p.life.state in LOOPING for p in current)
        return settled and (len(current) >= self.spec.numprocesses or looping)

    def _is_rolled_out(self) -> bool:
        """No older generation is left, or the new one fails."""
        if self.slots.failure:
            return True
        return self._is_up() and not self.slots.is_mixed

    def _check_generation(self) -> None:
        """Raise SysupError if the newest generation fails and older ones serve in its place."""
        failed = self.slots.failure
        if failed and self.slots.is_mixed:
            old = "the old processes run on, until new ones do"
            raise SysupError(f"cannot replace {self.name}: {failed}; {old}")
        if failed:
            raise SysupError(f"cannot replace {self.name}: {failed}")

    def _next_generation(self, sequential: bool) -> None:
        number = self.spec.numprocesses
        self._rollout = Rollout(0, 1) if sequential else Rollout(number, 0)
        self.slots.generations.begin({p.generation for p in self.slots.places.values()})
        self.board.wake(self)

    # ---- what others see -----------------------------------------------------------------

    def _publish(self, event: str, **fields: Any) -> None:
        self.board.publish(self.name, event, fields)

    def _pids(self) -> set[int]:
        return {body.process.pid for _, body in self.slots.bodies}

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
        tally = Tally.of(self.slots.places.values())
        processes = [place.describe(now) for place in tally.places]
        return {**self._facts(tally), **tally.describe(now), "processes": processes}

    def written(self, hidden: str | None, processes: bool) -> str:
        """The same as JSON, with or without its processes.

        `hidden` stands for what these wrote; None: that may be seen.
        """
        now, tally = self.board.loop.time(), self.slots.tally
        together = tally.written(self._facts(tally), now)
        more = f', "processes": {tally.rows(now, hidden)}' if processes else ""
        return f"{together}{more}}}"

    def _facts(self, tally: Tally) -> dict[str, Any]:
        problems = [mould.problem for mould in self.slots.generations.moulds if mould.problem]
        return {
            "state": self._worst_state(tally.states),
            "want": str(self.want),
            "numprocesses": self.spec.numprocesses,
            "problem": "; ".join(problems) or None,
            "config_problem": "\n".join(self.unfollowed) or None,
        }

    def _worst_state(self, states: Collection[State]) -> str:
        """The state an operator should know: the worst of the slots, else Circus's word."""
        for state in (State.FAILED, State.FLAPPING, State.BACKOFF):
            if state in states:
                return str(state)
        if self.want is Want.UP and states == {State.DONE}:
            return str(State.DONE)
        return self.state
