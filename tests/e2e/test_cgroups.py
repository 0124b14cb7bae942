"""A cgroup for each process: nothing that it starts can hide from its end."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.delegated import ENTER, members
from tests.e2e.conftest import Start
from tests.e2e.harness import Daemon, until

ESCAPE = "sh -c 'setsid env -i sleep 2000 & exec sleep 1000'"
"""Leaves a child in a session and an environment of its own."""


def start(sysupd: Start, unit_cgroup: Path, ini: str) -> Daemon:
    return sysupd(ini, inside=["sh", "-c", ENTER, str(unit_cgroup)])


def escaped(unit_cgroup: Path, wid: int = 1) -> set[int]:
    """What is in the slot's group beside its process, once it is there."""
    found: set[int] = until(
        lambda: pids if len(pids := members(unit_cgroup / f"w/web/{wid}")) == 2 else None,
        "two are inside",
    )
    return found


@pytest.mark.may_skip
def test_each_process_lives_in_a_group_of_its_own(sysupd: Start, unit_cgroup: Path) -> None:
    daemon = start(sysupd, unit_cgroup, "[watcher:web]\ncmd = sleep 1000\nnumprocesses = 2\n")
    pids = daemon.pids("web")
    assert members(unit_cgroup / "daemon") == {daemon.pid}
    assert [members(unit_cgroup / f"w/web/{wid}") for wid in (1, 2)] == [{pid} for pid in pids]
    daemon.call("decr", name="web", waiting=True)
    assert [path.name for path in (unit_cgroup / "w/web").iterdir() if path.is_dir()] == ["1"]
    daemon.call("rm", name="web", waiting=True)
    assert not (unit_cgroup / "w/web").exists()


@pytest.mark.may_skip
@pytest.mark.parametrize("end", ["stop", "crash", "kill"])
def test_what_left_session_and_environment_ends_too(
    sysupd: Start, unit_cgroup: Path, end: str
) -> None:
    daemon = start(sysupd, unit_cgroup, f"[watcher:web]\ncmd = {ESCAPE}\n")
    both = escaped(unit_cgroup)
    (main,) = daemon.pids("web")
    if end == "stop":
        daemon.call("stop", name="web", waiting=True)
        assert members(unit_cgroup) == {daemon.pid}
    elif end == "crash":
        os.kill(main, signal.SIGSEGV)
    else:
        daemon.call("kill", name="web", signum=9, waiting=True)
    until(lambda: not both & members(unit_cgroup), "nothing of it is left")


@pytest.mark.may_skip
def test_main_alone_leaves_the_others_until_the_daemon_ends(
    sysupd: Start, unit_cgroup: Path
) -> None:
    daemon = start(sysupd, unit_cgroup, f"[watcher:web]\ncmd = {ESCAPE}\nstop_scope = main\n")
    both = escaped(unit_cgroup)
    (main,) = daemon.pids("web")
    os.kill(main, signal.SIGSEGV)
    until(lambda: daemon.pids("web") not in ([], [main]), "a new one runs")
    left = both - {main}
    assert left <= members(unit_cgroup / "w/web/1")
    daemon.stop()
    until(lambda: members(unit_cgroup) == set(), "all have ended")
    assert not list((unit_cgroup / "w").glob("*/*")), "and their groups are gone"
