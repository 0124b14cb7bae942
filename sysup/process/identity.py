"""Whom a process is to run as: names looked up in the system's databases."""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Sequence
from typing import NamedTuple

from sysup.protocol import SysupError


class Identity(NamedTuple):
    """Whom a process runs as.

    `uid`, `gid` and `groups` are None where the daemon's stay; `name`, `home` and `shell` are
    of the user that it comes to in any case.
    """

    uid: int | None
    gid: int | None
    groups: tuple[int, ...] | None
    name: str
    home: str
    shell: str


def identity(uid: str | None, gid: str | None, groups: Sequence[str] | None) -> Identity:
    """Look up whom a process is to run as.

    Args:
        uid: a user's name or number; None: the daemon's.
        gid: a group's name or number; None: the primary group of `uid`.
        groups: supplementary groups; None: those that `uid` is a member of.

    Raises SysupError when there is no such user or group, or when `uid` is a number
    without an entry and no `gid` is given.
    """
    user = _find_user(os.geteuid() if uid is None else uid)
    number = None if uid is None else user.pw_uid if user else int(uid)
    group = None if gid is None else _find_group(gid)
    if number is not None and group is None:
        if user is None:
            raise SysupError(f"cannot find a group for user {uid}: it has no entry, so set gid")
        group = user.pw_gid
    members: tuple[int, ...] | None = None
    if groups is not None:
        members = tuple(_find_group(name) for name in groups)
    elif number is not None and group is not None:
        members = tuple(os.getgrouplist(user.pw_name, group)) if user else (group,)
    if user is None:
        return Identity(number, group, members, str(uid or os.geteuid()), "/", "/bin/sh")
    shell = user.pw_shell or "/bin/sh"
    return Identity(number, group, members, user.pw_name, user.pw_dir or "/", shell)


def _find_user(user: str | int) -> pwd.struct_passwd | None:
    """The entry of a user; None for a number that has none."""
    try:
        return pwd.getpwnam(user) if isinstance(user, str) else pwd.getpwuid(user)
    except KeyError:
        pass
    if isinstance(user, str) and not user.isdecimal():
        raise SysupError(f"cannot find user '{user}'")
    try:
        return pwd.getpwuid(int(user))
    except (KeyError, OverflowError):
        return None


def _find_group(group: str) -> int:
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        if group.isdecimal():
            return int(group)
        raise SysupError(f"cannot find group '{group}'") from None
