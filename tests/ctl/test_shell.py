"""The shell: lines are commands, words are completed, and nobody ends the daemon by mistake."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import select
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from sysup import ctl as package
from sysup.ctl.program import cli
from sysup.ctl.session import Session
from sysup.ctl.shell import common_words, completions, split
from tests.canned import PATIENCE, CannedDaemon
from tests.ctl.conftest import Done, Run


@pytest.fixture
def shop(daemon: CannedDaemon) -> CannedDaemon:
    daemon.replies = {
        "list": {"watchers": ["web", "web app", "w\x1b[2J"]},
        "numwatchers": {"numwatchers": 2},
        "quit": {},
    }
    return daemon


@pytest.fixture
def type_in(ctl: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the shell with text at its input."""

    def run(text: str, *args: str) -> Done:
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))
        return ctl(*args, "shell")

    return run


def test_each_line_is_a_command(shop: CannedDaemon, type_in: Run) -> None:
    done = type_in("numwatchers\n\n  # a comment\nlist\nexit\nnumwatchers\n")
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines() == ["2", "web", "web app", "w\\x1b[2J"]


def test_a_failure_is_told_and_the_next_line_is_run(shop: CannedDaemon, type_in: Run) -> None:
    done = type_in("stop web\nno-such\n'half\nnumwatchers\n")
    assert (done.code, done.out) == (2, "2\n")
    assert "unknown command: 'stop'" in done.err
    assert "no such command: no-such" in done.err
    assert "a quotation has no end" in done.err


def test_all_commands_are_of_the_version_that_the_shell_is(shop: CannedDaemon, base: Path) -> None:
    code = "import sys; from sysup.ctl import main; main(); print(*sys.modules, file=sys.stderr)"
    command = [sys.executable, "-c", code, "--endpoint", shop.endpoint, "shell"]
    done = subprocess.run(command, input="", capture_output=True, text=True, check=True)
    modules = {path.stem for path in Path(package.__path__[0]).glob("*.py")} - {"__init__"}
    absent = {name for name in modules if f"sysup.ctl.{name}" not in done.stderr.split()}
    assert absent == {"journal", "several"}  # which no command is in


def test_common_options_hold_for_all_lines(shop: CannedDaemon, type_in: Run) -> None:
    done = type_in("numwatchers\n", "-a", "shop", "--json")
    assert '"numwatchers": 2' in done.out
    assert type_in("numwatchers\n", "-a", "nope").code == 4


def test_help(base: Path, type_in: Run) -> None:
    assert "Have N more processes" in type_in("help incr\n").out
    assert "Steer sysupd" in type_in("help\n").out


def test_options_are_handed_on() -> None:
    here = Session()
    assert common_words(here) == []
    here.apps, here.timeout, here.json = ["shop"], 2.5, True
    assert common_words(here) == ["--app=shop", "--timeout=2.5", "--json"]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("stat", ["status", "stats"]),
        ("hel", ["help"]),
        ("ex", ["exit"]),
        ("status w", ["web", "web app"]),
        ("status ", ["web", "web app"]),
        ("status --proc", ["--processes"]),
        ("signal web ter", ["TERM"]),
        ("'half", []),
    ],
)
def test_words_are_completed(shop: CannedDaemon, line: str, found: list[str]) -> None:
    """Never to what could command the terminal."""
    assert completions(cli, ["--app=shop"], line) == found


def test_words() -> None:
    assert split("send web 'two words' # x") == ["send", "web", "two words"]
    assert split('"') is None


def wait_until_asleep(pid: int) -> None:
    """Until it waits for input: Python sees no Ctrl-C between the prompt and that."""
    deadline = time.monotonic() + PATIENCE
    while Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "S":
        assert time.monotonic() < deadline


def test_on_a_terminal(shop: CannedDaemon, base: Path) -> None:
    leader, follower = pty.openpty()
    command = [sys.executable, "-c", "from sysup.ctl import main; raise SystemExit(main())"]
    env = {**os.environ, "SYSUP_RUNTIME_DIR": str(base), "TERM": "dumb", "INPUTRC": "/dev/null"}
    process = subprocess.Popen(
        [*command, "-a", "shop", "shell"],
        stdin=follower,
        stdout=follower,
        stderr=follower,
        env=env,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # whose Ctrl-C is a signal
    )
    shown = b""

    def wait_for(word: bytes) -> None:
        nonlocal shown
        deadline = time.monotonic() + PATIENCE
        while word not in shown:
            assert time.monotonic() < deadline, shown
            if select.select([leader], [], [], 0.2)[0]:
                shown += os.read(leader, 65536)
        shown = shown.partition(word)[2]

    try:
        wait_for(b"shop> ")
        os.write(leader, b"numwat\t")
        wait_for(b"numwatchers ")
        os.write(leader, b"\n")
        wait_for(b"2\r\n")
        wait_for(b"shop> ")
        os.write(leader, b"quit\n")
        wait_for(b"Go on?")
        os.write(leader, b"n\n")
        wait_for(b"shop> ")
        wait_until_asleep(process.pid)
        os.write(leader, b"\x03")
        wait_for(b"shop> ")
        os.write(leader, b"\x04")
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.wait()
        os.close(leader)
        os.close(follower)
    asked = [shop.requests.get_nowait()["command"] for _ in range(shop.requests.qsize())]
    assert "quit" not in asked
