"""`sysupctl logs` on real journals: of a journald alone, and of a whole system."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO

import pytest

from tests.e2e.conftest import Start
from tests.e2e.harness import PROGRAMS, until
from tests.journald import Journald
from tests.lab import Container
from tests.system.services import App, as_user

PATIENCE = 60
SO_SNDBUFFORCE = 32
LARGE = 8 << 20
CTL = [str(PROGRAMS / "sysupctl"), "logs", "-a", "shop"]


class Log:
    """The journal of a journald, to write to and to read from."""

    def __init__(self, journald: Journald) -> None:
        self.journald = journald
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, LARGE)
        self._socket.connect(str(journald.directory / "socket"))

    def close(self) -> None:
        self._socket.close()

    def write(self, message: str | bytes, **fields: str) -> None:
        """An entry as sysupd makes them, with some fields differing."""
        known = {"SYSUP_APP": "shop", "SYSUP_WATCHER": "web", "SYSUP_WID": "1"}
        known |= {"SYSUP_STREAM": "stdout", "PRIORITY": "6", "SYSLOG_IDENTIFIER": "web", **fields}
        text = message if isinstance(message, bytes) else message.encode()
        entry = b"MESSAGE\n" + len(text).to_bytes(8, "little") + text + b"\n"
        entry += "".join(f"{name}={value}\n" for name, value in known.items()).encode()
        self._socket.send(entry)

    def read(self, *args: str) -> list[str]:
        """What sysupctl prints, but for the time."""
        self.journald.sync()
        done = self.journald.run([*CTL, *args], capture_output=True, timeout=PATIENCE)
        assert done.stderr == b""
        lines = done.stdout.decode("utf-8", "surrogateescape").split("\n")[:-1]
        return [line[24:] for line in lines]

    def read_json(self, *args: str) -> list[dict[str, object]]:
        self.journald.sync()
        done = self.journald.run([*CTL, "--json", *args], capture_output=True, timeout=PATIENCE)
        return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture
def log(journald: Journald) -> Iterator[Log]:
    log = Log(journald)
    yield log
    log.close()


# ---- what is there ---------------------------------------------------------------------------


def test_what_is_asked_for_is_shown_in_order(log: Log) -> None:
    log.write("one")
    log.write("two", SYSUP_WID="2", SYSUP_STREAM="stderr", PRIORITY="4")
    log.write("three", SYSUP_WATCHER="db", SYSLOG_IDENTIFIER="db", PRIORITY="3")
    log.write("not ours", SYSUP_APP="other")
    log.write("four", SYSLOG_IDENTIFIER="other")
    everything = ["web.1: one", "web.2: two", "db.1: three", "web.1: four"]
    assert log.read() == everything
    assert log.read("web") == [everything[0], everything[1], everything[3]]
    assert log.read("db", "web") == everything
    assert log.read("--wid", "2") == everything[1:2]
    assert log.read("--stream", "stdout", "web") == [everything[0], everything[3]]
    assert log.read("-p", "warning") == everything[1:3]
    assert log.read("-p", "info..notice") == [everything[0], everything[3]]
    assert log.read("-n", "2") == everything[2:]
    assert log.read("-n", "1", "web", "--stream", "stderr") == everything[1:2]
    assert log.read("-n", "0") == []
    assert log.read("nobody") == []


def test_the_last_hundred_or_all(log: Log) -> None:
    for number in range(300):
        log.write(f"{number}")
    assert log.read() == [f"web.1: {number}" for number in range(200, 300)]
    assert log.read("-n", "250") == [f"web.1: {number}" for number in range(50, 300)]
    assert log.read("-n", "all") == [f"web.1: {number}" for number in range(300)]
    assert log.read("-n", "1000", "--since", "-1h") == log.read("-n", "all")


def test_from_a_time_to_a_time(log: Log) -> None:
    for number in range(9):
        log.write(f"{number}")
    stamps = [int(str(entry["__REALTIME_TIMESTAMP"])) for entry in log.read_json("-n", "all")]
    since, until = (f"@{stamps[n] // 10**6}.{stamps[n] % 10**6:06}" for n in (3, 6))
    assert log.read("--since", since) == [f"web.1: {n}" for n in range(3, 9)]
    assert log.read("--until", until) == [f"web.1: {n}" for n in range(7)]
    assert log.read("--since", since, "--until", until) == [f"web.1: {n}" for n in (3, 4, 5, 6)]
    assert log.read("--since", since, "--until", until, "-n", "2") == ["web.1: 5", "web.1: 6"]
    assert log.read("--since", since, "-n", "100") == [f"web.1: {n}" for n in range(3, 9)]
    assert log.read("--since", "+1h") == log.read("--until", "yesterday") == []


def test_what_was_stored_exactly(log: Log) -> None:
    """Though the reader replaces what is not UTF-8, and leaves off after a megabyte."""
    log.write("before")
    log.write(b"bad \xff\x00\xfe", LATER="x")
    log.write("replaced \N{REPLACEMENT CHARACTER}")
    log.write(b"x" * (2 << 20), LATER="y")
    log.write(b"bad again \xe2\x98")
    log.write("after")
    assert log.read() == [
        "web.1: before",
        "web.1: bad \udcff\0\udcfe",
        "web.1: replaced \N{REPLACEMENT CHARACTER}",
        f"web.1: {'x' * (2 << 20)}",
        "web.1: bad again \udce2\udc98",
        "web.1: after",
    ]
    entries = log.read_json("web")
    assert [entry["MESSAGE"] for entry in entries] == [
        "before",
        [*b"bad ", 255, 0, 254],
        "replaced \N{REPLACEMENT CHARACTER}",
        "x" * (2 << 20),
        [*b"bad again ", 0xE2, 0x98],
        "after",
    ]
    assert [entry.get("LATER") for entry in entries] == [None, "x", None, "y", None, None]


def test_all_fields_are_in_json_as_journalctl_has_them(log: Log) -> None:
    log.write("one", OWN="\x1b")
    log._socket.send(b"MESSAGE=two\nSYSUP_APP=shop\nTWICE=a\nTWICE=b\nPRIORITY=6\n")
    ours = log.read_json()
    done = log.journald.run(["journalctl", "-o", "json", "SYSUP_APP=shop"], capture_output=True)
    theirs: list[dict[str, object]] = [json.loads(line) for line in done.stdout.splitlines()]
    theirs[0]["OWN"] = "\x1b"  # numbers with journalctl, though it is text
    later = {"__SEQNUM", "__SEQNUM_ID"}  # of newer ones
    theirs = [{n: v for n, v in entry.items() if n not in later} for entry in theirs]
    for entries in (ours, theirs):
        entries[1]["TWICE"] = sorted(str(entries[1]["TWICE"]))
    assert ours == theirs


def test_what_somebody_else_wrote_is_not_shown(log: Log) -> None:
    """Another user may write any field but those of journald."""
    log.write("ours")
    program = """if True:
        import socket
        s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        s.connect("/run/systemd/journal/socket")
        for _ in range(50):
            s.send(b"MESSAGE=forged\\nSYSUP_APP=shop\\nSYSUP_WATCHER=web\\nPRIORITY=6\\n"
                   b"UNIT=sysup@shop.service\\n_PID=1\\n_SYSTEMD_UNIT=sysup@shop.service\\n")
    """
    user = ["setpriv", "--reuid=65534", "--clear-groups", "/usr/bin/python3", "-c", program]
    log.journald.run(user)
    log.journald.sync()
    assert len(log.journald.messages("SYSUP_APP=shop")) == 51
    assert log.read("-n", "5") == log.read("-n", "all") == ["web.1: ours"]


def test_nothing_is_hidden_in_lines_or_escapes(log: Log) -> None:
    hostile = "a\n2026-11-25 10:00:00.000 web.1: forged\x1b]0;title\x07\r\x1b[2Jb"
    log.write(hostile)
    first, second = log.read()
    assert first == "web.1: a"
    assert second.lstrip().startswith("2026-11-25")
    assert second.startswith(" " * len("web.1: "))
    leader, follower = pty.openpty()
    command = [*log.journald.inside, *CTL]
    subprocess.run(command, stdout=follower, env={**os.environ, "TERM": "xterm"}, check=True)
    shown = os.read(leader, 65536).decode()
    os.close(leader)
    os.close(follower)
    assert "\x1b[36mweb.1\x1b[0m: a\r\n" in shown
    assert shown.endswith("forged\\x1b]0;title\\x07\\r\\x1b[2Jb\r\n")


# ---- what comes ------------------------------------------------------------------------------


@contextmanager
def following(log: Log, *args: str) -> Iterator[subprocess.Popen[bytes]]:
    """`logs -f`, into a pipe."""
    heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    program = f"{heed}import sys; from sysup.ctl import main; sys.exit(main())"
    python = [str(PROGRAMS / "python"), "-c", program, "-a", "shop", "logs", "-f", *args]
    process = log.journald.popen(python, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with process:
        try:
            yield process
        finally:
            process.kill()


def texts(stream: IO[bytes] | None, count: int) -> list[str]:
    """The texts of the next lines."""
    assert stream is not None
    return [stream.readline().decode().rstrip("\n").partition(": ")[2] for _ in range(count)]


def test_following_until_control_c(log: Log) -> None:
    for number in range(12):
        log.write(f"{number}")
    log.journald.sync()
    with following(log, "web") as process:
        assert texts(process.stdout, 10) == [f"{number}" for number in range(2, 12)]
        log.write("live")
        log.write("another's", SYSUP_WATCHER="db", SYSLOG_IDENTIFIER="db")
        log.write("more")
        assert texts(process.stdout, 2) == ["live", "more"]
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=PATIENCE) == (b"", b"")
        assert process.returncode == 0


def test_following_where_there_is_nothing_yet(log: Log) -> None:
    log.write("of another", SYSUP_APP="other")
    log.journald.sync()
    with following(log, "-n", "all") as process:
        for number in range(5):
            log.write(f"{number}")
            assert texts(process.stdout, 1) == [f"{number}"]


def test_it_ends_with_its_reader(log: Log) -> None:
    """Though nothing comes any more."""
    log.write("one")
    log.journald.sync()
    with following(log) as process:
        assert texts(process.stdout, 1) == ["one"]
        assert process.stdout
        process.stdout.close()
        assert process.wait(PATIENCE) == 1
        assert process.stderr
        assert process.stderr.read() == b""


def rotate(journald: Journald) -> None:
    journald.run(["journalctl", "--rotate"], timeout=PATIENCE)


def vacuum(journald: Journald) -> None:
    rotate(journald)
    done = journald.run(["journalctl", "--vacuum-files=1"], capture_output=True, timeout=PATIENCE)
    assert b"Deleted archived journal" in done.stderr


def restart(journald: Journald) -> None:
    journald.stop()
    journald.start()


@pytest.mark.parametrize("disturb", [rotate, vacuum, restart])
def test_following_goes_on(log: Log, disturb: Callable[[Journald], None]) -> None:
    with following(log, "-n", "all") as process:
        for round_ in range(3):
            expected = [f"{round_}.{number}" for number in range(100)]
            for text in expected:
                log.write(text)
            assert texts(process.stdout, 100) == expected
            disturb(log.journald)
        assert process.poll() is None


# ---- of a real app ---------------------------------------------------------------------------


def test_logs_of_processes_that_sysupd_runs(sysupd: Start, log: Log) -> None:
    ini = "[watcher:web]\ncmd = sh -c 'echo from $$; exec sleep 1000'\nnumprocesses = 2\n"
    ini += "stdout_stream.class = JournalStream\n"
    daemon = sysupd(ini, "shop", inside=log.journald.inside)
    expected = [f"web.{number}: from {pid}" for number, pid in enumerate(daemon.pids("web"), 1)]
    until(lambda: sorted(log.read()) == expected, "all is stored")
    assert daemon.stop() == 0
    assert sorted(log.read("web")) == expected


@pytest.mark.usefixtures("nothing_is_left")
def test_logs_of_a_unit(machine: Container) -> None:
    """Of its processes, of sysupd, of systemd about it; and no daemon has to run."""
    app = App(machine, "logs")
    app.configure(more="[watcher:t]\ncmd = sh -c 'echo hello; exec sleep 1000'")
    app.start()
    until(lambda: "t.1: hello" in app.ctl("logs").stdout, "the process is heard")
    shown = app.ctl("logs").stdout
    assert "systemd[1]: Started" in shown
    assert "2 watchers" in shown
    assert "t.1: hello" in app.ctl("logs", "t", "--stream", "stdout").stdout
    assert "systemd" not in app.ctl("logs", "t").stdout
    follower = machine.popen(["sysupctl", "-a", "logs", "logs", "-f", "-n", "1"])
    with follower:
        assert follower.stdout
        assert follower.stdout.readline()
        app.systemctl("stop")
        seen = next(line for line in follower.stdout if "systemd[1]: Stopped" in line)
        follower.kill()
    assert seen
    assert "t.1: hello" in app.ctl("logs").stdout
    stopped = app.ctl("logs", "--since", "-1h", "--json").stdout.splitlines()
    assert any(json.loads(line)["MESSAGE"].startswith("Stopped ") for line in stopped)


@pytest.mark.usefixtures("nothing_is_left")
def test_what_sysupd_says_of_a_watcher(machine: Container) -> None:
    """By its fields; also after another program has taken the daemon's place."""
    app = App(machine, "says")
    app.configure(more="[watcher:web]\ncmd = sleep 1000\n[watcher:bad]\ncmd = false")
    app.start()
    app.ctl("stop", "web")
    app.ctl("upgrade")
    app.ctl("start", "web")

    def said(*matches: str) -> list[str]:
        return machine.journal("-u", app.unit, *matches).splitlines()

    until(lambda: said("SYSUP_WATCHER=bad", "SYSUP_EVENT=flapping"), "it crashed often")
    assert said("SYSUP_WATCHER=web", "SYSUP_EVENT=stop")[0] == "web: stop"
    assert said("SYSUP_WATCHER=web", "SYSUP_EVENT=start")[-1] == "web: start"
    assert any("taken over" in line for line in said("_TRANSPORT=journal"))
    assert said("SYSLOG_IDENTIFIER=sysupd", "_TRANSPORT=stdout") == []
    shown = app.ctl("logs", "web").stdout.splitlines()
    assert re.search(r" sysupd\[\d+\]: web: stop$", "\n".join(shown), re.M)
    assert all(": bad" not in line for line in shown)
    status = app.systemctl("status", "--lines=1000").stdout
    assert re.search(r" sysupd\[\d+\]: bad\.1: ", status)
    assert " warning " not in status


def test_logs_of_a_users_app(machine: Container, of_user: App) -> None:
    of_user.start()
    of_user.ctl("stop", "w")
    groups = machine.run(["getent", "group", "systemd-journal"]).stdout.split(":")
    command = [*as_user(groups[2]), "sysupctl", "-a", of_user.name, "logs"]
    until(lambda: "]: w: stop" in machine.run(command).stdout, "sysupd is heard")
    assert re.search(r" systemd\[\d+\]: Started", machine.run(command).stdout)
    assert machine.run(["sysupctl", "-a", of_user.name, "logs"]).stdout == ""


def test_who_may_not_read_the_journal_is_told_what_to_do(machine: Container) -> None:
    """Nobody has a journal of his own."""
    nobody, command = ["setpriv", "--reuid=65534"], ["sysupctl", "-a", "any", "logs"]
    done = machine.run([*nobody, "--clear-groups", *command], check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: cannot read the journal: permission denied; root may")
    group = machine.run(["getent", "group", "systemd-journal"]).stdout.split(":")[2]
    done = machine.run([*nobody, f"--groups={group}", *command], check=False)
    assert (done.returncode, done.stderr) == (0, "")
