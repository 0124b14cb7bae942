"""What this daemon leaves to the one after it.

A daemon may be killed at any moment, or replace itself by a newer program (execve(2)); the
next one goes on with its processes. For that it needs to know what is (the ledger), and to have
the descriptors: pidfds, pipes, listening sockets (the lot). Both are kept up to date at each
change, so nothing has to be done at the end, which may come unannounced.

Whether the next one gets them depends on who starts it:

- under systemd they lie in the descriptor store of the service, and come back by LISTEN_FDS;
- a program that replaced itself inherits them, and HANDED_OVER in its environment names them;
- in the foreground nobody keeps descriptors after a kill. There the ledger is a file in the
  app's runtime directory, by which the next daemon finds the processes and ends them, as it
  can't read what they write.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Generator, Mapping, Sequence
from typing import Any, Protocol

from sysup.ledger import Ledger
from sysup.lot import MOST, Lot, Parcel
from sysup.pace import TURN
from sysup.protocol import SysupError

log = logging.getLogger("sysup.estate")

HANDED_OVER = "SYSUP_HANDED_OVER"
"""The variable that names what a program gets from the one that it replaces: `state:5,...`."""
STATE = "state"
ARENA = "arena"
LOT = "lot"
BEGUN = ("begun",)
"""Is in the ledger once all watchers are."""
FILE = "state"
"""The ledger's name in the runtime directory."""
SOON = 1.0
"""Seconds until a lot is made anew after a restore, which has more urgent work."""
STALE = 256
"""Parcels of the past that the lot may hold beside those of the present."""


class Inheritance:
    """What this program was given by the daemon before.

    Args:
        fds: descriptors by name, ours from now.

    Attributes:
        ledger: what that daemon knew; None without one.

    Raises SysupError when it is of another version.
    """

    def __init__(self, fds: Mapping[str, Sequence[int]] | None = None) -> None:
        self.fds = dict(fds or {})
        self.ledger = Ledger(self.fds[STATE][0]) if STATE in self.fds else None


class Store(Protocol):
    """Who keeps descriptors for the next daemon: systemd."""

    def store(self, name: str, *fds: int) -> None:
        """Keep them by this name. Raises SysupError."""

    def forget(self, name: str) -> object:
        """Keep what has this name no more."""


class Estate:
    """The ledger and the lot.

    Args:
        loop: the daemon's loop.
        directory: the app's runtime directory.
        inheritance: what came from the daemon before.
        store: who keeps descriptors; None in the foreground.

    Attributes:
        inherited: whether there are processes of a daemon before, with their descriptors.

    Raises SysupError when the state can't be opened.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        directory: str,
        inheritance: Inheritance,
        store: Store | None = None,
    ) -> None:
        self._loop = loop
        self._store = store
        self._directory = directory
        self._living: set[Any] = set()
        self._parked = 0
        self._repark: asyncio.Handle | None = None
        self._renewal: Generator[None, None, None] | None = None
        self._is_late = False
        self._number = 0
        self._parcels: dict[tuple[str, str | int], tuple[list[str], list[int]]] = {}
        fds = inheritance.fds
        self.ledger = inheritance.ledger or Ledger(self._new_state())
        self.arena = fds[ARENA][0] if ARENA in fds else self.new_arena()
        self._lot = self._take_lot(fds)
        self.inherited = self._lot is not None and BEGUN in self.ledger.table
        if STATE not in fds:
            self._keep(STATE, self.ledger.fd)

    def new_arena(self) -> int:
        """A memfd for what the pump has read and not written, in place of another one."""
        self.arena = os.memfd_create("sysup-arena")
        self._give_up(ARENA)
        self._keep(ARENA, self.arena)
        return self.arena

    def _keep(self, name: str, fd: int) -> None:
        if self._store:
            self._store.store(name, fd)

    def _give_up(self, *names: str) -> None:
        if self._store:
            for name in names:
                self._store.forget(name)

    # ---- what is -------------------------------------------------------------------------

    def left_behind(self) -> list[Mapping[str, Any]]:
        """The processes that a daemon in the foreground left when it was killed."""
        return [] if self.inherited else [body for _, body in self.ledger.find("body")]

    def begin(self) -> None:
        """Begin anew, with nothing inherited."""
        self.ledger.clear()
        self.settle()
        self._renew(())

    def settle(self) -> None:
        """All is taken over that is to be: close the rest, and soon have a lot without it."""
        unknown, self._parcels = self._parcels, {}
        for _, fds in unknown.values():
            for fd in fds:
                os.close(fd)
        if unknown and self._repark is None:
            self._repark = self._loop.call_later(SOON, self._renew_bit)

    def begun(self) -> None:
        """All watchers are in the ledger: from now on a next daemon goes on with them."""
        self.ledger.put(BEGUN, True)

    def claim(self, kind: str, name: str | int) -> tuple[list[str], list[int]] | None:
        """Take over what is parked as (kind, name, *words): the words, and the descriptors.

        They stay parked. None where there are none.
        """
        found = self._parcels.pop((kind, name), None)
        if found is not None:
            self._living.add((kind, name))
        return found

    def end(self) -> None:
        """There is nothing left that the next daemon could go on with."""
        self.ledger.clear()
        self.close()
        self._give_up(STATE, ARENA, *self._names(self._number))
        if not self._store:
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(self._directory, FILE))

    def close(self) -> None:
        """Close all of it here, as the end of the process does."""
        self.ledger.close()
        os.close(self.arena)
        if self._lot:
            self._lot.close()

    # ---- the lot -------------------------------------------------------------------------

    def park(self, what: Any, fds: Sequence[int]) -> None:
        """Keep descriptors for the next daemon, which gets them with `what`.

        `what` is told from all others by its first two items. Where they can't be kept, that
        is logged; the process then would not outlive the daemon.
        """
        assert self._lot is not None
        self._living.add(tuple(what[:2]))
        try:
            self._lot.park([(what, fds)])
            self._parked += 1
        except SysupError:  # full, perhaps of what has ended
            self._renew([(what, fds)])

    def unpark(self, kind: str, name: str | int, *, soon: bool = False) -> None:
        """Keep those no longer; `soon` where somebody waits for the last of them to be closed."""
        self._living.discard((kind, name))
        self._is_late |= soon  # if a renewal is under way, it may be past that
        if (soon or self._parked > 2 * len(self._living) + STALE) and self._repark is None:
            self._repark = self._loop.call_soon(self._renew_bit)

    def clean(self) -> None:
        """Do now what `unpark` is to do soon."""
        if self._repark is not None:
            self._renew(())

    def tidy(self) -> None:
        """Leave out what is of the past, as somebody is about to wait until all is read."""
        self._renew(())
        self.ledger.compact()

    def keeps(self, what: Sequence[Any]) -> bool:
        """Whether it is to be kept."""
        return tuple(what[:2]) in self._living

    def _renew(self, more: Sequence[Parcel]) -> None:
        """Fill a new lot with what is of the present, and `more`, and then give up the old one."""
        if self._repark is not None:
            self._repark.cancel()
            self._repark = None
        if self._renewal is not None:
            self._renewal.close()
            self._renewal = None
        for _ in self._renewed(more):
            pass

    def _renew_bit(self) -> None:
        """The same in turns of the loop, of which each takes a few milliseconds."""
        self._repark = None
        if self._renewal is None:
            self._is_late = False
            self._renewal = self._renewed(())
        until = self._loop.time() + TURN
        for _ in self._renewal:
            if self._loop.time() >= until:
                self._repark = self._loop.call_soon(self._renew_bit)
                return
        self._renewal = None
        if self._is_late:
            self._repark = self._loop.call_soon(self._renew_bit)

    def _renewed(self, more: Sequence[Parcel]) -> Generator[None, None, None]:
        """Renew it, step by step. What is parked between two steps is in the old lot, and comes."""
        batch: list[Parcel] = []
        taken: list[int] = []
        parked = 0
        lot = None
        try:
            lot = Lot.new()
            for parcels in self._lot.take() if self._lot else ():
                taken += (fd for _, fds in parcels for fd in fds)
                living = [parcel for parcel in parcels if self.keeps(parcel[0])]
                batch += living
                parked += len(living)
                if len(taken) >= MOST:
                    lot.park(batch)
                    _close_all(taken)
                    batch.clear()
                yield
            lot.park([*batch, *more])
            self._parked = parked + len(more)
            before, self._number = self._number, self._number + 1
            for name, end in zip(self._names(self._number), lot.ends, strict=True):
                self._keep(name, end)
            self.ledger.put((LOT,), self._number)
            given_up, self._lot, lot = self._lot, lot, None
        except SysupError as error:
            log.error("%s: what was started just now would not outlive sysupd", error)
            return
        finally:
            _close_all(taken)
            if lot is not None:
                lot.close()
        if given_up is not None:
            given_up.close()
        self._give_up(*self._names(before))

    def _take_lot(self, fds: Mapping[str, Sequence[int]]) -> Lot | None:
        self._number = int(self.ledger.table.get((LOT,), 0))
        names = self._names(self._number)
        for stale in [n for n in fds if n.startswith(f"{LOT}-") and n not in names]:
            # The end came between two lots: of one name there must not be two some day.
            for fd in fds[stale]:
                os.close(fd)
            self._give_up(stale)
        if not all(name in fds for name in names):
            return None
        lot = Lot.of(*(fds[name][0] for name in names))
        parcels = (parcel for parcels in lot.take() for parcel in parcels)
        self._parcels = {tuple(what[:2]): (what[2:], fds) for what, fds in parcels}
        self._parked = len(self._parcels)
        return lot

    @staticmethod
    def _names(number: int) -> tuple[str, str]:
        return f"{LOT}-{number}-in", f"{LOT}-{number}-out"

    # ---- to the next ---------------------------------------------------------------------

    def hand_over(self, others: Mapping[str, Sequence[int]]) -> str:
        """Let the program that replaces this one inherit all; returns HANDED_OVER's value."""
        assert self._lot is not None
        ends = dict(zip(self._names(self._number), self._lot.ends, strict=True))
        own = {STATE: self.ledger.fd, ARENA: self.arena, **ends}
        fds = [*own.items(), *((name, fd) for name, several in others.items() for fd in several)]
        for _, fd in fds:
            os.set_inheritable(fd, True)
        return ",".join(f"{name}:{fd}" for name, fd in fds)

    def _new_state(self) -> int:
        if self._store:
            return os.memfd_create("sysup-state")
        path = os.path.join(self._directory, FILE)
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            return os.open(path, flags, 0o600)
        except OSError as error:
            raise SysupError(f"cannot open {path}: {error.strerror}") from None


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
    fds.clear()


def inherited_fds(environ: Mapping[str, str]) -> dict[str, list[int]]:
    """What a program got from the one that it replaced, by name; closed on exec again."""
    fds: dict[str, list[int]] = {}
    for item in environ.get(HANDED_OVER, "").split(","):
        name, _, number = item.rpartition(":")
        if name and number.isdecimal():
            os.set_inheritable(int(number), False)
            fds.setdefault(name, []).append(int(number))
    return fds


def is_part(name: str) -> bool:
    """Whether a descriptor of this name is one of an estate."""
    return name in (STATE, ARENA) or name.startswith(f"{LOT}-")
