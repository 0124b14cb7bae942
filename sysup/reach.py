"""What clients ask of the processes of a watcher: a signal, a fresh start, a text to read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from sysup.body import Body
from sysup.machine import State
from sysup.moves import Recycle, Signalled
from sysup.place import Place
from sysup.protocol import SysupError
from sysup.slots import Slots
from sysup.stats import Steps
from sysup.stdin import Input


def send_signal(
    slots: Slots,
    signum: int,
    pid: int | None = None,
    child_pid: int | None = None,
    children: bool = False,
    recursive: bool = False,
) -> Steps[int]:
    """Send a signal to processes, or below them; dying of it counts as no crash.

    Returns how many processes of the watcher these are. Raises SysupError when none of
    them has the child that is meant.
    """
    os, number = slots.board.os, 0
    for place, body in _meant(slots, pid):
        if child_pid is not None:
            if not os.signal_child(body.process, child_pid, signum):
                continue
        elif children or recursive:
            os.signal_children(body.process, signum, recursive=recursive)
        if child_pid is None and (recursive or not children):
            slots.handle(place, Signalled(body.serial, signum))
            os.signal(body.process, signum)
        number += 1
        yield
    if child_pid is not None and not number:
        raise SysupError(f"{child_pid} is no child of a process of {slots.name}")
    return number


def recycle(
    slots: Slots, pid: int | None, signum: int | None, graceful_timeout: float | None
) -> Steps[int]:
    """Begin to end processes (one, or all) that are to be started afresh.

    `signum` and `graceful_timeout` (seconds) stand in for the options. Returns how many
    these are.
    """
    number = 0
    for place, _ in _meant(slots, pid):
        if signum is not None or graceful_timeout is not None:
            stage = slots.spec.stop_signal[0]
            stage = replace(
                stage,
                signum=stage.signum if signum is None else signum,
                timeout=stage.timeout if graceful_timeout is None else graceful_timeout,
            )
            place.life.spec = replace(place.life.spec, stop_signal=(stage,))
        slots.handle(place, Recycle())
        number += 1
        yield
    return number


def recycle_old(slots: Slots) -> Steps[None]:
    """Begin to end processes that are older than `max_age` allows; they are started afresh."""
    spec = slots.spec
    for place, _ in _meant(slots, None) if spec.max_age else ():
        lifetime = spec.max_age + spec.max_age_variance * place.luck
        if slots.board.loop.time() - place.life.started > lifetime:
            slots.handle(place, Recycle())
        yield


def _meant(slots: Slots, pid: int | None) -> Iterator[tuple[Place, Body]]:
    """All processes or one, each if it still lives when its turn comes."""
    for place, body in slots.bodies:
        if pid in (None, body.process.pid) and place.body is body and place.life.alive:
            yield place, body


def inputs(slots: Slots, wid: int | None = None, pid: int | None = None) -> list[Input]:
    """The standard inputs of its processes: of all that are not being stopped, or of one.

    Raises SysupError when there is none.
    """
    name, pipe = slots.name, slots.spec.stdin == "pipe"
    if wid is None and pid is None:
        meant = [body for p, body in slots.bodies if p.life.state is not State.STOPPING]
    else:
        meant = [b for p, b in slots.bodies if wid in (None, p.wid)]
        meant = [body for body in meant if pid in (None, body.process.pid)]
    found = [body.stdin for body in meant if body.stdin]
    if not found and not pipe:
        raise SysupError(f"cannot send to {name}: set stdin = pipe")
    if not meant:
        numbers = [f"{key} {n}" for key, n in (("wid", wid), ("pid", pid)) if n is not None]
        which = f"process with {' and '.join(numbers)}" if numbers else "running process"
        raise SysupError(f"cannot send to {name}: it has no {which}")
    if not found:
        raise SysupError(f"cannot send to {name}: it was started before stdin = pipe")
    return found
