"""The slots of one watcher: performs what their machines ask for.

The machines (machine.py) decide; here processes are started, signalled and cleared away for them,
and what happens to these is told to them: a process ended, a deadline came, a pipe was read out.
A slot that changes wakes its watcher, whose plan says what comes next.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Collection, Mapping, Set
from contextlib import suppress
from functools import partial
from typing import Any

from sysup.board import Board
from sysup.body import Body, Death, Inherited
from sysup.config import WatcherSpec
from sysup.diary import about
from sysup.generations import Generations
from sysup.machine import Lifecycle, State, Want
from sysup.moves import (
    Abandon,
    Action,
    Clear,
    Event,
    ExecFailed,
    Executed,
    Exited,
    Kill,
    Publish,
    Released,
    Signal,
    Spawn,
    Spawned,
    SpawnFailed,
    Start,
    Timeout,
)
from sysup.place import Place, Tally
from sysup.plan import NOT_SERVING
from sysup.policy import History, describe_exit
from sysup.process import Birth, Unreaped
from sysup.protocol import SysupError

log = logging.getLogger("sysup.slots")

REAPED_WITHIN = 0.005
"""Seconds until a parent that is not us is asked again whether it has reaped the process."""
REPORT_WITHIN = 0.25
"""Seconds that a death report waits at most for the last output of the dead."""
LAST_WORDS = 1000
"""Characters of the last output that the next daemon is left."""


class Slots:
    """The slots of one watcher, by the options of their generations.

    Args:
        wake: called when something has changed that the plan should know.
    """

    def __init__(self, board: Board, spec: WatcherSpec, wake: Callable[[], None]) -> None:
        self.board = board
        self.name = spec.name
        """The watcher's."""
        self.generations = Generations(board, spec, self._publish)
        self.places: dict[int, Place] = {}
        self.history = History()
        """Of all slots together, under `flapping.scope = watcher`."""
        self.dead: dict[int, Body] = {}
        """By wid: the last process there that has ended."""
        self._wake = wake
        self._tally: Tally | None = None

    @property
    def spec(self) -> WatcherSpec:
        """The newest options."""
        return self.generations.spec

    @property
    def bodies(self) -> list[tuple[Place, Body]]:
        """The slots that hold a living process, by wid."""
        return [(p, p.body) for _, p in sorted(self.places.items()) if p.body and p.life.alive]

    @property
    def newest(self) -> dict[int, Body]:
        """By wid: the process there, or the last one that executed its program."""
        living = {wid: p.body for wid, p in self.places.items() if p.body and not p.body.failure}
        return dict(sorted({**self.dead, **living}.items()))

    @property
    def together(self) -> bool:
        """Whether all slots count their deaths together, and wait together."""
        return self.spec.flapping.scope == "watcher"

    @property
    def failure(self) -> str:
        """Why processes of the newest generation don't run; empty if they do."""
        failing = NOT_SERVING - {State.DONE}
        newest = [p for p in self.places.values() if p.generation == self.generations.newest]
        return next((p.life.reason for p in newest if p.life.state in failing), "")

    @property
    def is_mixed(self) -> bool:
        """Whether there are processes of older generations."""
        return any(p.generation != self.generations.newest for p in self.places.values())

    @property
    def tally(self) -> Tally:
        """What they are together."""
        if self._tally is None:
            self._tally = Tally.of(self.places.values())
        return self._tally

    @property
    def states(self) -> Set[State]:
        """Those that any of them is in."""
        if self._tally is not None:
            return self._tally.states
        return {place.life.state for place in self.places.values()}

    def _changed(self, *places: Place) -> None:
        """What was told of these, and so of all together, is not so any more."""
        self._tally = None
        for place in self.places.values() if self.together else places:
            place.changed()

    # ---- the steps of the plan -----------------------------------------------------------

    def launch(self, wid: int) -> None:
        """Make a slot of the newest generation, and start it."""
        history = self.history if self.together else None
        life = Lifecycle(self.spec, self.board.loop.time(), self.board.rand, history)
        place = Place(wid, self.generations.newest, life)
        self.places[wid] = place
        self.handle(place, Start(afresh=not self.together))

    def forget(self, wid: int) -> None:
        """Have a slot no more that is empty."""
        place = self.places.pop(wid)
        self._changed()
        self._drop(place)
        place.cancel_timer()
        if place.generation != self.generations.newest:
            self.generations.keep({p.generation for p in self.places.values()})

    def handle(self, place: Place, event: Event) -> None:
        """Feed a machine, do what it asks, and set its timer."""
        if self.places.get(place.wid) is not place:
            return  # forgotten, and this is about an earlier process of it
        before = place.life.state
        for action in place.life.handle(event, self.board.loop.time()):
            self._perform(place, action)
        self._changed(place)
        self._set_timer(place)
        self._save(place)
        if place.life.state is not before or not place.life.alive:
            self._wake()

    def _set_timer(self, place: Place) -> None:
        place.cancel_timer()
        deadline = place.life.deadline
        if deadline is not None:
            place.timer = self.board.loop.call_at(deadline, self.handle, place, Timeout())

    def _perform(self, place: Place, action: Action) -> None:
        match action:
            case Spawn():
                self._spawn(place)
            case Signal(signum):
                self._signal(place, signum)
            case Kill():
                if place.body and place.body.process.birth:
                    place.body.process.birth.overdue = True
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

    # ---- by themselves -------------------------------------------------------------------

    def close(self) -> None:
        """Let go of what is held open."""
        self.generations.break_moulds()
        for place in self.places.values():
            place.cancel_timer()

    def forget_processes(self) -> None:
        """Leave the processes running and know them no more."""
        for _, body in self.bodies:
            self.board.loop.remove_reader(body.process.pidfd)
            self.board.os.close(body.process)
            self.board.bodies.pop(body.process.pid, None)
            body.on_buried()
        for place in self.places.values():
            place.cancel_timer()
            self._drop(place)
        self.places.clear()
        self._changed()

    # ---- processes -----------------------------------------------------------------------

    def _spawn(self, place: Place) -> None:
        board = self.board
        try:
            body = self.generations.mould(place.generation).make(place.wid, place.generation)
        except SysupError as error:
            place.body = None
            self.handle(place, SpawnFailed(str(error)))
            return
        place.life.spec = self.spec
        place.luck = board.rand()
        self._watch(place, body)
        self.handle(place, Spawned(body.serial))
        birth = body.process.birth
        if birth is None or birth.is_over:
            self._end_birth(place, body)
        else:
            board.crowd.join(birth)
            board.loop.add_reader(birth.sign, self._see_birth, place, body, birth)

    def _see_birth(self, place: Place, body: Body, birth: Birth) -> None:
        self.board.loop.remove_reader(birth.sign)
        self.board.crowd.leave(birth)
        self._end_birth(place, body)

    def _end_birth(self, place: Place, body: Body) -> None:
        """The process executes its program, or has ended."""
        try:
            self.board.os.end_birth(body.process)
        except SysupError as error:
            body.failure = str(error)  # what comes of it follows from its end
        else:
            if body.is_limited:
                for why in self._limit(body, place.life.spec):
                    log.error("%s", why, extra=about(self.name, place.wid))
            self._has_executed(place, body)

    def _has_executed(self, place: Place, body: Body) -> None:
        self._publish("spawn", process_pid=body.process.pid, wid=place.wid)
        self.handle(place, Executed(body.serial))

    def _watch(self, place: Place, body: Body) -> None:
        """Have `_on_exit` called, in its turn, when the process ends."""
        place.body = body
        self.board.bodies[body.process.pid] = body
        self.board.loop.add_reader(body.process.pidfd, self._has_ended, place, body)

    def _has_ended(self, place: Place, body: Body) -> None:
        """The pidfd is readable: the process has ended, once and for all."""
        self.board.loop.remove_reader(body.process.pidfd)
        self.board.backlog.put(partial(self._on_exit, place, body))

    def _on_exit(self, place: Place, body: Body) -> None:
        board = self.board
        if body.process.pidfd < 0:
            return  # it was forgotten
        if birth := body.process.birth:
            self._see_birth(place, body, birth)
        try:
            status = board.os.wait(body.process)
        except Unreaped:
            board.loop.call_later(REAPED_WITHIN, self._on_exit, place, body)
            return
        board.os.close(body.process)
        if body.stdin:
            body.stdin.close()
        board.bodies.pop(body.process.pid, None)
        if body.failure:
            self.handle(place, ExecFailed(body.serial, body.failure))
            return
        self._publish("reap", process_pid=body.process.pid, wid=place.wid, exit_code=status)
        body.on_output.append(partial(self._take_output, place))
        body.death = Death(status, describe_exit(status), board.loop.time())
        self.dead[place.wid] = body
        self.handle(place, Exited(body.serial, status))

    def _take_output(self, place: Place, output: str) -> None:
        place.output = output
        self._changed(place)
        self._save(place)

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
        if body.process.birth:  # it may be yet to lead a group, and to be in its cgroup
            os.signal(body.process, signum)
            return
        if body.cgroup and scope == "tree" and signum == signal.SIGKILL:
            body.cgroup.kill()
            return
        if scope == "group" or (scope == "tree" and signum == signal.SIGKILL):
            if os.signal_group(body.process.pid, signum):
                return  # it leads the group; a second signal might mean more to it
        elif place.life.spec.stop_children and signum != signal.SIGKILL:
            os.signal_children(body.process, signum, recursive=False)
        os.signal(body.process, signum)

    # ---- options -------------------------------------------------------------------------

    def replace_spec(self, spec: WatcherSpec) -> None:
        """Have the newest generation be of these options."""
        before = self.spec
        self.generations.replace(spec)
        for place in self.places.values():
            place.life.spec = spec
            if before.flapping.scope != spec.flapping.scope:
                place.life.history = self.history if self.together else History()
        self._changed(*self.places.values())

    def limit_running(self, spec: WatcherSpec) -> None:
        """Change the limits of what runs. Raises SysupError with all that can't be."""
        failed = [why for _, body in self.bodies for why in self._limit(body, spec)]
        if failed:
            raise SysupError("; ".join(failed))

    def _limit(self, body: Body, spec: WatcherSpec) -> list[str]:
        """Change the limits of a process; returns why some can't be."""
        body.is_limited = body.process.birth is not None
        failed = []
        for limit in spec.rlimits:
            try:
                self.board.os.set_limit(body.process, limit.name, limit.soft, limit.hard)
            except SysupError as error:
                failed.append(str(error))
        return failed

    # ---- over the end of the daemon ------------------------------------------------------

    def record(self) -> dict[str, Any]:
        """What all slots share, as JSON can say it."""
        return {
            "generation": self.generations.newest,
            "older": self.generations.record(),
            "history": self.history.record(),
        }

    def restore(
        self,
        record: Mapping[str, Any],
        places: Collection[tuple[int, Mapping[str, Any]]],
        bodies: Collection[Inherited],
    ) -> None:
        """Take over what another daemon had, by its `record`.

        The processes run on. What has happened to them meanwhile is taken for happening now.
        """
        newest = record["generation"]
        self.history = History.restored(record["history"])
        used = {saved["generation"] for _, saved in places}
        used |= {body.record["generation"] for body in bodies}
        self.generations.restore(newest, used, record.get("older", {}))
        for wid, saved in places:
            self._restore_place(wid, saved)
        if self.places:
            with suppress(SysupError):  # the plan tells
                self.generations.mould(newest)  # whose sinks take up what was on its way
        # Of a slot the newest is its process; what comes after that is dead.
        for inherited in sorted(bodies, key=lambda body: -body.serial):
            try:
                self._restore_body(inherited)
            except SysupError as error:
                record = inherited.record
                concerns = about(record["watcher"], record["wid"])
                log.error("cannot go on with process %d: %s", record["pid"], error, extra=concerns)
        for place in list(self.places.values()):
            self._set_timer(place)
            if place.body is None and place.life.alive:  # it ended, and its descriptors are lost
                self.handle(place, Exited(place.life.serial, None))
            elif place.body is None and not place.life.released:
                self.handle(place, Released(place.life.serial))
            elif place.body and place.life.alive and not place.life.executed:
                self._has_executed(place, place.body)
        self._changed(*self.places.values())

    def _restore_place(self, wid: int, saved: Mapping[str, Any]) -> None:
        history = self.history if self.together else None
        life = Lifecycle.restored(self.spec, self.board.rand, saved["life"], history)
        place = Place(wid, saved["generation"], life, luck=saved["luck"])
        place.output = saved.get("output", "")
        self.places[wid] = place

    def _restore_body(self, inherited: Inherited) -> None:
        board, serial = self.board, inherited.serial
        wid, generation = inherited.record["wid"], inherited.record["generation"]
        try:
            mould = self.generations.mould(generation)
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
            self.handle(place, Spawned(serial))
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
        self.handle(place, Released(serial))

    def _save(self, place: Place) -> None:
        estate = self.board.setting.estate
        if estate and self.places.get(place.wid) is place:
            life = place.life.record()
            record = {"generation": place.generation, "luck": place.luck, "life": life}
            if place.output and not place.life.alive:  # of what runs it would be old news
                record["output"] = place.output[-LAST_WORDS:]
            estate.ledger.put(("place", self.name, place.wid), record)

    def _drop(self, place: Place) -> None:
        if estate := self.board.setting.estate:
            estate.ledger.drop(("place", self.name, place.wid))

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
