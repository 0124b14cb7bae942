"""Figures of processes: the kernel's text read right, Circus's shape, one pass for all."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sysup import stats
from sysup.stats import (
    Stats,
    clock_time,
    human_bytes,
    parse_memory,
    parse_ppid,
    parse_stat,
    whole,
)

LINE = (
    "22307 ({name}) S 22296 22307 22307 0 -1 4194560 214 0 0 0 {user} {system} 0 0 20 -5 1 0 "
    "{start} 2560000 375 18446744073709551615 1 1 0 0 0 0 0 0 0 0 0 0 17 1 0 0 0 0 0 0 0\n"
)


def line(name: str = "sleep", user: int = 0, system: int = 0, start: int = 1000) -> str:
    return LINE.format(name=name, user=user, system=system, start=start)


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


def test_stat_is_read() -> None:
    figures = parse_stat(line(user=3 * stats.TICKS, system=stats.TICKS // 2))
    assert (figures.pid, figures.ppid, figures.nice) == (22307, 22296, -5)
    assert figures.cpu_time == pytest.approx(3.5)
    assert figures.start == pytest.approx(1000 / stats.TICKS)
    assert (figures.virtual, figures.resident) == (2560000, 375 * stats.PAGE)


@given(st.text(st.characters(exclude_characters="\0"), max_size=15))
def test_a_name_may_hold_anything(name: str) -> None:
    figures = parse_stat(line(name))
    assert figures == parse_stat(line())._replace(comm=name)
    assert parse_ppid(line(name)) == 22296


@pytest.mark.parametrize("text", ["", "12", "12 (sh) S 1 2", "no line at all"])
def test_what_is_no_line_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a line"):
        parse_stat(text)


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


def test_the_rate_is_since_the_last_question(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    answers = Stats(clock=lambda: now)
    used = 0
    start = 1000

    def figures_of(pid: int) -> stats.Figures:
        return parse_stat(line(user=used, start=start))

    def cpu() -> float:
        info = answers.info(22307, wall=0.0)
        assert isinstance(info, dict)
        rate: float = info["cpu"]
        return rate

    monkeypatch.setattr(stats, "figures_of", figures_of)
    assert cpu() == 0.0
    now, used = 102.0, stats.TICKS
    assert cpu() == 50.0
    assert cpu() == 0.0, "no time has gone by"
    now, used = 103.0, 3 * stats.TICKS
    assert cpu() == 200.0
    now, used, start = 104.0, 0, 2000
    assert cpu() == 0.0, "another process has the pid"


def test_in_a_long_pass_the_rate_is_of_when_each_was_read(monkeypatch: pytest.MonkeyPatch) -> None:
    now = used = 0.0
    answers = Stats(clock=lambda: now)
    monkeypatch.setattr(stats, "stat_line", lambda pid: line(user=int(used * stats.TICKS)))
    monkeypatch.setattr(os, "listdir", lambda path: ["22307", "irq", "22307"])

    def cpu(pause: float) -> float:
        """In which a pass is held up for so long."""
        nonlocal now
        steps = answers.infos([22307], wall=0.0)
        next(steps)
        next(steps)
        now += pause
        info = whole(steps)[22307]
        assert isinstance(info, dict)
        return float(info["cpu"])

    cpu(0.0)
    now, used = 10.0, 5.0
    assert cpu(5.0) == 50.0


def test_remembers_a_bounded_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "REMEMBERED", 3)
    answers = Stats()
    figures = [parse_stat(line(start=start)) for start in range(10)]
    for each in figures:
        answers._look(each, now=1.0)
    assert len(answers._seen) == 3


def test_a_name_is_read_again_when_it_may_be_another(monkeypatch: pytest.MonkeyPatch) -> None:
    now, comm, reads = 100.0, "sh", 0
    answers = Stats(clock=lambda: now)

    def program(pid: int) -> str:
        nonlocal reads
        reads += 1
        return f"{comm}{reads}"

    def cmdline() -> str:
        info = answers.info(22307, wall=0.0)
        assert isinstance(info, dict)
        return str(info["cmdline"])

    monkeypatch.setattr(stats, "figures_of", lambda pid: parse_stat(line(comm)))
    monkeypatch.setattr(stats, "program", program)
    assert [cmdline(), cmdline()] == ["sh1", "sh1"]
    comm = "web"
    assert [cmdline(), cmdline()] == ["web2", "web2"]
    now += stats.NAMED_FOR
    assert [cmdline(), cmdline()] == ["web3", "web3"]


def test_a_process_and_its_child_in_circus_shape() -> None:
    with child("nice -n 5 sh -c 'echo ready; read x'; exit 0") as pid:
        info = whole(Stats().infos([pid], wall=1_000_000.0))[pid]
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
    infos = whole(Stats().infos([gone.pid, os.getpid()], 0.0))
    assert infos[gone.pid] == "No such process (stopped?)"
    assert Stats().info(gone.pid, 0.0) == "No such process (stopped?)"


def test_a_zombie_is_described() -> None:
    with child("echo ready; read x") as pid:
        os.kill(pid, 9)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        info = Stats().info(pid, wall=0.0)
    assert isinstance(info, dict)
    assert (info["cmdline"], info["mem_info1"]) == ("N/A", "0B")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_the_user_of_a_process_that_changed_it() -> None:
    """Though the kernel gives the files in its /proc/PID to root."""
    script = "import os, sys; os.setuid(65534); print('ready', flush=True); sys.stdin.read()"
    with child(f'exec {sys.executable} -Sc "{script}"') as pid:
        info = Stats().info(pid, wall=0.0)
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
    assert set(whole(Stats().infos(pids, 0.0))) == pids
    assert lists == 1
