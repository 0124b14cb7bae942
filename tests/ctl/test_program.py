"""sysupctl as a program: on a terminal, in a pipe, listening, asked by a shell to complete."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sysup.ctl.program import cli
from tests.canned import PATIENCE, CannedDaemon

from .conftest import Run
from .states import BROKEN, WEB, status_of

PROGRAM = [sys.executable, "-c", "import sys; from sysup.ctl import main; sys.exit(main())"]

# ---- a terminal, a pipe ------------------------------------------------------------------


def on_terminal(*args: str, **environ: str) -> str:
    """What sysupctl shows on a terminal."""
    leader, follower = pty.openpty()
    try:
        done = subprocess.run(
            [*PROGRAM, *args], env={**os.environ, **environ}, stdout=follower, timeout=PATIENCE
        )
        assert done.returncode == 3
        return os.read(leader, 65536).decode()
    finally:
        os.close(leader)
        os.close(follower)


def test_colours_are_for_terminals(daemon: CannedDaemon, ctl: Run) -> None:
    daemon.replies["status"] = status_of(web=WEB, broken=BROKEN)
    shown = on_terminal("status")
    assert "\x1b[32mactive\x1b[0m" in shown
    assert "\x1b[31mflapping\x1b[0m" in shown
    assert "\x1b" not in ctl("status").out
    assert "\x1b" not in on_terminal("status", NO_COLOR="1")
    assert "\x1b" not in on_terminal("status", TERM="dumb")


def test_a_narrow_terminal_has_whole_lines(daemon: CannedDaemon) -> None:
    daemon.replies["status"] = status_of(web=WEB, broken={**BROKEN, "reason": "no " * 20})
    for columns in (30, 40, 60, 80):
        lines = on_terminal("status", NO_COLOR="1", COLUMNS=str(columns)).split("\r\n")
        table = [line for line in lines if not line.startswith("  ")]
        assert max(map(len, table)) <= columns
        assert [line.split()[:3] for line in table[1:3]] == [
            ["broken", "flapping", "0/1"],
            ["web", "active", "2/2"],
        ]
        assert f"    {'no ' * 20}".rstrip() in [line.rstrip() for line in lines]
    wide = on_terminal("status", NO_COLOR="1", COLUMNS="200")
    assert wide.split("\r\n")[0].split()[-1] == "REASON"


def test_a_reader_that_leaves_is_no_drama(daemon: CannedDaemon) -> None:
    daemon.replies["options"] = {"options": {f"key{n}": "x" * 100 for n in range(5000)}}
    for args in (["options", "web"], ["numwatchers"]):
        daemon.replies["numwatchers"] = {"numwatchers": 3}
        out, end = os.pipe()
        os.close(out)
        done = subprocess.run([*PROGRAM, *args], stdout=end, stderr=subprocess.PIPE, text=True)
        os.close(end)
        assert (done.returncode, done.stderr) == (1, "")


def test_help_has_short_and_long_options_and_whole_sentences(base: Path, ctl: Run) -> None:
    assert ctl("-h") == ctl("--help")
    assert ctl("status", "-h") == ctl("status", "--help")
    assert "..." not in ctl("-h").out.split("Commands:")[1]


def test_without_a_command_it_helps(base: Path, ctl: Run) -> None:
    code, out, _ = ctl()
    assert code == 0
    assert "Exit codes:" in out
    for name in cli.commands:
        assert f"\n  {name} " in out


# ---- listen ------------------------------------------------------------------------------

REAP = {"process_pid": 812, "wid": 3, "exit_code": 1, "time": 12 * 3600 + 1.5}
GONE = "hint: sysupd has gone; this goes on when it is back\n"
BACK = "hint: sysupd is back\n"


@contextmanager
def going_on(*args: str) -> Iterator[subprocess.Popen[str]]:
    """A command that has no end."""
    # A shell's background job, as this test may run in, ignores SIGINT and so would its children.
    heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    process = subprocess.Popen(
        [*PROGRAM[:2], heed + PROGRAM[2], *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TZ": "UTC"},
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def hint_of(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    return process.stderr.readline()


def test_events_are_lines_until_control_c(daemon: CannedDaemon) -> None:
    daemon.events = [("watcher.db.reap", {}), ("watcher.web.reap", REAP)]
    with going_on("listen", "Web") as process:
        assert line_of(process) == "12:00:01 web.3 reap pid 812, exit code 1\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=PATIENCE) == ("", "")
        assert process.returncode == 0


def test_a_daemon_that_goes_while_it_is_listened_to_is_missed(base: Path) -> None:
    with CannedDaemon(base / "shop") as daemon:
        daemon.events = [("watcher.web.reap", REAP)]
        with going_on("listen", "web") as process:
            assert line_of(process) == "12:00:01 web.3 reap pid 812, exit code 1\n"
            daemon.close()
            assert hint_of(process) == GONE
            with CannedDaemon(base / "shop"):
                assert hint_of(process) == BACK


def test_events_as_json(daemon: CannedDaemon) -> None:
    daemon.events = [("watcher.my.web.reap", REAP), ("watcher.odd", [1])]
    with going_on("listen", "watcher.", "--json") as process:
        assert json.loads(line_of(process)) == {
            "topic": "watcher.my.web.reap",
            "watcher": "my.web",
            "event": "reap",
            **REAP,
        }
        assert json.loads(line_of(process))["payload"] == [1]


# ---- completion --------------------------------------------------------------------------


def completed(*words: str) -> list[str]:
    """What bash is told when the last of the words is to be completed."""
    done = subprocess.run(
        PROGRAM,
        env={
            **os.environ,
            "_SYSUPCTL_COMPLETE": "bash_complete",
            "COMP_WORDS": " ".join(["sysupctl", *words]),
            "COMP_CWORD": str(len(words)),
        },
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.stderr == ""
    return [line.removeprefix("plain,") for line in done.stdout.splitlines() if line]


def test_completion_knows_what_is_there(base: Path, daemon: CannedDaemon) -> None:
    daemon.replies["list"] = {"watchers": ["db", "web", "web2"]}
    daemon.replies["options"] = {"options": {"cmd": 1, "copy_env": 2, "uid": 3}}
    assert completed("sta") == ["status", "stats", "start"]
    assert completed("stop", "we") == ["web", "web2"]
    assert completed("send", "we") == ["web", "web2"]
    assert completed("-a", "shop", "stop", "W") == ["web", "web2"]
    assert completed("-a", "s") == ["shop"]
    assert completed("get", "web", "c") == ["cmd", "copy_env"]
    assert completed("set", "web", "u") == ["uid"]
    assert completed("set", "web", "uid", "c") == []
    assert completed("signal", "web", "us") == ["USR1", "USR2"]
    assert completed("status", "--js") == ["--json"]


def test_completion_is_silent_without_a_daemon(base: Path) -> None:
    assert completed("stop", "we") == []


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_completion_scripts(base: Path, ctl: Run, shell: str) -> None:
    code, out, _ = ctl("completion", shell)
    assert code == 0
    assert f"_SYSUPCTL_COMPLETE={shell}_complete" in out


@pytest.mark.skipif(not shutil.which("fish"), reason="there is no fish")
def test_fish_shows_descriptions_beyond_their_commas(base: Path, ctl: Run) -> None:
    script = ctl("completion", "fish").out
    here = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["fish", "-c", f"{script}\ncomplete --do-complete 'sysupctl statu'"],
        env={**here, "HOME": str(base)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert done.stdout == "status\tShow how the watchers, or one and its...\n"


def test_the_completion_of_bash_is_valid(base: Path, ctl: Run) -> None:
    script = ctl("completion", "bash").out
    assert "_SYSUPCTL_COMPLETE=bash_complete" in script
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
