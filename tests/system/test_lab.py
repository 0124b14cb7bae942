"""The machines of the other tests: that they are whole, and leave nothing behind."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.harness import until
from tests.lab import Container, Unavailable, boot, rootfs
from tests.lab.keeper import own_cgroups
from tests.system.conftest import ROOT

BOOT_AND_WAIT = """
import sys
from tests.lab import boot
machine = boot()
print(machine.name, flush=True)
machine.run(["sleep", "1000"], timeout=1000)
"""


@pytest.fixture(scope="module")
def bare() -> Iterator[Container]:
    """A machine with nothing of ours."""
    try:
        booted = boot()
    except Unavailable as reason:
        pytest.skip(str(reason))
    with booted:
        yield booted


def traces(name: str) -> list[Path]:
    """What there is of a machine outside of it."""
    places = [Path(tempfile.gettempdir(), name), *own_cgroups(name)]
    return [path for path in places if path.exists()]


def named_in_command_lines(name: str) -> list[str]:
    found = subprocess.run(["pgrep", "--full", "--list-full", name], capture_output=True, text=True)
    return found.stdout.splitlines()


def test_the_system_is_well(bare: Container) -> None:
    assert bare.run(["systemctl", "is-system-running", "--wait"]).stdout == "running\n"
    assert bare.run(["stat", "-f", "-c", "%T", "/sys/fs/cgroup"]).stdout == "cgroup2fs\n"


def test_a_command_has_its_status_and_streams(bare: Container) -> None:
    done = bare.run(["sh", "-c", "cat; echo no >&2; exit 3"], input="yes", check=False)
    assert (done.returncode, done.stdout, done.stderr) == (3, "yes", "no\n")
    assert bare.run(["sh", "-c", "kill -TERM $$"], check=False).returncode == 128 + signal.SIGTERM
    with pytest.raises(AssertionError, match="exit 3"):
        bare.run(["sh", "-c", "exit 3"])


def test_a_command_ends_with_the_patience_of_its_caller(bare: Container) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        bare.run(["sleep", "1001"], timeout=0.3)
    until(lambda: not bare.run(["pgrep", "-fx", "sleep 1001"], check=False).stdout, "it is gone")


def test_files_go_in_and_out(bare: Container) -> None:
    bare.write("/srv/some/file", "text")
    assert bare.run(["cat", "/srv/some/file"]).stdout == "text"
    assert not Path("/srv/some/file").exists()
    assert not (rootfs.rootfs() / "srv/some").exists()


def test_its_journal_can_be_read(bare: Container) -> None:
    bare.run(["systemd-cat", "--identifier=me", "echo", "hello"])
    assert bare.journal("SYSLOG_IDENTIFIER=me") == "hello\n"


def test_machines_are_apart(bare: Container) -> None:
    with boot() as other:
        other.write("/srv/other", "")
        assert not bare.path("/srv/other").exists()
        ids = [machine.run(["cat", "/etc/machine-id"]).stdout for machine in (bare, other)]
        assert ids[0] != ids[1]
        name = other.name
        assert traces(name)
        other.power_off()
    assert traces(name) == []
    assert named_in_command_lines(name) == []
    assert bare.run(["true"]).returncode == 0


def test_nothing_is_left_when_the_tests_are_killed(bare: Container) -> None:
    command = [sys.executable, "-c", BOOT_AND_WAIT]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as killed:
        assert killed.stdout
        name = killed.stdout.readline().strip()
        assert traces(name)
        killed.kill()
        until(lambda: not traces(name) and not named_in_command_lines(name), "all is gone")


def test_a_machine_that_does_not_boot_is_told(bare: Container, tmp_path: Path) -> None:
    (tmp_path / "usr/lib/systemd").mkdir(parents=True)
    (tmp_path / "usr/lib/systemd/systemd").write_text("#!/bin/false\n")
    with pytest.raises(Unavailable, match="does not boot"):
        boot(tmp_path)


# ---- where its packages come from ------------------------------------------------------------

ONE_LINE = """
# deb http://commented.example/debian bookworm main
deb [signed-by=/usr/share/keyrings/a.gpg arch=amd64] http://one.example/debian bookworm main
deb-src http://source.example/debian bookworm main
deb http://third.example/apt stable main
"""
DEB822 = """
Types: deb
# a comment
URIs: http://two.example/debian
Suites: bookworm bookworm-updates
  bookworm-backports
Components: main

Types: deb
URIs: http://fourth.example/
Suites: nodistro
"""


def test_packages_come_from_where_this_machine_has_them(tmp_path: Path) -> None:
    (tmp_path / "sources.list").write_text(ONE_LINE)
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list.d/debian.sources").write_text(DEB822)
    (tmp_path / "sources.list.d/old.list.save").write_text(ONE_LINE.replace("one.", "old."))
    for suite in ("bookworm", "trixie"):
        assert rootfs.sources(suite, tmp_path) == {
            f"deb http://one.example/debian {suite} main",
            f"deb http://two.example/debian {suite} main",
            f"deb http://two.example/debian {suite}-updates main",
        }


def test_a_machine_without_apt_has_no_say(tmp_path: Path) -> None:
    assert rootfs.sources(directory=tmp_path) == set()


# ---- what is kept ----------------------------------------------------------------------------


def test_what_is_kept_is_made_when_its_recipe_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made = []

    def make(path: Path) -> None:
        made.append(path)
        path.mkdir()

    def fail(path: Path) -> None:
        raise RuntimeError

    for recipe in ("one", "one", "other"):
        with rootfs.kept("thing", recipe, make) as path:
            assert path.is_dir()
    assert len(made) == 2
    for how in (fail, make):  # what could not be made is tried again
        try:
            with rootfs.kept("thing", "third", how):
                pass
        except RuntimeError:
            assert not path.exists()
    assert len(made) == 3
