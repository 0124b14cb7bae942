"""A disk that is full for a while: the processes wait, or what they print is counted."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.e2e.conftest import Start
from tests.e2e.harness import Daemon, until

PROCESSES, LINES = 3, 4000
LENGTH = 100
"""Of a line: together they are more than the disk holds, and more than pipes and buffers do."""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(disk)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("cannot mount a small tmpfs here: needs root and CAP_SYS_ADMIN")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def fill(disk: Path) -> None:
    with (disk / "filler").open("wb", buffering=0) as filler, suppress(OSError):
        while True:
            filler.write(b"." * 4096)
    assert os.statvfs(disk).f_bfree == 0


def enlarge(disk: Path) -> None:
    (disk / "filler").unlink()
    subprocess.run(["mount", "-o", "remount,size=16m", str(disk)], check=True)


class Work:
    """Processes that write numbered lines to a log on a disk, and say when they are done."""

    def __init__(self, start: Start, directory: Path, disk: Path, on_full: str) -> None:
        self.log = disk / "log"
        self._done = directory / "done"
        self._done.mkdir()
        script = directory / "script"
        dots = "." * (LENGTH - 17)
        script.write_text(f"seq -f $$.%06g.{dots} {LINES}\ntouch {self._done}/$$\n")
        self._start = start
        self._ini = (
            f"[watcher:w]\ncmd = sh {script}\nnumprocesses = {PROCESSES}\nrestart = never\n"
            f"stdout_stream.filename = {self.log}\nstdout_stream.on_full = {on_full}\n"
        )

    def begin(self) -> Daemon:
        return self._start(self._ini)

    def done(self) -> int:
        """How many processes have written all that they wanted."""
        return len(os.listdir(self._done))

    def found(self) -> tuple[dict[str, list[int]], int]:
        """The numbers of each process; how many lines are said to be lost."""
        numbers: dict[str, list[int]] = {}
        lost = 0
        for row in self.log.read_text().splitlines():
            if record := re.match(r"sysup: .*?(\d+) lines?", row):
                lost += int(record[1])
            else:
                line = re.fullmatch(r"(\d+)\.(\d{6})\.+", row)
                assert line, f"torn: {row}"
                numbers.setdefault(line[1], []).append(int(line[2]))
        return numbers, lost


def problem(daemon: Daemon) -> str:
    return str(daemon.call("status")["watchers"]["w"]["problem"]).lower()


def test_processes_wait_until_there_is_room(sysupd: Start, tmp_path: Path, disk: Path) -> None:
    fill(disk)
    work = Work(sysupd, tmp_path, disk, "block")
    daemon = work.begin()
    until(lambda: "no space" in problem(daemon), "it is told")
    assert work.done() == 0
    enlarge(disk)
    until(lambda: work.done() == PROCESSES, "all have written")
    assert daemon.stop() == 0
    numbers, lost = work.found()
    assert list(numbers.values()) == [list(range(1, LINES + 1))] * PROCESSES
    assert lost == 0


def test_processes_go_on_and_what_they_lose_is_counted(
    sysupd: Start, tmp_path: Path, disk: Path
) -> None:
    fill(disk)
    work = Work(sysupd, tmp_path, disk, "drop")
    daemon = work.begin()
    until(lambda: work.done() == PROCESSES, "all have written")
    until(lambda: "no space" in problem(daemon), "it is told")
    enlarge(disk)
    assert daemon.stop() == 0
    numbers, lost = work.found()
    assert all(found == sorted(set(found)) for found in numbers.values())
    assert lost == PROCESSES * LINES - sum(map(len, numbers.values())) > 0


def test_what_could_not_be_written_at_the_end_is_said(sysupd: Start, tmp_path: Path) -> None:
    written = tmp_path / "written"
    daemon = sysupd(
        f"[watcher:w]\ncmd = sh -c 'echo 0123456789; touch {written}; exec sleep 1000'\n"
        f"stdout_stream.filename = {tmp_path}/gone/log\n"
    )
    until(written.exists, "it has written")
    assert daemon.stop() == 0
    assert daemon.log().endswith("11 bytes of output could not be written, and are lost\n")
