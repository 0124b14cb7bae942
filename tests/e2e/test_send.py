"""Texts are sent to processes, and processes run on terminals."""

from __future__ import annotations

import os
import pwd
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from sysup.stdin import LIMIT
from tests.e2e.conftest import Start
from tests.e2e.harness import PATIENCE, PROGRAMS, Daemon, Peer, until

PYTHON = PROGRAMS / "python"
PLAIN = "stdin = pipe\n"
TERMINAL = "stdin = pipe\npty = yes\n"
BOTH = pytest.mark.parametrize("kind", [PLAIN, TERMINAL], ids=["pipe", "pty"])


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """What the processes wrote."""
    path = tmp_path / "out"
    path.touch()
    return path


def ini(tmp_path: Path, cmd: str, *options: str) -> str:
    return (
        f"[watcher:web]\ncmd = {cmd}\n{''.join(options)}stdout_stream.filename = {tmp_path}/out\n"
    )


def script(tmp_path: Path, text: str) -> str:
    """The command that runs a Python text; its output is block-buffered where it is no terminal."""
    path = tmp_path / "script.py"
    path.write_text(text)
    return f"{PYTHON} {path}"


def wait_for(out: Path, wanted: bytes) -> None:
    until(lambda: out.read_bytes() == wanted, f"{wanted!r} is written, not {out.read_bytes()!r}")


def descriptors(daemon: Daemon) -> list[str]:
    """What a daemon has open."""
    found = []
    for entry in os.scandir(f"/proc/{daemon.pid}/fd"):
        with suppress(FileNotFoundError):
            found.append(os.readlink(entry.path))
    return found


# ---- sending -----------------------------------------------------------------------------


@BOTH
def test_what_is_sent_is_read_and_answered(
    sysupd: Start, tmp_path: Path, out: Path, kind: str
) -> None:
    daemon = sysupd(ini(tmp_path, "cat", kind))
    done = daemon.ctl("send", "web", "hello", "wörld")
    assert (done.returncode, done.stdout, done.stderr) == (0, "web: 13 bytes to 1 process\n", "")
    wait_for(out, "hello wörld\n".encode())
    daemon.call("send", name="web", text="a\nb", newline=False)
    daemon.call("send", name="web", text="c\n")
    wait_for(out, "hello wörld\na\nbc\n".encode())


@BOTH
def test_bytes_pass_unchanged(sysupd: Start, tmp_path: Path, out: Path, kind: str) -> None:
    daemon = sysupd(ini(tmp_path, "cat", kind))
    every = bytes(number for number in range(256) if kind == PLAIN or number != 4) + b"\n"
    reply = daemon.call("send", name="web", text=every.decode("utf-8", "surrogateescape"))
    assert (reply["bytes"], reply["processes"]) == (len(every), 1)
    wait_for(out, every)


@BOTH
def test_the_end_of_input(sysupd: Start, tmp_path: Path, out: Path, kind: str) -> None:
    daemon = sysupd(ini(tmp_path, "cat", kind, "restart = never\n"))
    daemon.ctl("send", "web", "--no-newline", "last words")
    daemon.ctl("send", "web", "--eof")
    until(lambda: daemon.call("status")["watchers"]["web"]["state"] == "done", "cat has ended")
    assert out.read_bytes() == b"last words"


def test_a_pipe_that_was_ended_takes_no_more(sysupd: Start, tmp_path: Path) -> None:
    daemon = sysupd(ini(tmp_path, "sleep 1000", PLAIN))
    assert daemon.call("send", name="web", text="x", eof=True)["status"] == "ok"
    reply = daemon.call("send", name="web", text="x")
    assert reply["reason"] == "cannot send to web.1: its input was closed"


def test_one_or_all_get_it(sysupd: Start, tmp_path: Path, out: Path) -> None:
    one = script(
        tmp_path, "import sys\nfor line in sys.stdin: print(sys.argv[1], line, end='', flush=True)"
    )
    daemon = sysupd(ini(tmp_path, f"{one} $(sysup.wid)", PLAIN, "numprocesses = 3\n"))
    pids = daemon.pids("web")
    assert daemon.ctl("send", "web", "all").stdout == "web: 4 bytes to 3 processes\n"
    until(lambda: sorted(out.read_text().splitlines()) == ["1 all", "2 all", "3 all"], "all got it")
    assert daemon.ctl("send", "web", "--wid", "2", "second").returncode == 0
    assert daemon.ctl("send", "web", "--pid", str(pids[2]), "third").returncode == 0
    until(
        lambda: sorted(out.read_text().splitlines()[3:]) == ["2 second", "3 third"], "one each got"
    )


def test_standard_input_is_sent(sysupd: Start, tmp_path: Path, out: Path) -> None:
    daemon = sysupd(ini(tmp_path, "cat", PLAIN))
    lines = b"".join(b"%d \xff\n" % number for number in range(20_000))
    command = [str(PROGRAMS / "sysupctl"), "-a", "app", "send", "web", "-"]
    done = subprocess.run(
        command, input=lines, env=daemon.env, capture_output=True, timeout=PATIENCE
    )
    assert (done.returncode, done.stderr) == (0, b"")
    wait_for(out, lines)
    done = subprocess.run(
        command, input=b"x" * (2 << 20), env=daemon.env, capture_output=True, timeout=PATIENCE
    )
    assert done.returncode == 1
    assert b"error: cannot send: the request has " in done.stderr


# ---- who does not read -------------------------------------------------------------------


@BOTH
def test_a_queue_is_bounded_and_read_in_order(
    sysupd: Start, tmp_path: Path, out: Path, kind: str
) -> None:
    """The reader begins when it is told; before, one text waits, and no more than LIMIT."""
    go = tmp_path / "go"
    os.mkfifo(go)
    reader = script(
        tmp_path,
        f"import sys; open({str(go)!r}).read()\n"
        "for line in sys.stdin.buffer: sys.stdout.buffer.write(line); sys.stdout.flush()",
    )
    daemon = sysupd(ini(tmp_path, reader, kind))
    texts = [(f"{number}" + "." * 998 + "\n") * 500 for number in range(3)]
    for text in texts[:2]:
        queue(daemon, text)
    refused = daemon.call("send", name="web", text=texts[2], waiting=True)["reason"]
    assert refused.startswith("cannot send to web.1: the text has 500000 bytes, ")
    assert refused.endswith(f"bytes are still unread, at most {LIMIT} may be")
    with Peer(daemon.runtime) as peer:
        peer.send("send", name="web", text="end", waiting=True)
        assert not peer.socket.poll(50)
        go.write_text("")
        assert peer.receive()["status"] == "ok"
    wait_for(out, "".join([*texts[:2], "end\n"]).encode())


def queue(daemon: Daemon, text: str) -> None:
    """Send what is not all read, and go away."""
    with Peer(daemon.runtime) as peer:
        begin(peer, text)


def begin(peer: Peer, text: str = ("." * 999 + "\n") * 500) -> None:
    """Send what is not all read, and be about to wait."""
    peer.send("send", name="web", text=text, waiting=True)
    peer.send("numwatchers")
    assert peer.receive()["id"] == "numwatchers"
    assert not peer.socket.poll(50)


DEAF = "cannot send to web.1: it does not read its input any more"


@BOTH
def test_who_dies_with_a_queue_is_told_of(sysupd: Start, tmp_path: Path, kind: str) -> None:
    daemon = sysupd(ini(tmp_path, "sleep 1000", kind))
    with Peer(daemon.runtime) as peer:
        begin(peer)
        os.kill(daemon.pids("web")[0], 9)
        assert peer.receive()["reason"] == DEAF
    until(lambda: daemon.call("send", name="web", text="x")["status"] == "ok", "a new one reads")


@BOTH
def test_who_closes_its_input_is_told_of(
    sysupd: Start, tmp_path: Path, out: Path, kind: str
) -> None:
    """Of a terminal all descriptors are closed."""
    closed = 3 if kind == TERMINAL else 1
    deaf = script(tmp_path, f"import os, time; os.closerange(0, {closed}); time.sleep(1000)")
    daemon = sysupd(ini(tmp_path, deaf, kind))
    until(lambda: daemon.call("send", name="web", text="x")["status"] == "error", "it is closed")
    assert daemon.call("send", name="web", text="x")["reason"] == DEAF
    assert daemon.status("web") == "active"


@pytest.mark.parametrize("scope", ["tree", "main"])
def test_a_stop_does_not_wait_for_a_queue(sysupd: Start, tmp_path: Path, scope: str) -> None:
    daemon = sysupd(ini(tmp_path, "sleep 1000", PLAIN, f"stop_scope = {scope}\n"))
    with Peer(daemon.runtime) as peer:
        begin(peer)
        assert daemon.ctl("stop", "web").returncode == 0
        assert peer.receive()["reason"] == DEAF
    reply = daemon.call("send", name="web", text="x")
    assert reply["reason"] == "cannot send to web: it has no running process"


def test_the_forgotten_keep_their_input_and_cost_nothing_after(
    sysupd: Start, tmp_path: Path
) -> None:
    daemon = sysupd(ini(tmp_path, "cat", PLAIN) + "[watcher:other]\ncmd = sleep 1000\n")
    (pid,) = daemon.pids("web")
    pipe = os.readlink(f"/proc/{pid}/fd/0")
    daemon.call("rm", name="web", nostop=True, waiting=True)
    assert pipe in descriptors(daemon)
    os.kill(pid, 9)
    until(lambda: pipe not in descriptors(daemon), "its pipe is closed")


# ---- refusals ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("properties", "reason"),
    [
        ({}, "message invalid 'text' is missing"),
        ({"text": 7}, "message invalid 'text' isn't a string"),
        ({"text": ["x"]}, "message invalid 'text' isn't a string"),
        ({"text": "\ud800"}, "message invalid 'text' has a lone surrogate"),
        ({"text": "x", "wid": "1"}, "message invalid 'wid' isn't a whole number"),
        ({"text": "x", "pid": []}, "message invalid 'pid' isn't a process id"),
        ({"text": "x", "wid": 7}, "cannot send to web: it has no process with wid 7"),
        ({"text": "x", "pid": 1}, "cannot send to web: it has no process with pid 1"),
        ({"text": "x", "name": "sleep"}, "cannot send to sleep: set stdin = pipe"),
        ({"text": "x", "name": "nope"}, "program nope not found"),
    ],
)
def test_what_cannot_be_sent(
    sysupd: Start, tmp_path: Path, properties: dict[str, Any], reason: str
) -> None:
    daemon = sysupd(ini(tmp_path, "cat", PLAIN) + "[watcher:sleep]\ncmd = sleep 1000\n")
    reply = daemon.call("send", **{"name": "web", **properties})
    assert reply["reason"] == reason
    assert daemon.call("send", name="web", text="\0")["status"] == "ok"


def test_a_line_too_long_for_a_terminal(sysupd: Start, tmp_path: Path, out: Path) -> None:
    daemon = sysupd(ini(tmp_path, "cat", TERMINAL))
    longest = "x" * 4095
    reply = daemon.call("send", name="web", text=longest + "x")
    assert (
        reply["reason"] == "cannot send to web.1: a terminal takes no line of more than 4095 bytes"
    )
    assert daemon.call("send", name="web", text=longest, newline=False)["status"] == "ok"
    assert daemon.call("send", name="web", text="x")["status"] == "error"
    assert daemon.call("send", name="web", text="\n" + longest)["status"] == "ok"
    wait_for(out, f"{longest}\n{longest}\n".encode())


# ---- terminals ---------------------------------------------------------------------------

ABOUT = """
import os, sys, time
size = os.get_terminal_size(1)
sys.stdout.write(f"{[os.isatty(fd) for fd in range(3)]} {size.columns}x{size.lines}\\n")
print("over", file=sys.stderr, flush=True)
time.sleep(1000)
"""


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ("pty = yes\n", "[False, True, True] 80x24\nover\n"),
        (TERMINAL, "[True, True, True] 80x24\nover\n"),
        ("pty = yes\nstderr_stream.filename = {}/err\n", "[False, True, False] 80x24\n"),
        ("pty = yes\nstderr_stream.filename = {}/out\n", "[False, True, True] 80x24\nover\n"),
        ("pty = yes\nclose_child_stderr = yes\n", "[False, True, False] 80x24\n"),
    ],
)
def test_output_arrives_at_once_and_unchanged(
    sysupd: Start, tmp_path: Path, out: Path, options: str, wanted: str
) -> None:
    sysupd(ini(tmp_path, script(tmp_path, ABOUT), options.format(tmp_path)))
    wait_for(out, wanted.encode())


def test_without_a_terminal_the_same_program_holds_its_output_back(
    sysupd: Start, tmp_path: Path, out: Path
) -> None:
    """What the terminal is for."""
    text = ABOUT.replace("os.get_terminal_size(1)", "os.terminal_size((1, 2))")
    daemon = sysupd(
        ini(tmp_path, script(tmp_path, text), f"stderr_stream.filename = {tmp_path}/err\n")
    )
    wait_for(tmp_path / "err", b"over\n")
    daemon.stop()
    assert out.read_bytes() == b""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes somebody else")
def test_the_terminal_of_another_user_is_theirs(sysupd: Start, tmp_path: Path, out: Path) -> None:
    nobody = pwd.getpwnam("nobody").pw_uid
    sysupd(
        ini(
            tmp_path,
            "sh -c 'stat -c \"%u %a\" /proc/self/fd/1 -L; echo again > /dev/stdout; exec cat'",
            TERMINAL,
            f"uid = {nobody}\nworking_dir = /\n",
        )
    )
    wait_for(out, f"{nobody} 600\nagain\n".encode())


def in_a_pause(daemon: Daemon) -> bool:
    return bool(daemon.call("status")["watchers"]["bad"]["state"] == "flapping")


@BOTH
def test_a_hundred_lives_leave_no_descriptor(sysupd: Start, tmp_path: Path, kind: str) -> None:
    daemon = sysupd(ini(tmp_path, "cat", kind) + "[watcher:bad]\ncmd = /nosuch\n" + kind)
    until(lambda: in_a_pause(daemon), "nothing is started for a while")
    before = len(descriptors(daemon))
    for number in range(100):
        daemon.call("send", name="web", text=str(number))
        daemon.call("stop", name="web", waiting=True)
        daemon.call("start", name="web", waiting=True)
    until(lambda: len(descriptors(daemon)) == before, f"{before} of {descriptors(daemon)} are left")
