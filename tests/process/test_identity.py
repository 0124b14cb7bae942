"""Whom a process is to run as."""

from __future__ import annotations

import os
import pwd

import pytest

from sysup.process import OS, identity
from sysup.protocol import SysupError
from tests.process.real import (
    launch,
    output,
)


def test_nobody_named_is_the_daemons_user() -> None:
    who = identity(None, None, None)
    entry = pwd.getpwuid(os.geteuid())
    assert (who.uid, who.gid, who.groups) == (None, None, None)
    assert (who.name, who.home) == (entry.pw_name, entry.pw_dir)


@pytest.mark.parametrize("uid", ["root", "0"])
def test_a_user_brings_its_groups(uid: str) -> None:
    who = identity(uid, None, None)
    assert (who.uid, who.gid, who.name) == (0, 0, "root")
    assert who.groups == tuple(os.getgrouplist("root", 0))


def test_groups_by_name_and_number() -> None:
    assert identity(None, "12", ["0", "daemon"]) == identity(None, "12", ["root", "1"])
    assert identity("root", "daemon", None).gid == 1
    assert identity(None, "daemon", None).groups is None, "as Circus: only a user brings groups"


def test_a_number_without_an_entry() -> None:
    with pytest.raises(SysupError, match="cannot find a group for user 54321"):
        identity("54321", None, None)
    who = identity("54321", "12", None)
    assert (who.uid, who.gid, who.groups, who.name) == (54321, 12, (12,), "54321")


def test_an_unknown_name_is_told() -> None:
    with pytest.raises(SysupError, match=r"^cannot find user 'nosuch'$"):
        identity("nosuch", None, None)
    with pytest.raises(SysupError, match=r"^cannot find group 'nosuch'$"):
        identity(None, "nosuch", None)
    with pytest.raises(SysupError, match=r"^cannot find group 'nosuch'$"):
        identity(None, None, ["nosuch"])


def test_ones_own_groups_need_no_right(system: OS) -> None:
    """So that a daemon without privileges may name the user that it is."""
    mine = tuple(os.getgroups())
    assert output(system, launch("echo", "ok", uid=os.getuid(), groups=mine)) == "ok\n"
