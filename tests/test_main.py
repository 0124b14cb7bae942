"""The program `sysupd`, but for the daemon: what it says, its exit status, the pidfile, the log."""

from __future__ import annotations

import gc
import logging
import os
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from sysup import __version__, program
from sysup.log import Formatter, Pipe, make_handler
from sysup.program import EX_CONFIG, main, write_pidfile
from sysup.protocol import SysupError

WEB = "[watcher:web]\ncmd = sleep 9\n"


@pytest.fixture
def ini(tmp_path: Path) -> Path:
    path = tmp_path / "app.ini"
    path.write_text(WEB)
    return path


@pytest.fixture
def configured(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """How the root logger was configured, which is left alone."""
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr(logging, "basicConfig", lambda **options: seen.append(options))
    yield seen
    for options in seen:
        for handler in options["handlers"]:
            handler.close()


def sysupd(*args: object) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args])


class FakeDaemon:
    """Ends at once, with 7; notes how it was made."""

    made: list[Any]
    collects: tuple[bool, int, int, int]

    def __init__(self, *args: Any) -> None:
        self.made.append(args)

    async def run(self) -> int:
        FakeDaemon.collects = (gc.isenabled(), *gc.get_threshold())
        return 7


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    FakeDaemon.made = []
    monkeypatch.setattr(program, "Daemon", FakeDaemon)
    return FakeDaemon.made


def test_check_tells_what_is_good(ini: Path, made: list[Any]) -> None:
    result = sysupd("--check", ini)
    assert (result.exit_code, result.output) == (0, f"{ini}: ok, 1 watcher\n")
    assert made == []


def test_check_tells_all_that_is_wrong(ini: Path, made: list[Any]) -> None:
    ini.write_text("[watcher:web]\ncmd = web\nnumprocesses = many\nnonsense = 1\n")
    for args in (["--check", ini], [ini]):
        result = sysupd(*args)
        assert result.exit_code == EX_CONFIG
        assert "numprocesses" in result.output
        assert "nonsense" in result.output
    assert made == []


def test_warnings_are_no_errors(ini: Path) -> None:
    ini.write_text("[circus]\nnonsense = 1\n" + WEB)
    result = sysupd("--check", ini)
    assert result.exit_code == 0
    assert "nonsense" in result.output


def test_check_of_a_file_that_runs_nothing(ini: Path) -> None:
    ini.write_text("[sysup]\ncheck_delay = 5\n")
    result = sysupd("--check", ini)
    assert result.output.splitlines() == [
        f"{ini}: warning: it has no [watcher:NAME], so nothing is run",
        f"{ini}: ok, 0 watchers",
    ]


def test_check_foresees_what_this_machine_can_not_do(ini: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.touch()
    wrong = {
        "a": ("cmd = no-such-program", "cmd: there is no program no-such-program in the PATH"),
        "b": (f"cmd = {tmp_path}/no", f"cmd: there is no program {tmp_path}/no"),
        "c": (f"cmd = {plain}", f"cmd: {plain} can't be executed"),
        "d": ("cmd = sleep 9\nuid = no-such-user", "uid: cannot find user 'no-such-user'"),
        "e": ("cmd = sleep 9\ngid = no-such-group", "gid: cannot find group 'no-such-group'"),
        "f": ("cmd = ./x\nworking_dir = /no/dir", "working_dir: there is no directory /no/dir"),
        "g": (
            "cmd = sleep 9\nstderr_stream.filename = /no/dir/log",
            "stderr_stream.filename: there is no directory /no/dir",
        ),
        "h": ("cmd = $(sysup.working_dir)/no", f"cmd: there is no program {os.getcwd()}/no"),
    }
    texts = [f"[watcher:{name}]\n{options}\n" for name, (options, _) in wrong.items()]
    ini.write_text("".join([*texts, "[watcher:z]\ncmd = no-such-program; true\nshell = yes\n"]))
    result = sysupd("--check", ini)
    assert result.exit_code == 0
    told = [f"{ini}: warning: [watcher:{name}] {text}" for name, (_, text) in wrong.items()]
    assert result.output.splitlines() == [*told, f"{ini}: ok, 9 watchers"]


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    result = sysupd(tmp_path / "nope.ini")
    assert result.exit_code == EX_CONFIG
    assert "nope.ini" in result.output


def test_wrong_usage_and_the_version() -> None:
    assert sysupd().exit_code == 2
    assert __version__ in sysupd("--version").output


def test_the_daemons_status_is_ours(
    ini: Path, made: list[Any], configured: list[dict[str, Any]], tmp_path: Path
) -> None:
    pidfile = tmp_path / "pid"
    result = sysupd("--pidfile", pidfile, "--log-level", "warning", ini)
    assert result.exit_code == 7
    assert len(made) == 1
    assert not pidfile.exists(), "removed at the end"
    assert [options["level"] for options in configured] == ["WARNING"]


def test_garbage_is_looked_for_when_the_app_has_started(ini: Path, made: list[Any]) -> None:
    class Cycle:
        def __init__(self) -> None:
            self.me = self

    try:
        assert sysupd(ini).exit_code == 7
        assert FakeDaemon.collects == (True, *program.YOUNG_ALONE)
        gc.unfreeze()
        garbage = weakref.ref(Cycle())
        program.collect_from_now()
        assert garbage() is None, "what is frozen is kept for ever"
        assert gc.get_freeze_count() > 0
        assert (gc.isenabled(), gc.get_threshold()) == (True, program.THRESHOLDS)
    finally:
        gc.unfreeze()
        gc.set_threshold(*program.THRESHOLDS)


def test_options_of_the_file_yield_to_arguments(
    ini: Path, made: list[Any], configured: list[dict[str, Any]], tmp_path: Path
) -> None:
    ini.write_text(f"[sysup]\nloglevel = error\nlogoutput = {tmp_path}/a\n" + WEB)
    sysupd("--log-output", tmp_path / "b", ini)
    assert [options["level"] for options in configured] == ["ERROR"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["app.ini", "b"]


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (["--log-output", "/nosuch/log"], "error: cannot log to /nosuch/log: No such file"),
        (["--pidfile", "/nosuch/pid"], "error: cannot write /nosuch/pid: No such file"),
        (["--pidfile", "/"], "error: cannot write /: Is a directory"),
    ],
)
def test_what_cannot_be_run(
    ini: Path, made: list[Any], configured: list[dict[str, Any]], args: list[str], reason: str
) -> None:
    result = sysupd(*args, ini)
    assert result.exit_code == 1
    assert reason in result.output


def test_a_level_that_is_none_is_wrong_usage(ini: Path, made: list[Any]) -> None:
    result = sysupd("--log-level", "loud", ini)
    assert result.exit_code == 2
    assert "'loud' is not one of" in result.output
    assert made == []


def test_a_level_may_be_in_capitals(
    ini: Path, made: list[Any], configured: list[dict[str, Any]]
) -> None:
    assert sysupd("--log-level", "ERROR", ini).exit_code == 7
    assert [options["level"] for options in configured] == ["ERROR"]


# ---- the pidfile -------------------------------------------------------------------------


@pytest.mark.parametrize("before", [None, "", "999999999\n", "nonsense", "\xff\xfe"])
def test_the_pidfile_is_ours_unless_its_holder_lives(tmp_path: Path, before: str | None) -> None:
    path = tmp_path / "pid"
    if before is not None:
        path.write_bytes(before.encode("latin-1"))
    write_pidfile(str(path))
    assert path.read_text() == f"{os.getpid()}\n"


def test_a_living_holder_keeps_the_pidfile(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    path.write_text(f"{os.getppid()}\n")
    with pytest.raises(SysupError, match=f"process {os.getppid()} is named there and alive"):
        write_pidfile(str(path))
    assert path.read_text() == f"{os.getppid()}\n"


def test_a_pidfile_of_an_earlier_life_is_no_hindrance(tmp_path: Path) -> None:
    """In a container the daemon has the same pid each time."""
    path = tmp_path / "pid"
    path.write_text(f"{os.getpid()}\n")
    write_pidfile(str(path))
    assert path.read_text() == f"{os.getpid()}\n"


# ---- the log -----------------------------------------------------------------------------


def record(level: int) -> logging.LogRecord:
    return logging.LogRecord("sysup", level, "file", 1, "web.%d: %s", (3, "flapping"), None)


def test_the_level_is_coloured_on_a_terminal_alone() -> None:
    plain = Formatter(False).format(record(logging.WARNING))
    assert plain.endswith(" warning web.3: flapping")
    coloured = Formatter(True).format(record(logging.WARNING))
    assert "\033[33mwarning\033[0m" in coloured
    assert "\033" not in Formatter(True).format(record(logging.INFO))


def test_a_log_file_may_be_rotated(tmp_path: Path) -> None:
    path = tmp_path / "log"
    handler = make_handler(str(path))
    handler.emit(record(logging.INFO))
    path.rename(tmp_path / "log.1")
    handler.emit(record(logging.INFO))
    handler.close()
    assert "web.3: flapping" in path.read_text()
    assert "web.3: flapping" in (tmp_path / "log.1").read_text()


def test_an_unknown_facility_is_refused() -> None:
    with pytest.raises(SysupError, match="no such facility: nope"):
        make_handler("syslog:///dev/log?nope")


def test_the_log_waits_for_nobody_and_counts_what_is_lost() -> None:
    pipe = Pipe()
    line = "x" * 4095 + "\n"
    for _ in range(100):
        pipe.write(line)
    pipe.flush()
    lost = 100 - os.read(pipe.reading, 1 << 20).count(b"\n")
    assert lost > 0
    pipe.write("at last\n")
    assert os.read(pipe.reading, 1 << 16).decode() == (
        f"{lost} lines of the log were lost: nobody read them\nat last\n"
    )
    pipe.close()
    os.close(pipe.reading)
