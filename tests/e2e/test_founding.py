"""The two files of the founding announcement, as they are."""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from pathlib import Path

from tests.e2e.conftest import Start
from tests.e2e.harness import HERE, until

LINE = re.compile(r"process (\d+) line (\d+) of 200: the quick brown fox jumps over the lazy dog")


def test_the_first_file_sets_the_limit_that_the_child_sees(sysupd: Start) -> None:
    daemon = sysupd((HERE / "first.ini").read_text())
    assert daemon.status("myprogram") == "active"
    (pid,) = daemon.pids("myprogram")
    limits = Path(f"/proc/{pid}/limits").read_text()
    assert re.search(r"Max open files +500 +500 ", limits)


WRITER = """\
import os, sys
pid = os.getpid()
text = "the quick brown fox jumps over the lazy dog and back again to where it began, at last"
write = os.write
for number in range(1, 20_001):
    write(1, f"process {pid} line {number} {text}\\n".encode())
"""


def test_20_000_lines_of_each_of_100_processes_in_one_file(sysupd: Start, tmp_path: Path) -> None:
    (tmp_path / "writer.py").write_text(WRITER)
    log = tmp_path / "all.log"
    daemon = sysupd(
        f"[watcher:writer]\ncmd = {sys.executable} -S writer.py\nnumprocesses = 100\n"
        f"respawn = False\nstdout_stream.filename = {log}\n"
    )
    until(lambda: daemon.status("writer") == "stopped", "all are done", 100)
    daemon.call("stop", name="writer", waiting=True)
    pattern = re.compile(
        rb"process (\d+) line (\d+) the quick brown fox jumps over the lazy dog and back again "
        rb"to where it began, at last\n"
    )
    seen: dict[bytes, int] = defaultdict(int)
    with log.open("rb") as lines:
        for line in lines:
            found = pattern.fullmatch(line)
            assert found, line
            seen[found[1]] += 1
            assert int(found[2]) == seen[found[1]]
    assert len(seen) == 100
    assert set(seen.values()) == {20_000}


def test_the_second_file_writes_the_lines_of_100_processes_whole(
    sysupd: Start, tmp_path: Path
) -> None:
    daemon = sysupd((HERE / "second.ini").read_text())
    daemon.call("start", name="myprogram", waiting=True)
    assert len(daemon.pids("myprogram")) == 100
    log = tmp_path / "myprogram.log"
    until(lambda: log.exists() and log.read_bytes().count(b"\n") >= 100 * 200, "all lines")
    seen = defaultdict(list)
    for line in log.read_text().splitlines():
        found = LINE.fullmatch(line)
        assert found, line
        seen[found[1]].append(int(found[2]))
    assert len(seen) == 100
    assert all(lines == list(range(1, 201)) for lines in seen.values())
