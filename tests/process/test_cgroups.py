"""Control groups: made, killed and removed, on the real file system."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from sysup.process.cgroups import Cgroup, Cgroups, is_delegated, own_directory
from tests.delegated import lives, members
from tests.e2e.harness import until


def sleeper(group: Cgroup, script: str = "exec sleep 1000") -> subprocess.Popen[bytes]:
    enter = f'echo 0 >"{group.directory}/cgroup.procs"; {script}'
    return subprocess.Popen(["sh", "-c", enter], stdin=subprocess.DEVNULL)


def test_our_own_cgroup_is_known() -> None:
    own = own_directory()
    if own is None:
        pytest.skip("no cgroup v2 here")
    assert str(os.getpid()) in Path(own, "cgroup.procs").read_text().split()


@pytest.mark.may_skip
def test_only_what_systemd_marked_is_ours(unit_cgroup: Path) -> None:
    assert is_delegated(str(unit_cgroup))
    below = unit_cgroup / "below"
    below.mkdir()
    assert not is_delegated(str(below))
    assert not is_delegated("/nonexistent")


@pytest.mark.may_skip
@pytest.mark.parametrize("name", ["web", "a/b", "..", "cgroup.procs", "ö %2E", "x" * 300])
def test_any_name_of_a_watcher_has_a_group_of_its_own(unit_cgroup: Path, name: str) -> None:
    cgroups = Cgroups(str(unit_cgroup))
    groups = {cgroups.make(other, 1, 1).directory for other in (name, "other", "x" * 299)}
    assert len(groups) == 3
    assert {Path(group).parents[1] for group in groups} == {unit_cgroup / "w"}
    cgroups.forget(name)
    assert len([path for path in (unit_cgroup / "w").iterdir() if path.is_dir()]) == 2


@pytest.mark.may_skip
def test_a_slot_that_is_not_empty_yet_gets_a_second_group(unit_cgroup: Path) -> None:
    cgroups = Cgroups(str(unit_cgroup))
    first = cgroups.make("web", 1, 7)
    process = sleeper(first)
    until(lambda: first.pids() == {process.pid}, "it is inside")
    second = cgroups.make("web", 1, 8)
    assert (first.path, second.path) == ("w/web/1", "w/web/1.8")
    assert not first.remove()
    first.kill()
    process.wait()
    until(first.remove, "it is empty")
    assert cgroups.make("web", 1, 9).path == "w/web/1"


@pytest.mark.may_skip
def test_what_a_process_made_below_is_killed_and_removed_too(unit_cgroup: Path) -> None:
    group = Cgroups(str(unit_cgroup)).make("web", 1, 1)
    deep = f"{group.directory}/a/b"
    process = sleeper(
        group, f'mkdir -p "{deep}"; echo 0 >"{deep}/cgroup.procs"; exec setsid sleep 1000'
    )
    until(lambda: members(Path(deep)) == {process.pid}, "it hides")
    group.kill()
    process.wait()
    until(group.remove, "all is removed")
    assert not os.path.exists(group.directory)
    group.kill()
    assert group.remove(), "once more"


@pytest.mark.may_skip
def test_strays_are_those_that_nobody_knows(unit_cgroup: Path) -> None:
    cgroups = Cgroups(str(unit_cgroup))
    assert cgroups.strays([]) == []
    known, stray = cgroups.make("web", 1, 1), cgroups.make("web", 2, 2)
    assert [group.path for group in cgroups.strays({known.path})] == [stray.path]
    assert cgroups.at("w/web/2") == stray


@pytest.mark.may_skip
def test_all_is_killed_at_once(unit_cgroup: Path) -> None:
    cgroups = Cgroups(str(unit_cgroup))
    assert cgroups.kill_all(), "there is nothing"
    processes = [sleeper(cgroups.make("web", wid, wid)) for wid in (1, 2)]
    until(lambda: len(members(unit_cgroup)) == 2, "both are inside")
    cgroups.kill_all()
    for process in processes:
        process.wait()
    until(cgroups.kill_all, "nothing is left")
    assert not lives(unit_cgroup)
    assert not (unit_cgroup / "w").exists()
