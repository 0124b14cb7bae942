"""What operators see of output: last lines, live, of a real sysupd."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import pytest

from sysup.client import Subscription
from sysup.protocol import unpack
from tests.e2e.conftest import Start
from tests.e2e.harness import PATIENCE, PROGRAMS, Daemon, until
from tests.e2e.test_circus_clients import free_ports

TALKER = """\
import os, sys
gate = os.open(sys.argv[1], os.O_RDWR)
os.write(1, b"hello %d\\n" % os.getpid())
while command := os.read(gate, 4096):
    exec(command)
"""
"""Does what it reads from a fifo."""


class Talker:
    """A watcher `web` whose process says what it is told to."""

    def __init__(self, directory: Path, start: Start, options: str = "", head: str = "") -> None:
        self.fifo = directory / "gate"
        os.mkfifo(self.fifo)
        self.gate = os.open(self.fifo, os.O_RDWR)
        (directory / "talker.py").write_text(TALKER)
        self.ini = (
            f"{head}\n[watcher:web]\ncmd = {PROGRAMS}/python -u talker.py {self.fifo}\n"
            f"working_dir = {directory}\nflapping.attempts = 1000\n{options}\n"
            "[watcher:other]\ncmd = sleep 1000\n"
        )
        self.start = start
        self.daemon = start(self.ini)
        self.has_written(b"hello")

    def do(self, code: str) -> None:
        os.write(self.gate, f"{code}\n".encode())

    def say(self, data: bytes, fd: int = 1) -> None:
        self.do(f"os.write({fd}, {data!r})")

    def tail(self, **properties: Any) -> list[dict[str, Any]]:
        tails: list[dict[str, Any]] = self.daemon.call("tail", name="web", **properties)["tails"]
        return tails

    def has_written(self, data: bytes, stream: str = "stdout") -> None:
        until(
            lambda: any(data in unpack(t["data"]) for t in self.tail(stream=stream, lines=1000)),
            f"{data!r} was read",
        )


@pytest.fixture
def talker(sysupd: Start, tmp_path: Path) -> Iterator[Talker]:
    made = Talker(tmp_path, sysupd)
    yield made
    os.close(made.gate)


@contextmanager
def subscribed(endpoint: str, *topics: str) -> Iterator[Subscription]:
    with Subscription(endpoint, topics) as subscription:
        assert subscription.wait_until_heard(PATIENCE)
        yield subscription


def events_of(daemon: Daemon) -> str:
    return f"ipc://{daemon.runtime}/events"


def heard(subscription: Subscription, enough: bytes) -> bytes:
    """What comes, up to what ends with `enough`."""
    data = b""
    while not data.endswith(enough):
        event = subscription.receive(PATIENCE)
        assert event is not None, data
        assert event[1]["missed"] == 0
        data += unpack(event[1]["data"])
        assert event[1]["at"] >= len(data)
    return data


# ---- the sockets -------------------------------------------------------------------------


def test_output_is_heard_to_the_byte_by_each_who_wants_it(talker: Talker) -> None:
    endpoint = events_of(talker.daemon)
    everything = bytes(range(256)) * 4 + "é".encode() + b"\xc3end"
    with (
        subscribed(endpoint, "output.web.") as one,
        subscribed(endpoint, "output.web.1.stdout", "output.web.1.") as two,
        subscribed(endpoint, "output.other.", "output.web.2.", "watcher.") as none,
    ):
        talker.say(everything)
        assert heard(one, b"end") == everything
        assert heard(two, b"end") == everything
        talker.say(b"oops", fd=2)
        event = one.receive(PATIENCE)
        assert event is not None
        pid = talker.daemon.pids("web")[0]
        del event[1]["time"]
        assert event == (
            "output.web.1.stderr",
            {"wid": 1, "pid": pid, "stream": "stderr", "data": "oops", "at": 4, "missed": 0},
        )
        assert none.receive(0) is None


def test_a_new_process_is_heard_from_its_first_byte(talker: Talker) -> None:
    with subscribed(events_of(talker.daemon), "output.web.") as one:
        before = talker.daemon.pids("web")
        talker.daemon.call("restart", name="web", waiting=True)
        (pid,) = talker.daemon.pids("web")
        assert [pid] != before
        assert heard(one, b"\n") == f"hello {pid}\n".encode()


def test_who_wants_events_gets_no_output(talker: Talker) -> None:
    """Though another one wants it, and by a subscription to the beginning of `output.`."""
    endpoint = events_of(talker.daemon)
    with (
        subscribed(endpoint, "output.web.") as one,
        subscribed(endpoint, "", "watcher.", "o", "output") as other,
    ):
        talker.say(b"secret\n")
        heard(one, b"secret\n")
        talker.daemon.call("set", name="web", options={"warmup_delay": 0}, waiting=True)
        event = other.receive(PATIENCE)
        assert event is not None
        assert event[0] == "watcher.web.updated"


def test_floods_of_subscriptions_harm_nobody(talker: Talker) -> None:
    endpoint = events_of(talker.daemon)
    with subscribed(endpoint, "output.web.") as one:
        topics = [f"output.{n}" for n in range(400)] + [f"x{n}" for n in range(3000)]
        with ExitStack() as flood:
            for begin in range(0, len(topics), 500):  # libzmq sends no more than 1000 at once
                some = [*topics[begin : begin + 500], "output." + "x" * 100_000]
                flood.enter_context(subscribed(endpoint, *some))
            talker.say(b"still heard\n")
            heard(one, b"still heard\n")
            talker.daemon.says("subscriptions")
        with subscribed(endpoint, "output.web.") as two:
            talker.say(b"again\n")
            heard(two, b"again\n")


def test_a_subscriber_who_reads_nothing_costs_no_time(talker: Talker) -> None:
    daemon = talker.daemon
    with (
        subscribed(events_of(daemon), "output.") as slow,
        subscribed(events_of(daemon), "output.") as fast,
    ):
        talker.do("for n in range(20000): os.write(1, b'%99d\\n' % n)")
        pid = daemon.pids("web")[0]
        total = len(f"hello {pid}\n") + 20000 * 100
        at = bytes_then = 0
        while at < total:  # all is accounted for: heard or told as missed
            daemon.call("numprocesses")
            while (event := fast.receive(0.01)) is not None:
                at = event[1]["at"]
                bytes_then += len(unpack(event[1]["data"])) + event[1]["missed"]
        assert bytes_then == total - len(f"hello {pid}\n")
        assert slow.receive(PATIENCE) is not None


def test_plain_tcp_carries_no_output(sysupd: Start, tmp_path: Path) -> None:
    port, pubsub = free_ports()
    head = (
        f"[circus]\nendpoint = tcp://127.0.0.1:{port}\npubsub_endpoint = tcp://127.0.0.1:{pubsub}"
    )
    crash = "[watcher:crash]\ncmd = sh -c 'echo sec\"\"ret; exit 3'\nflapping.attempts = 1000"
    talker = Talker(tmp_path, sysupd, crash, head)
    daemon = talker.daemon
    with circus_consumer(f"tcp://127.0.0.1:{pubsub}") as hear:
        until(lambda: b"watcher.web.updated" in hear(daemon), "it listens")
        with subscribed(events_of(daemon), "output.web.") as one:
            talker.say(b"secret\n")
            heard(one, b"secret\n")
        until(lambda: b"(hidden)" in hear(daemon), "it is told of a death")
        assert b"secret" not in hear(daemon)
    os.close(talker.gate)

    def ask(*args: str) -> Any:
        done = subprocess.run(
            [PROGRAMS / "sysupctl", "--endpoint", f"tcp://127.0.0.1:{port}", "--json", *args],
            env=daemon.env,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert "secret" not in done.stdout
        return json.loads(done.stdout)

    for command in ("status", "show"):
        assert "(hidden)" in json.dumps(ask(command, "crash"))
        assert "secret" in json.dumps(daemon.call(command, name="crash", processes=True))
    assert "permission denied" in ask("tail", "web")["reason"]
    assert "permission denied" in ask("logs", "reopen")["reason"]


@contextmanager
def circus_consumer(endpoint: str) -> Iterator[Callable[[Daemon], bytes]]:
    """Circus's own listener to everything: a function that tells all it has heard so far."""
    program = (
        "from circus.consumer import CircusConsumer as C\n"
        f"for topic, message in C([''], endpoint='{endpoint}'):\n"
        "    print(topic, message, flush=True)\n"
    )
    command = [str(PROGRAMS / "python"), "-W", "ignore", "-c", program]
    words = b""

    def hear(daemon: Daemon) -> bytes:
        nonlocal words
        daemon.call("set", name="web", options={"warmup_delay": 0}, waiting=True)
        with suppress(BlockingIOError):
            words += os.read(out, 65536)
        return words

    with subprocess.Popen(command, stdout=subprocess.PIPE) as circus:
        assert circus.stdout is not None
        out = circus.stdout.fileno()
        os.set_blocking(out, False)
        try:
            yield hear
        finally:
            circus.kill()


# ---- tail --------------------------------------------------------------------------------


def printed(daemon: Daemon, *args: str) -> bytes:
    """What sysupctl prints, to the byte."""
    command = [str(PROGRAMS / "sysupctl"), "-a", "app", *args]
    return subprocess.run(command, env=daemon.env, stdout=subprocess.PIPE, check=True).stdout


def test_the_last_lines(talker: Talker) -> None:
    daemon = talker.daemon
    (pid,) = daemon.pids("web")
    talker.say(b"one\ntwo\nthree")
    talker.say(b"bad\xff\x1b[2J\n", fd=2)
    talker.has_written(b"three")
    talker.has_written(b"bad", "stderr")
    at = len(f"hello {pid}\none\ntwo\nthree")
    tails = talker.tail(lines=2)
    assert [(t["stream"], unpack(t["data"])) for t in tails] == [
        ("stdout", b"two\nthree"),
        ("stderr", b"bad\xff\x1b[2J\n"),
    ]
    assert (tails[0]["wid"], tails[0]["pid"], tails[0]["at"]) == (1, pid, at)
    assert talker.tail(stream="stdout", lines=0)[0]["data"] == ""
    assert "no process 7" in daemon.call("tail", name="web", wid=7)["reason"]
    assert printed(daemon, "tail", "web", "1", "stderr") == b"bad\xff\x1b[2J\n"
    marked = b"web.1 stdout | three\nweb.1 stderr | bad\xff\x1b[2J\n"
    assert printed(daemon, "tail", "web", "-n", "1") == marked
    daemon.call("stop", name="web", waiting=True)
    assert unpack(talker.tail(stream="stdout", lines=1)[0]["data"]) == b"three"


@contextmanager
def following(
    daemon: Daemon, *args: str, out: int = subprocess.PIPE
) -> Iterator[subprocess.Popen[bytes]]:
    # A shell's background job, as this test may run in, ignores SIGINT and so would its children.
    heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    program = f"{heed}import sys; from sysup.ctl import main; sys.exit(main())"
    process = subprocess.Popen(
        [PROGRAMS / "python", "-c", program, "-a", "app", "tail", "-f", *args],
        env=daemon.env,
        stdout=out,
        stderr=subprocess.PIPE,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def read_up_to(file: IO[bytes] | None, end: bytes) -> bytes:
    assert file is not None
    data = b""
    while not data.endswith(end):
        more = os.read(file.fileno(), 65536)
        assert more, data
        data += more
    return data


def test_following_loses_and_doubles_nothing(talker: Talker) -> None:
    """Though it begins in the midst of output, and the process is replaced."""
    daemon = talker.daemon
    (pid,) = daemon.pids("web")
    talker.do("import time\nfor n in range(300): os.write(1, b'%d\\n' % n); time.sleep(.005)")
    with following(daemon, "web", "1", "stdout", "-n", "9999") as process:
        expected = b"hello %d\n" % pid + b"".join(b"%d\n" % n for n in range(300))
        assert read_up_to(process.stdout, b"\n299\n") == expected
        daemon.call("restart", name="web", waiting=True)
        (pid,) = daemon.pids("web")
        assert read_up_to(process.stdout, b"%d\n" % pid) == b"hello %d\n" % pid
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE)
        assert (process.returncode, out, err) == (0, b"", b"")


def test_several_sources_are_marked(talker: Talker) -> None:
    with following(talker.daemon, "web", "-n", "1") as process:
        begin = read_up_to(process.stdout, b"\n")
        assert begin.startswith(b"web.1 stdout | hello ")
        talker.say(b"half ")
        talker.say(b"a line\n", fd=1)
        talker.say(b"other\n", fd=2)
        found = b""
        while found.count(b"\n") < 2:
            found += read_up_to(process.stdout, b"\n")
        assert sorted(found.splitlines()) == [
            b"web.1 stderr | other",
            b"web.1 stdout | half a line",
        ]


def test_a_terminal_is_not_commanded(talker: Talker) -> None:
    leader, follower = pty.openpty()
    with following(talker.daemon, "web", "1", "stdout", out=follower):
        shown = b""
        while b"hello" not in shown:
            shown += os.read(leader, 65536)
        talker.say(b"\x1b[2Jx\x07\xff\r\ny\n")
        while b"y\r\n" not in shown:
            shown += os.read(leader, 65536)
        assert b"\\x1b[2Jx\\x07\\xff\\r\r\ny\r\n" in shown
        assert b"\x1b" not in shown
    os.close(leader)
    os.close(follower)


def test_following_survives_a_restart_of_the_daemon(talker: Talker) -> None:
    daemon = talker.daemon
    with following(daemon, "web", "1", "stdout") as process:
        read_up_to(process.stdout, b"\n")
        daemon.stop()
        again = talker.start(talker.ini)
        talker.has_written = lambda *_: None  # type: ignore[method-assign]
        (pid,) = again.pids("web")
        assert read_up_to(process.stdout, b"%d\n" % pid) == b"hello %d\n" % pid
        talker.say(b"after\n")
        assert read_up_to(process.stdout, b"after\n") == b"after\n"


def test_a_reader_that_leaves_ends_it(talker: Talker) -> None:
    with following(talker.daemon, "web", "1", "stdout") as process:
        read_up_to(process.stdout, b"\n")
        assert process.stdout is not None
        process.stdout.close()
        talker.say(b"more\n")
        assert process.wait(PATIENCE) == 1
        assert process.stderr is not None
        assert process.stderr.read() == b""


def test_what_can_not_be_followed(talker: Talker) -> None:
    done = talker.daemon.ctl("tail", "-f", "wbe")
    assert (done.returncode, done.stdout) == (1, "")
    assert "did you mean web?" in done.stderr


# ---- logs, show --------------------------------------------------------------------------


def test_logs(sysupd: Start, tmp_path: Path) -> None:
    log = tmp_path / "web.log"
    talker = Talker(
        tmp_path, sysupd, f"stdout_stream.filename = {log}\nstdout_stream.backup_count = 1"
    )
    until(log.exists, "it is written")
    log.rename(tmp_path / "old.log")
    log.mkdir()
    done = talker.daemon.ctl("logs", "reopen")
    failure = f"error: cannot write {log}: Is a directory\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", failure)
    log.rmdir()
    assert talker.daemon.ctl("logs", "reopen").stdout == f"reopened {log}\n"
    assert log.exists()
    done = talker.daemon.ctl("logs", "rotate", "other")
    assert (done.returncode, done.stderr) == (1, "error: cannot rotate other: it writes no file\n")
    events = talker.daemon.events()
    talker.do("print('to be rotated', flush=True)")
    until(lambda: "rotated" in log.read_text(), "it is written")
    assert talker.daemon.ctl("logs", "rotate", "web").stdout == f"rotated {log}\n"
    assert events.wait_for_name("sink_rotated").fields["path"] == str(log)
    assert "to be rotated" in (tmp_path / "web.log.1").read_text()
    os.close(talker.gate)


def test_a_file_without_backups_is_not_rotated(sysupd: Start, tmp_path: Path) -> None:
    talker = Talker(tmp_path, sysupd, f"stdout_stream.filename = {tmp_path}/web.log")
    until((tmp_path / "web.log").exists, "it is written")
    done = talker.daemon.ctl("logs", "rotate", "web")
    assert (done.returncode, done.stderr) == (
        1,
        "error: cannot rotate web: its file keeps no backups: set backup_count\n",
    )
    os.close(talker.gate)


def test_show(talker: Talker) -> None:
    talker.do("os.write(2, b'cannot go on\\n'); os._exit(3)")
    until(lambda: talker.daemon.call("show", name="web")["watcher"]["deaths"], "it died")
    shown = until(
        lambda: "cannot go on" in (text := talker.daemon.ctl("show", "web").stdout) and text,
        "its last words are known",
    )
    assert re.search(r"^web (active|backoff), ", shown)
    assert "stdout  stdout of sysupd, " in shown
    assert re.search(r"web\.1  pid \d+, exit code 3, \S+ ago\n      \| hello", shown)
    assert "flapping.attempts: 1000" in shown
