"""Whom a log is to belong to."""

from __future__ import annotations

import grp
import pwd

from sysup.protocol import SysupError


def owner_ids(owner: str | None, group: str | None) -> tuple[int | None, int | None]:
    """The numbers of a user and a group, each a name or a number; None stays.

    A group that is not given is the user's own. Raises SysupError for one that is unknown.
    """
    uid = gid = None
    if owner is not None:
        try:
            found = pwd.getpwuid(int(owner)) if owner.isdecimal() else pwd.getpwnam(owner)
            uid, gid = found.pw_uid, found.pw_gid
        except KeyError:
            if not owner.isdecimal():
                raise SysupError(f"cannot give a log to {owner}: there is no such user") from None
            uid = int(owner)
    if group is not None:
        try:
            gid = int(group) if group.isdecimal() else grp.getgrnam(group).gr_gid
        except KeyError:
            raise SysupError(f"cannot give a log to group {group}: there is none") from None
    return uid, gid
