"""Figures of processes: parsers on text, and one pass through a /proc of our own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sysup import stats
from sysup.stats import (
    GONE,
    PAGE,
    REMEMBERED,
    TICKS,
    Figures,
    Stats,
    clock_time,
    human_bytes,
    owner,
    parse_memory,
    parse_stat,
    program,
    user_name,
)


def stat_line(
    pid: int, ppid: int = 1, name: str = "web", ticks: tuple[int, int] = (0, 0), start: int = 0
) -> str:
    """A line as the kernel writes it: 52 fields (proc(5))."""
    fields = ["S", ppid, pid, pid, 0, -1, 4194560, 0, 0, 0, 0, *ticks, 0, 0, 20, 5, 1, 0]
    fields += [start, 4096000, 250, *(0 for _ in range(28))]
    return f"{pid} ({name}) {' '.join(map(str, fields))}\n"


def test_a_line_of_stat() -> None:
    line = stat_line(7, ppid=3, ticks=(150, 50), start=5 * TICKS)
    assert parse_stat(line) == Figures(
        pid=7,
        ppid=3,
        nice=5,
        cpu_time=200 / TICKS,
        start=5.0,
        virtual=4096000,
        resident=250 * PAGE,
    )


@pytest.mark.parametrize("name", ["a b", ") S 1 (", "((", "a) R 9"])
def test_names_may_hold_anything(name: str) -> None:
    assert parse_stat(stat_line(7, ppid=3, name=name)).ppid == 3


@pytest.mark.parametrize("text", ["", "7", "7 (web) S 1", "x (web) " + "1 " * 40])
def test_what_is_no_line_of_stat(text: str) -> None:
    with pytest.raises(ValueError, match=r"not a line|invalid literal"):
        parse_stat(text)


def test_memory() -> None:
    assert parse_memory("MemFree: 1 kB\nMemTotal:       2048 kB\nMemX: 3 kB\n") == 2 << 20
    with pytest.raises(ValueError, match="no MemTotal"):
        parse_memory("MemFree: 1 kB\n")


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0B"),
        (1023, "1023B"),
        (1024, "1.0K"),
        (1530000, "1.46M"),
        (5 << 30, "5.0G"),
        (1 << 80, "1.0Y"),
    ],
)
def test_sizes_read_as_in_circus(number: int, text: str) -> None:
    assert human_bytes(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0:00.00"), (0.34, "0:00.34"), (61.5, "1:01.50"), (6000, "100:00.00")],
)
def test_times_read_as_in_circus(seconds: float, text: str) -> None:
    assert clock_time(seconds) == text


def test_names_of_users() -> None:
    assert user_name(0) == "root"
    assert user_name(4_000_000_000) == "4000000000"


class Proc:
    """A /proc of our own."""

    def __init__(self) -> None:
        self.lines: dict[int, str] = {}
        self.uptime = 1000.0
        self.reads = 0

    def read(self, path: str) -> str:
        self.reads += 1
        match path.split("/")[2:]:
            case ["meminfo"]:
                return "MemTotal: 1000 kB\n"
            case ["uptime"]:
                return f"{self.uptime} 0.0\n"
            case [pid, "stat"] if int(pid) in self.lines:
                return self.lines[int(pid)]
            case [pid, "cmdline"] if int(pid) in self.lines:
                return f"/usr/bin/prog{pid}\0--arg\0"
        raise FileNotFoundError(path)

    def names(self, path: str) -> list[str]:
        return ["self", "sys", "99999", *map(str, self.lines)]


@pytest.fixture
def proc(monkeypatch: pytest.MonkeyPatch) -> Iterator[Proc]:
    proc = Proc()
    with monkeypatch.context() as patch:
        patch.setattr(stats, "read", proc.read)
        patch.setattr(os, "listdir", proc.names)
        patch.setattr(stats, "owner", lambda pid: "root")
        yield proc


def test_a_process_and_its_children(proc: Proc) -> None:
    proc.lines[7] = stat_line(7, start=900 * TICKS, ticks=(34, 0))
    proc.lines[8] = stat_line(8, ppid=7)
    proc.lines[9] = stat_line(9, ppid=8)
    info = Stats().info(7, wall=5000.0)
    assert isinstance(info, dict)
    (child,) = info.pop("children")
    assert (child["pid"], child["children"]) == (8, [])
    assert info == {
        "mem_info1": human_bytes(250 * PAGE),
        "mem_info2": "3.91M",
        "cpu": 0.0,
        "mem": round(100 * 250 * PAGE / 1024000, 3),
        "ctime": clock_time(34 / TICKS),
        "pid": 7,
        "username": "root",
        "nice": 5,
        "create_time": 4900.0,
        "age": 100.0,
        "cmdline": "prog7",
    }


def test_the_rate_is_since_the_last_question(proc: Proc) -> None:
    teller = Stats()

    def cpu() -> float:
        info = teller.info(7, wall=0.0)
        assert isinstance(info, dict)
        return float(info["cpu"])

    proc.lines[7] = stat_line(7, ticks=(1000 * TICKS, 0))
    assert cpu() == 0.0, "no rate of a single look"
    assert cpu() == 0.0, "nor of two at one time"
    proc.uptime += 2
    proc.lines[7] = stat_line(7, ticks=(1000 * TICKS, TICKS))
    assert cpu() == 50.0
    proc.uptime += 1
    proc.lines[7] = stat_line(7, ticks=(9000 * TICKS, 0), start=5)
    assert cpu() == 0.0, "another process of that number"


def test_who_is_gone_is_told_so(proc: Proc) -> None:
    proc.lines[7] = stat_line(7)
    assert Stats().infos([7, 8], wall=0.0)[8] == GONE
    proc.lines[9] = "nonsense"
    assert Stats().info(9, wall=0.0) == GONE


def test_memory_of_the_past_is_bounded(proc: Proc, monkeypatch: pytest.MonkeyPatch) -> None:
    assert REMEMBERED >= 10_000
    monkeypatch.setattr(stats, "REMEMBERED", 10)
    teller = Stats()
    for pid in range(100, 130):
        proc.lines = {pid: stat_line(pid)}
        teller.info(pid, wall=0.0)
    assert len(teller._last) == 10


def test_a_thousand_processes_cost_one_pass(proc: Proc) -> None:
    def reads(number: int) -> int:
        proc.lines = {pid: stat_line(pid) for pid in range(1000, 1000 + number)}
        teller = Stats()
        proc.reads = 0
        infos = teller.infos(list(proc.lines), wall=0.0)
        assert all(isinstance(info, dict) for info in infos.values())
        return proc.reads

    assert reads(1000) < 2.1 * reads(500)
    assert reads(1000) <= 2 * 1000 + 3


def test_the_real_proc() -> None:
    info = Stats().info(os.getpid(), wall=0.0)
    assert isinstance(info, dict)
    assert info["pid"] == os.getpid()
    assert info["cmdline"] == os.path.basename(
        Path("/proc/self/cmdline").read_bytes().split(b"\0")[0].decode()
    )
    assert info["username"] == user_name(os.geteuid())
    gone = 2**22 + 1  # above the highest pid that Linux gives (proc(5), pid_max)
    assert (owner(gone), program(gone), Stats().info(gone, wall=0.0)) == ("N/A", "N/A", GONE)
