"""Figures of processes: the kernel's text read right, Circus's shape, one pass for all."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from sysup import stats
from sysup.process import OS
from sysup.stats import Figures, Stats, clock_time, human_bytes, parse_memory
from tests.fakes import whole

LOOK = OS().figures


def figures(comm: bytes = b"sleep", cpu: int = 0, start: int = 1000, at: float = 100.0) -> Figures:
    """Of a process that is made up; `at` seconds from boot."""
    return Figures(22307, 22296, -5, comm, start, cpu, 2560000, 375, round(at * stats.NS))


@contextmanager
def child(script: str) -> Iterator[int]:
    """A process that says when it is ready, and ends with the block."""
    pipe = subprocess.PIPE
    with subprocess.Popen(["/bin/sh", "-c", script], stdin=pipe, stdout=pipe) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process.pid
        assert process.stdin is not None
        process.stdin.close()


def test_what_the_kernel_counts_is_told_in_seconds_and_bytes() -> None:
    told = figures(cpu=3 * stats.TICKS + stats.TICKS // 2, start=90 * stats.TICKS, at=100.0)
    info = Stats(lambda pids: [told]).info(22307, wall=1000.0)
    assert isinstance(info, dict)
    assert (info["pid"], info["nice"], info["ctime"]) == (22307, -5, "0:03.50")
    assert (info["mem_info1"], info["mem_info2"]) == (human_bytes(375 * stats.PAGE), "2.44M")
    assert (info["age"], info["create_time"]) == (10.0, 990.0)


def test_memory_is_found_by_its_whole_name() -> None:
    assert parse_memory("MemTotalX: 7 kB\nMemTotal:  16384 kB\nMemFree: 12 kB\n") == 16 << 20
    with pytest.raises(ValueError, match="MemTotal"):
        parse_memory("MemFree: 12 kB\n")


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0B"),
        (1023, "1023B"),
        (1024, "1.0K"),
        (10000, "9.77K"),
        (100001221, "95.37M"),
        (5 << 40, "5.0T"),
    ],
)
def test_sizes_read_as_circus_writes_them(number: int, text: str) -> None:
    assert human_bytes(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00.00"), (0.34, "0:00.34"), (0.04, "0:00.04"), (75.5, "1:15.50"), (7200, "120:00.00")],
)
def test_cpu_time_reads_as_circus_writes_it(seconds: float, text: str) -> None:
    assert clock_time(seconds) == text


def test_the_rate_is_since_the_last_question() -> None:
    told = figures()
    answers = Stats(lambda pids: [told])

    def cpu(**facts: Any) -> float:
        nonlocal told
        told = figures(**facts)
        info = answers.info(22307, wall=0.0)
        assert isinstance(info, dict)
        rate: float = info["cpu"]
        return rate

    ticks = stats.TICKS
    assert cpu(at=100.0) == 0.0
    assert cpu(at=102.0, cpu=ticks) == 50.0
    assert cpu(at=102.0, cpu=ticks) == 0.0, "no time has gone by"
    assert cpu(at=103.0, cpu=3 * ticks) == 200.0
    assert cpu(at=104.0, cpu=0, start=2000) == 0.0, "another process has the pid"


def test_in_a_long_pass_the_rate_is_of_when_each_was_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "listdir", lambda path: ["22307", "irq"])
    at, used = 0.0, 0.0
    answers = Stats(lambda pids: [figures(cpu=int(used * stats.TICKS), at=at)])

    def cpu(pause: float) -> float:
        """In which a pass is held up for so long after the process was looked at."""
        nonlocal at
        steps = answers.infos([22307], wall=0.0)
        next(steps)
        at += pause
        info = whole(steps)[22307]
        assert isinstance(info, dict)
        return float(info["cpu"])

    cpu(5.0)
    at, used = 10.0, 5.0
    assert cpu(0.0) == 50.0


def test_remembers_a_bounded_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "REMEMBERED", 3)
    starts = iter(range(10))
    answers = Stats(lambda pids: [figures(start=next(starts))])
    for _ in range(10):
        answers.info(22307, wall=0.0)
    assert len(answers._seen) == 3


def test_a_name_is_read_again_when_it_may_be_another(monkeypatch: pytest.MonkeyPatch) -> None:
    now, comm, reads = 100.0, "sh", 0
    answers = Stats(lambda pids: [figures(comm.encode(), at=now)])

    def program(pid: int) -> str:
        nonlocal reads
        reads += 1
        return f"{comm}{reads}"

    def cmdline() -> str:
        info = answers.info(22307, wall=0.0)
        assert isinstance(info, dict)
        return str(info["cmdline"])

    monkeypatch.setattr(stats, "program", program)
    assert [cmdline(), cmdline()] == ["sh1", "sh1"]
    comm = "web"
    assert [cmdline(), cmdline()] == ["web2", "web2"]
    now += stats.NAMED_FOR
    assert [cmdline(), cmdline()] == ["web3", "web3"]


def test_a_process_and_its_child_in_circus_shape() -> None:
    with child("nice -n 5 sh -c 'echo ready; read x'; exit 0") as pid:
        info = whole(Stats(LOOK).infos([pid], wall=1_000_000.0))[pid]
    assert isinstance(info, dict)
    shape = {
        *("mem_info1", "mem_info2", "cpu", "mem", "ctime", "pid", "username", "nice"),
        *("create_time", "age", "cmdline", "children"),
    }
    assert info.keys() == shape
    assert (info["pid"], info["cmdline"], info["nice"]) == (pid, "sh", os.nice(0))
    assert info["username"] == stats.user_name(os.getuid())
    assert 0 <= info["age"] < 60
    assert info["create_time"] == pytest.approx(1_000_000 - info["age"])
    assert 0 < info["mem"] < 100
    (below,) = info["children"]
    assert below.keys() == shape
    assert (below["nice"], below["children"]) == (os.nice(0) + 5, [])


def test_a_process_that_has_gone_is_told_in_words() -> None:
    with subprocess.Popen(["/bin/true"]) as gone:
        gone.wait()
    infos = whole(Stats(LOOK).infos([gone.pid, os.getpid()], 0.0))
    assert infos[gone.pid] == "No such process (stopped?)"
    assert Stats(LOOK).info(gone.pid, 0.0) == "No such process (stopped?)"


def test_a_zombie_is_described() -> None:
    with child("echo ready; read x") as pid:
        os.kill(pid, 9)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        info = Stats(LOOK).info(pid, wall=0.0)
    assert isinstance(info, dict)
    assert (info["cmdline"], info["mem_info1"]) == ("N/A", "0B")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_the_user_of_a_process_that_changed_it() -> None:
    """Though the kernel gives the files in its /proc/PID to root."""
    script = "import os, sys; os.setuid(65534); print('ready', flush=True); sys.stdin.read()"
    with child(f'exec {sys.executable} -Sc "{script}"') as pid:
        info = Stats(LOOK).info(pid, wall=0.0)
        assert os.stat(f"/proc/{pid}/stat").st_uid == 0
    assert isinstance(info, dict)
    assert info["username"] == stats.user_name(65534)


def test_only_what_is_asked_for_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    """One pass over all processes, however many are asked for."""
    lists = 0
    real = os.listdir

    def listdir(path: str) -> list[str]:
        nonlocal lists
        lists += 1
        return real(path)

    monkeypatch.setattr(os, "listdir", listdir)
    pids = {os.getpid(), os.getppid()}
    assert set(whole(Stats(LOOK).infos(pids, 0.0))) == pids
    assert lists == 1
