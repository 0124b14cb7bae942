"""What `logs` takes, whose entries those are, and how they look; a real journal is elsewhere."""

from __future__ import annotations

import builtins
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sysup.ctl import journal, logs
from sysup.ctl.journal import Query, check_access, disjunction
from sysup.ctl.session import Session
from sysup.protocol import SysupError
from tests.canned import CannedDaemon

from .conftest import Run

UNIT = "sysup@shop.service"
ENTRY = {
    "__REALTIME_TIMESTAMP": "1795600800250999",
    "PRIORITY": "6",
    "MESSAGE": "hello",
    "SYSUP_APP": "shop",
    "SYSUP_WATCHER": "web",
    "SYSUP_WID": "2",
    "SYSUP_STREAM": "stdout",
    "SYSLOG_IDENTIFIER": "web",
    "_PID": "1234",
}
STAMP = "2026-11-25 10:00:00.250"


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


# ---- whose ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "uid", "taken"),
    [
        ({"_SYSTEMD_UNIT": UNIT}, 0, True),
        ({"_SYSTEMD_UNIT": UNIT, "_UID": "33"}, 1000, True),
        ({"_SYSTEMD_UNIT": "sysup@other.service"}, 0, False),
        ({"UNIT": UNIT, "_PID": "1"}, 1000, True),
        ({"UNIT": UNIT, "_PID": "11", "_UID": "0"}, 0, False),
        ({"COREDUMP_UNIT": UNIT, "_UID": "0"}, 1000, True),
        ({"COREDUMP_UNIT": UNIT, "_UID": "33"}, 0, False),
        ({"OBJECT_SYSTEMD_UNIT": UNIT, "_UID": "33"}, 0, False),
        ({"SYSUP_APP": "shop", "_UID": "0"}, 1000, True),
        ({"SYSUP_APP": "shop", "_UID": "1000"}, 1000, True),
        ({"SYSUP_APP": "shop", "_UID": "33"}, 0, False),
        ({"SYSUP_APP": "shop", "_UID": "33"}, 1000, False),
        ({"SYSUP_APP": "other", "_UID": "0"}, 0, False),
        ({"_SYSTEMD_USER_UNIT": UNIT, "_UID": "1000"}, 1000, True),
        ({"_SYSTEMD_USER_UNIT": UNIT, "_UID": "1001"}, 1000, False),
        ({"USER_UNIT": UNIT, "_UID": "1000"}, 1000, True),
        ({"USER_UNIT": UNIT, "_UID": "1001"}, 1000, False),
        ({"SYSUP_APP": ["shop", "other"], "_UID": "0"}, 0, False),
    ],
)
def test_whose_an_entry_is(fields: dict[str, Any], uid: int, taken: bool) -> None:
    """Anybody may write that an entry is the app's."""
    assert Query("shop", uid=uid).takes(fields) is taken


def test_a_name_in_the_journal_is_no_watchers() -> None:
    query = Query("shop", ("web",))
    unit = {"_SYSTEMD_UNIT": UNIT, "SYSLOG_IDENTIFIER": "web"}
    assert query.takes(unit)
    assert query.takes({**unit, "SYSUP_WATCHER": "web"})
    assert not query.takes({**unit, "SYSUP_WATCHER": "db"})


def test_matches_for_journalctl() -> None:
    query = Query("shop", ("web", "db"), wid=2, stream="stdout", priorities=(0, 1))
    arguments = " ".join(disjunction(query.matches())).split(" + ")
    rest = "SYSUP_WID=2 SYSUP_STREAM=stdout PRIORITY=0 PRIORITY=1"
    assert len(arguments) == 10
    assert arguments[0] == f"_SYSTEMD_UNIT={UNIT} SYSUP_WATCHER=web SYSUP_WATCHER=db {rest}"
    assert arguments[1] == f"_SYSTEMD_UNIT={UNIT} SYSLOG_IDENTIFIER=web SYSLOG_IDENTIFIER=db {rest}"
    assert arguments[5] == f"SYSUP_APP=shop SYSLOG_IDENTIFIER=web SYSLOG_IDENTIFIER=db {rest}"


# ---- how it looks --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "label"),
    [
        ({}, "web.2"),
        ({"SYSUP_WID": ""}, "web"),
        ({"SYSUP_STREAM": None, "SYSLOG_IDENTIFIER": "sysupd"}, "sysupd[1234]"),
        ({"SYSUP_WATCHER": None, "SYSLOG_IDENTIFIER": "systemd", "_PID": "1"}, "systemd[1]"),
        ({"SYSUP_WATCHER": None, "SYSLOG_IDENTIFIER": None, "_COMM": "sh"}, "sh[1234]"),
        ({"SYSUP_WATCHER": None, "SYSLOG_IDENTIFIER": None, "_PID": None}, "?"),
        ({"SYSUP_WATCHER": ["db", "web"]}, "web.2"),
    ],
)
def test_who(fields: dict[str, Any], label: str) -> None:
    entry = {name: value for name, value in {**ENTRY, **fields}.items() if value is not None}
    assert logs.line(entry, False) == f"{STAMP} {label}: hello\n".encode()


def test_a_pipe_gets_exact_bytes_and_a_terminal_harmless_text() -> None:
    entry = {**ENTRY, "MESSAGE": "a\tb\x1b[2J\udcff\r\n\N{SNOWMAN}\n"}
    indent = " " * len(f"{STAMP} web.2: ")
    exact = f"{STAMP} web.2: a\tb\x1b[2J".encode() + b"\xff\r\n"
    assert logs.line(entry, False) == exact + f"{indent}\N{SNOWMAN}\n".encode()
    shown = click.unstyle(logs.line(entry, True).decode())
    assert shown == f"{STAMP} web.2: a\tb\\x1b[2J\\xff\\r\n{indent}\N{SNOWMAN}\n"


@given(st.text(), st.text())
def test_nothing_commands_a_terminal(message: str, name: str) -> None:
    entry = {**ENTRY, "MESSAGE": message.encode("utf-8", "replace").decode(), "SYSUP_WATCHER": name}
    first, *further = click.unstyle(logs.line(entry, True).decode()).removesuffix("\n").split("\n")
    assert first.startswith(STAMP)
    assert all(line.startswith(" " * len(STAMP)) for line in further)
    assert all(c.isprintable() or c == "\t" for line in [first, *further] for c in line)


@pytest.mark.parametrize(
    ("urgency", "style"),
    [("0", "\x1b[31m\x1b[1m"), ("3", "\x1b[31m"), ("4", "\x1b[33m"), ("6", "\x1b[36m")],
)
def test_the_colour_tells_how_urgent_it_is(urgency: str, style: str) -> None:
    shown = logs.line({**ENTRY, "PRIORITY": urgency}, True).decode()
    assert shown == f"{STAMP} {style}web.2\x1b[0m: hello\n"


@pytest.mark.parametrize("urgency", ["", "8", "-1", "x", "66", "\u0661"])
def test_a_priority_that_is_none_has_a_colour(urgency: str) -> None:
    assert b"\x1b[36m" in logs.line({**ENTRY, "PRIORITY": urgency}, True)


def test_json_has_numbers_for_what_is_no_text() -> None:
    shown = logs.as_json({"A": "\N{SNOWMAN}\x1b", "B": "\udcffx", "C": ["a", "\udc80"]})
    assert shown == {"A": "\N{SNOWMAN}\x1b", "B": [255, 120], "C": ["a", [128]]}


# ---- what is typed -------------------------------------------------------------------------


@pytest.fixture
def asked(base: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Query, int | None]]:
    """What is asked of the journal, which is empty."""
    queries = []

    class Empty:
        complaint = "a hint"

        def __init__(self, query: Query) -> None:
            self.query = query

        def __enter__(self) -> Empty:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def read(self, last: int | None) -> Sequence[object]:
            queries.append((self.query, last))
            return ()

        def wait(self, out: int) -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr(journal, "Journal", Empty)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    return queries


@pytest.mark.parametrize(
    ("args", "last", "which"),
    [
        ("", 100, {}),
        ("-n 5", 5, {}),
        ("-n all", None, {}),
        ("--until @1", None, {"until": 1_000_000}),
        ("--since @1 -n 3", 3, {"since": 1_000_000}),
        ("web Db", 100, {"names": ("web", "Db", "db")}),
        ("web --wid 3 --stream stderr", 100, {"names": ("web",), "wid": 3, "stream": "stderr"}),
        ("-p err", 100, {"priorities": (0, 1, 2, 3)}),
        ("-p Warn..error", 100, {"priorities": (3, 4)}),
        ("-p 7..6", 100, {"priorities": (6, 7)}),
        ("-n 3 rotate", 3, {"names": ("rotate",)}),
        ("-- rotate", 100, {"names": ("rotate",)}),
        ("web rotate", 100, {"names": ("web", "rotate")}),
    ],
)
def test_what_is_asked(
    ctl: Run,
    asked: list[tuple[Query, int | None]],
    args: str,
    last: int | None,
    which: dict[str, Any],
) -> None:
    assert ctl("logs", "-a", "shop", *args.split()) == (0, "", "hint: a hint\n")
    assert ctl("-a", "shop", "logs", *args.split()).code == 0
    assert asked == [(Query("shop", **which), last)] * 2


def test_an_option_takes_what_begins_with_a_dash(
    ctl: Run, asked: list[tuple[Query, int | None]]
) -> None:
    assert ctl("logs", "-a", "shop", "--since", "-1h").code == 0
    assert asked[0][0].since > 0


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        (["-p", "loud"], "there is no priority 'loud', but emerg, alert,"),
        (["-p", "err..8"], "there is no priority '8'"),
        (["-n", "x"], "'x' is neither a number nor 'all'"),
        (["-n", "-1"], "'-1' is neither a number nor 'all'"),
        (["--since", "soon"], "cannot read 'soon' as a time: write it like one of"),
        (["-f", "--until", "now"], "-f and --until exclude each other"),
        (["--wid", "x"], "'x' is not a valid integer"),
    ],
)
def test_what_makes_no_sense(
    ctl: Run, asked: list[tuple[Query, int | None]], args: list[str], complaint: str
) -> None:
    code, out, err = ctl("logs", "-a", "shop", *args)
    assert (code, out) == (2, "")
    assert complaint in err
    assert "Usage: sysupctl logs [OPTIONS] [NAME]..." in err
    assert asked == []


# ---- which app -----------------------------------------------------------------------------


def app(name: str | None = None, endpoint: str | None = None) -> str:
    here = Session()
    here.apps = [name] if name else []
    here.endpoints = [endpoint] if endpoint else []
    return logs.app_of(here)


@pytest.fixture
def configs(base: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The only directory where configs are looked for."""
    directory = tmp_path / "etc"
    directory.mkdir()
    monkeypatch.setattr(logs, "CONFIGS", (str(directory), "~/no/such/directory"))
    return directory


def test_the_app_that_is_named(configs: Path) -> None:
    assert app("shop") == "shop"
    assert app(endpoint="ipc:///run/sysup/shop/control") == "shop"


def test_the_app_that_runs(configs: Path, daemon: CannedDaemon) -> None:
    (configs / "other.ini").touch()
    assert app() == "shop"


def test_the_app_that_is_configured(configs: Path) -> None:
    (configs / "shop.ini").touch()
    (configs / "notes.txt").touch()
    assert app() == "shop"


@pytest.mark.parametrize("endpoint", ["tcp://127.0.0.1:5555", "ipc:///tmp/some.sock"])
def test_an_endpoint_that_tells_no_app(configs: Path, endpoint: str) -> None:
    with pytest.raises(SysupError, match=r"cannot tell which app is at .*-a APP"):
        app(endpoint=endpoint)


def test_where_it_may_be_one_of_several(configs: Path) -> None:
    with pytest.raises(SysupError, match=r"cannot tell whose logs: .*; name an app \(-a APP\)"):
        app()
    for name in ("shop", "other"):
        (configs / f"{name}.ini").touch()
    with pytest.raises(SysupError, match=r"name an app of other, shop \(-a APP\)"):
        app()


# ---- a journal that can't be read ----------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the files of the journal are."""
    monkeypatch.setattr(journal, "FILES", (f"{tmp_path}/*/*.journal",))
    directory = tmp_path / "machine"
    directory.mkdir()
    return directory


def test_there_is_no_journal(files: Path) -> None:
    with pytest.raises(SysupError, match="cannot read the journal: there is none in /"):
        check_access()


def test_who_may_read_it(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (files / "system.journal").touch()
    assert check_access() is None
    allowed: set[str] = set()
    monkeypatch.setattr(os, "access", lambda path, _, effective_ids: Path(path).name in allowed)
    with pytest.raises(SysupError, match=r"permission denied; root may, .*usermod -aG"):
        check_access()
    (files / "user-1000.journal").touch()
    allowed.add("user-1000.journal")
    assert "may not read all of the journal; root may" in (check_access() or "")


def test_without_cysystemd(ctl: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def importing(name: str, *args: Any, **named: Any) -> Any:
        if name.startswith("cysystemd"):
            raise ModuleNotFoundError(name)
        return real(name, *args, **named)

    monkeypatch.delitem(sys.modules, "sysup.ctl.journal")
    monkeypatch.setattr(builtins, "__import__", importing)
    code, _, err = ctl("logs", "-a", "shop")
    assert code == 1
    assert err == ("error: cannot read the journal: cysystemd is missing (pip install cysystemd)\n")


def test_it_is_not_loaded_for_other_commands() -> None:
    program = "import sys, sysup.ctl; print([n for n in sys.modules if 'cysystemd' in n])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "[]\n"
