"""Which endpoints an app serves, and as whom: its own, systemd's, and those of its config.

An address that is taken harms nothing but itself: it is tried again until it is free.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Sequence
from functools import partial

from sysup import protocol
from sysup.config import DaemonSpec, Role
from sysup.control import Control
from sysup.endpoints import address_of
from sysup.keys import Keys
from sysup.process import identity
from sysup.protocol import SysupError
from sysup.runtime import socket_access

log = logging.getLogger("sysup.serving")

BIND_AGAIN = 5.0
"""Seconds until an address that is taken is tried again."""


class Serving:
    """The endpoints of one app.

    Args:
        options: of the daemon, as the config had them at its start.
        directory: where the app's own are.
        given: control sockets that systemd holds.
        ending: whether the daemon is ending: then nothing more is bound.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        control: Control,
        options: DaemonSpec,
        directory: str,
        given: Sequence[int],
        ending: Callable[[], bool],
    ) -> None:
        self._loop = loop
        self._control = control
        self._options = options
        self._directory = directory
        self._given = given
        self._ending = ending
        self._keys = Keys(options.curve_dir, os.geteuid()) if options.curve_dir else None

    def begin(self) -> None:
        """Open the control and event sockets: the app's own, then those of the config."""
        group, mode = socket_access()
        given = [self._serve_given(fd) for fd in self._given]
        path = os.path.realpath(os.path.join(self._directory, protocol.CONTROL_SOCKET))
        if path not in given:
            self._serve_admin(self.endpoint, mode=mode, group=group)
        self._control.publish_on(self.events_endpoint, mode=mode, group=group)
        options = self._options
        if options.endpoint:
            self._bind(options.endpoint, self._serve_endpoint)
        if options.pubsub_endpoint:
            self._bind(options.pubsub_endpoint, self._publish_on)
        if options.statsd and options.stats_endpoint:
            self._bind(options.stats_endpoint, self._publish_stats_on)

    @property
    def endpoint(self) -> str:
        """Where the app is commanded."""
        return f"ipc://{self._directory}/{protocol.CONTROL_SOCKET}"

    @property
    def events_endpoint(self) -> str:
        """Where the app tells what happens."""
        return f"ipc://{self._directory}/{protocol.EVENTS_SOCKET}"

    @property
    def stats_endpoint(self) -> str:
        """Where the app tells figures of its processes."""
        served = self._options.statsd and self._options.stats_endpoint
        return served or self.events_endpoint

    def _serve_given(self, fd: int) -> str:
        """Serve on a control socket that systemd holds; returns its path, empty if that can't be.

        Then the daemon makes its own.
        """
        try:
            endpoint = address_of(fd)
            self._control.serve(endpoint, Role.ADMIN, listener=fd)
        except SysupError as error:
            log.error("cannot serve the control socket of systemd: %s", error)
            return ""
        return os.path.realpath(endpoint.removeprefix("ipc://"))

    def _publish_on(self, endpoint: str) -> None:
        """Over plain TCP anybody may listen, who may not see what processes write."""
        if self._keys is not None and endpoint.startswith("tcp://"):
            self._control.publish_outside(endpoint, hidden=False, keys=self._keys)
            return
        hidden = endpoint.startswith("tcp://") and self._plain_role() is Role.READ
        self._control.publish_outside(endpoint, hidden=hidden)

    def _publish_stats_on(self, endpoint: str) -> None:
        tcp = endpoint.startswith("tcp://")
        self._control.publish_stats_on(endpoint, self._keys if tcp else None)

    def _plain_role(self) -> Role:
        return self._options.tcp_plain_role or Role.READ

    def _serve_admin(self, endpoint: str, mode: int = 0o600, group: int = -1) -> None:
        self._control.serve(endpoint, Role.ADMIN, mode, group)

    def _serve_endpoint(self, endpoint: str) -> None:
        """An endpoint of the config: over plain TCP anybody may connect, with CURVE keys tell."""
        if endpoint.startswith("ipc://"):
            self._control.serve(endpoint, Role.ADMIN)
            self._give_to_owner(endpoint)
            return
        if self._keys is not None:
            self._control.serve(endpoint, self._keys)
            return
        plain, role = self._options.tcp_plain_role, self._plain_role()
        self._control.serve(endpoint, role)
        log.warning(
            "%s is plain TCP: whoever can connect to it has the role '%s'%s",
            endpoint,
            role,
            "" if plain else "; set tcp_plain_role = admin to command over it",
        )

    def _give_to_owner(self, endpoint: str) -> None:
        """An ipc endpoint belongs to `endpoint_owner`, who commands over it like us."""
        owner = self._options.endpoint_owner
        if owner is None:
            return
        try:
            uid = identity(owner, None, None).uid
            path = endpoint.removeprefix("ipc://")
            os.chown(path, -1 if uid is None else uid, -1, follow_symlinks=False)
        except OSError as error:
            log.error("cannot give %s to %s: %s", endpoint, owner, error.strerror)
        except SysupError as error:
            log.error("cannot give %s to %s: %s", endpoint, owner, error)

    def until_bound(self, what: str, bind: Callable[[], None], wanted: Callable[[], bool]) -> None:
        """Bind, now or as soon as it can be done; the app runs on meanwhile."""

        def again() -> None:
            if self._ending() or not wanted():
                return
            try:
                bind()
            except SysupError as error:
                log.debug("%s", error)
                self._loop.call_later(BIND_AGAIN, again)
            else:
                log.info("bound %s at last", what)

        try:
            bind()
        except SysupError as error:
            log.error("%s; trying again every %g s, the app runs on", error, BIND_AGAIN)
            self._loop.call_later(BIND_AGAIN, again)

    def _bind(self, endpoint: str, bind: Callable[[str], None]) -> None:
        self.until_bound(endpoint, partial(bind, endpoint), lambda: True)
