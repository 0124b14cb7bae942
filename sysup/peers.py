"""Who asks: the role of the peer that sent a message, and what the log calls it.

libzmq gives each message what it knows of its connection (zmq_msg_gets(3)): over ipc the
kernel's word on who connected (SO_PEERCRED in unix(7), as `localhost:UID:GID:PID`), over TCP the
address, with CURVE the key as the doorman noted it.
"""

from __future__ import annotations

from typing import TypeAlias

import zmq

from sysup.config import Role
from sysup.keys import Keys
from sysup.protocol import AccessDenied

Access: TypeAlias = Role | Keys
"""What those who connect to an endpoint may do: the same for all, or as their keys say."""


class Peer:
    """Who sent a message.

    Args:
        frame: one of its frames, but for the route.
        access: that of the endpoint it came by.
    """

    def __init__(self, frame: zmq.Frame, access: Access) -> None:
        self._frame = frame
        self._access = access

    @property
    def fd(self) -> int:
        """The descriptor of its connection, if that is still there; -1 if it is not known."""
        try:
            return int(self._frame.get(zmq.SRCFD))
        except (zmq.ZMQError, ValueError):
            return -1

    @property
    def role(self) -> Role:
        """What it may do now. Raises AccessDenied for a key that is no longer authorized."""
        if isinstance(self._access, Role):
            return self._access
        holder = self._access.holder(_told(self._frame, "User-Id"))
        if holder is None:
            raise AccessDenied("permission denied: your key is not authorized any more")
        return holder.role

    @property
    def remedy(self) -> str:
        """What to do about too small a role."""
        if isinstance(self._access, Role):
            return "use the ipc endpoint, or set tcp_plain_role"
        return "the role of a key is in its file in the directory `authorized`"

    def fields(self) -> dict[str, str]:
        """What is known of it, by the names of fields of the journal."""
        address = _told(self._frame, "Peer-Address")
        credentials = address.split(":")
        if len(credentials) == 4 and credentials[0] == "localhost":
            uid, gid, pid = credentials[1:]
            return {"SYSUP_PEER_UID": uid, "SYSUP_PEER_GID": gid, "SYSUP_PEER_PID": pid}
        known = {"SYSUP_PEER_ADDRESS": address}
        if isinstance(self._access, Keys):
            holder = self._access.holder(_told(self._frame, "User-Id"))
            known["SYSUP_PEER_KEY"] = holder.name if holder else ""
        return known


def called(fields: dict[str, str]) -> str:
    """A peer in the words of a person."""
    if "SYSUP_PEER_UID" in fields:
        return f"user {fields['SYSUP_PEER_UID']}, pid {fields['SYSUP_PEER_PID']}"
    key = fields.get("SYSUP_PEER_KEY")
    return f"key {key}, {fields['SYSUP_PEER_ADDRESS']}" if key else fields["SYSUP_PEER_ADDRESS"]


def _told(frame: zmq.Frame, name: str) -> str:
    """A property of the connection; empty where there is none."""
    try:
        return str(frame.get(name))
    except zmq.ZMQError:
        return ""
