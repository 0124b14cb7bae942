"""Event sockets for others than the app's own clients, and who may listen there.

A connection that was let in stays, and so a socket of which somebody may hear no more, or less
than before, is made anew: all others connect again by themselves.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import zmq

from sysup.config import Role
from sysup.keys import Keys
from sysup.protocol import SysupError

log = logging.getLogger("sysup.outside")

LOOK_AGAIN = 1.0
"""Seconds for which who may listen is taken not to have changed."""
REOPEN = 0.05
"""Seconds until an address is tried again that libzmq has not yet let go of."""


class Roll:
    """Who may listen.

    Args:
        keys: theirs.
    """

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._roles = self._look()
        self._looked = 0.0

    @property
    def has_readers(self) -> bool:
        """Whether somebody may see no output. Who connects has just been looked up."""
        return any(holder.role is Role.READ for holder in self._keys.known.values())

    def has_shrunk(self, now: float) -> bool:
        """Whether somebody may listen no more, or has another role, since this was last asked."""
        if now < self._looked + LOOK_AGAIN:
            return False
        self._looked = now
        before, self._roles = self._roles, self._look()
        return any(self._roles.get(key) is not role for key, role in before.items())

    def _look(self) -> dict[str, Role]:
        """The roles of those who may, by their keys."""
        return {key: holder.role for key, holder in self._keys.authorized().items()}


class Outside:
    """An event socket for others.

    With keys it speaks CURVE. Whose role is *read* may not see what processes wrote, and a PUB
    socket sends the same to all: so it is hidden while any key has that role.

    Args:
        make: binds it; raises SysupError when that can't be.
        before_close: told of one that is about to be closed.
        hidden: whether what processes wrote is hidden from all.
        keys: who may listen.
    """

    def __init__(
        self,
        make: Callable[[], zmq.Socket[bytes]],
        before_close: Callable[[zmq.Socket[bytes]], None],
        hidden: bool,
        keys: Keys | None,
    ) -> None:
        self._make = make
        self._before_close = before_close
        self._hidden = hidden
        self._roll = Roll(keys) if keys is not None else None
        self.socket: zmq.Socket[bytes] | None = make()

    @property
    def hidden(self) -> bool:
        """Whether what processes wrote is not for all who listen."""
        return self._hidden or (self._roll is not None and self._roll.has_readers)

    def check(self, now: float) -> None:
        """Let nobody listen who may not any more."""
        if self._roll is None:
            return
        if self._roll.has_shrunk(now) and self.socket is not None:
            self._before_close(self.socket)
            self.socket.close(0)
            self.socket = None
        if self.socket is None:
            try:
                self.socket = self._make()
            except SysupError as error:  # libzmq frees an address some time after close
                log.debug("%s", error)
