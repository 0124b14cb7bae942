"""The two files of the founding announcement, as they are."""

from __future__ import annotations

import re
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
