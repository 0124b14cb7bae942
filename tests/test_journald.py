"""The journald of the tests keeps its word; what others lose with it is the measure for us."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bench.install import compile_c
from tests.e2e.harness import until
from tests.journald import PATIENCE, ROOT, Journald

LINES = 100_000
LINE = 99
"""Bytes of one, without its end."""
STREAM_LOSS = 1000
"""Lines that a stream may lose with a killed journald: those of the buffer that it had read. Of
the last of them, it may only lose the beginning."""
SO_SNDBUFFORCE = 32


class Load:
    """A writer of numbered lines, and the plain sender that brings them to journald."""

    def __init__(self, journald: Journald, directory: Path, mode: str) -> None:
        writer, sender = (compile_c(name, directory) for name in ("writer", "journal_sender"))
        self._journald = journald
        reading, self._writing = os.pipe()
        self._writer = subprocess.Popen(
            [writer, "w", str(LINES), "4096"], stdin=subprocess.DEVNULL, stdout=self._writing
        )
        self._sender = subprocess.Popen(
            [sender, mode, journald.directory, str(reading)],
            pass_fds=[reading],
            stdout=subprocess.DEVNULL,
        )
        os.close(reading)

    def __enter__(self) -> Load:
        return self

    def __exit__(self, *_: object) -> None:
        for process in (self._sender, self._writer):
            process.kill()
            process.wait()

    def wait_for(self, count: int) -> None:
        """Until so many are stored."""
        command = ["journalctl", "-q", "-n1", "-o", "cat", "SYSLOG_IDENTIFIER=web"]

        def newest() -> int:
            found = self._journald.run(command, stdout=subprocess.PIPE, text=True).stdout
            return int(found.split()[1]) if found else 0

        until(lambda: newest() >= count, f"{count} lines are stored")

    def numbers(self) -> list[int]:
        """Of the lines that are stored in the end."""
        assert self._writer.wait(PATIENCE) == 0
        os.close(self._writing)  # with which the sender hangs up
        assert self._sender.wait(PATIENCE) == 0
        self._journald.sync()
        lines = self._journald.messages("SYSLOG_IDENTIFIER=web")
        return [int(line.split()[1]) for line in lines if len(line) == LINE]


def restart(journald: Journald) -> None:
    journald.stop()
    journald.start()


def pause(journald: Journald) -> None:
    journald.freeze()
    journald.thaw()


@pytest.mark.parametrize("mode", ["native", "lines"])
@pytest.mark.parametrize("disturb", [None, restart, pause])
def test_a_burst_is_stored_whole(
    journald: Journald, tmp_path: Path, mode: str, disturb: Callable[[Journald], None] | None
) -> None:
    with Load(journald, tmp_path, mode) as load:
        if disturb:
            load.wait_for(1000)
            disturb(journald)
        assert load.numbers() == list(range(LINES))


@pytest.mark.parametrize(("mode", "loss"), [("native", 1), ("lines", STREAM_LOSS)])
def test_a_killed_journald_loses_what_it_had_read(
    journald: Journald, tmp_path: Path, mode: str, loss: int
) -> None:
    with Load(journald, tmp_path, mode) as load:
        load.wait_for(1000)
        journald.kill()
        journald.start()
        numbers = load.numbers()
    assert numbers == sorted(set(numbers))
    assert LINES - loss <= len(numbers) <= LINES


def test_datagrams_wait_while_there_is_no_journald(journald: Journald) -> None:
    journald.stop()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sender:
        sender.connect(str(journald.directory / "socket"))
        sender.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 8 << 20)
        for n in range(513):
            sender.send(b"MESSAGE=%d\n" % n)
        with pytest.raises(BlockingIOError):
            sender.send(b"MESSAGE=too much\n")
    journald.start()
    journald.sync()
    assert journald.messages() == [b"%d" % n for n in range(513)]


def test_any_bytes_come_out_as_they_were(journald: Journald) -> None:
    text = bytes(range(256)) + b"\n\nMESSAGE=no\n"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.connect(str(journald.directory / "socket"))
        sender.send(b"A=1\nMESSAGE\n%b%b\nB=\n" % (len(text).to_bytes(8, "little"), text))
    journald.sync()
    (entry,) = journald.entries()
    assert (entry["MESSAGE"], entry["A"], entry["B"]) == (text, b"1", b"")
    assert entry["_PID"] == b"%d" % os.getpid()


def test_programs_run_inside_where_they_were(journald: Journald, tmp_path: Path) -> None:
    with journald.popen(["sh", "-c", "echo $$; pwd"], cwd=tmp_path, stdout=subprocess.PIPE) as run:
        assert run.stdout
        assert run.stdout.read().decode().split() == [str(run.pid), str(tmp_path)]
    journald.run(["systemd-cat", "-t", "cat", "-p", "err", "echo", "one"])
    journald.run(["logger", "--journald"], input=b"MESSAGE=two\nFIELD=x\n")
    journald.sync()
    one, two = journald.entries()
    assert (one["MESSAGE"], one["SYSLOG_IDENTIFIER"], one["PRIORITY"]) == (b"one", b"cat", b"3")
    assert (two["MESSAGE"], two["FIELD"]) == (b"two", b"x")


def test_a_journal_on_disk(journald: Journald) -> None:
    """The fixture is asked for first, as it skips where there can be none."""
    with Journald("persistent") as another:
        another.run(["systemd-cat", "echo", "kept"])
        another.sync()
        assert list(another.root.glob("var/log/journal/*/system.journal"))
        assert not list(another.root.glob("run/log/journal/*/*.journal"))
        assert another.messages() == [b"kept"]


def test_nothing_is_left_when_the_tests_are_killed(journald: Journald) -> None:
    """The fixture is asked for first, as it skips where there can be none."""
    program = (
        "import subprocess, time; from tests.journald import Journald\n"
        "with Journald() as j:\n"
        "    command = ['sh', '-c', 'echo inside; exec sleep 1000']\n"
        "    sleeper = j.popen(command, stdout=subprocess.PIPE)\n"
        "    sleeper.stdout.readline()\n"
        "    print(j.pid, sleeper.pid, j._keeper.pid, flush=True)\n"
        "    time.sleep(1000)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout
        pidfds = [os.pidfd_open(int(pid)) for pid in run.stdout.readline().split()]
        run.send_signal(signal.SIGKILL)
    for pidfd in pidfds:
        until(lambda: is_over(pidfd), "it is gone")  # noqa: B023
        os.close(pidfd)


def is_over(pidfd: int) -> bool:
    """Also of one that nobody has reaped: this process may be who should (pidfd_open(2))."""
    return bool(select.select([pidfd], [], [], 0)[0])
