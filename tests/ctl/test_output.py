"""What tail, logs (of files) and show print, and how they end."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sysup.ctl.output import LONGEST_LINE, Printer, Seam, Source
from sysup.ctl.render import event, size
from sysup.ctl.report import report
from sysup.protocol import Incomplete, pack
from tests.canned import CannedDaemon

from .conftest import Run
from .states import BROKEN, WEB
from .test_program import BACK, GONE, completed, going_on, hint_of, line_of


def told(
    data: bytes, at: int, pid: int = 812, stream: str = "stdout", wid: int = 1, missed: int = 0
) -> dict[str, Any]:
    return {
        "wid": wid,
        "pid": pid,
        "stream": stream,
        "data": pack(data),
        "at": at,
        "missed": missed,
    }


# ---- the seam ----------------------------------------------------------------------------


@given(
    st.binary(max_size=60),
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=12),
)
def test_each_byte_comes_once(text: bytes, cuts: list[tuple[int, int]]) -> None:
    """Of pieces that overlap or leave gaps, in the order of their ends."""
    seam = Seam()
    seam.take(told(b"", 0))
    pieces = sorted(
        ((min(a, b, len(text)), min(max(a, b), len(text))) for a, b in cuts),
        key=lambda piece: piece[1],
    )
    position = 0
    for begin, end in pieces:
        missed, data = seam.take(told(text[begin:end], end))
        position += missed
        assert text[position : position + len(data)] == data
        position += len(data)
    assert position == max((end for _, end in pieces), default=0)


def test_the_seam_of_a_process_that_nothing_is_known_of() -> None:
    seam = Seam()
    assert seam.take(told(b"tail", 100)) == (0, b"tail"), "nobody asked for what was before"
    assert seam.take(told(b"il+", 101)) == (0, b"+")
    assert seam.take(told(b"new", 3, pid=813)) == (0, b"new")
    assert seam.take(told(b"new", 9, pid=814, missed=6)) == (6, b"new")
    assert seam.take(told(b"late", 105)) == (0, b"late"), "of the old process"
    assert seam.take(told(b"late", 105)) == (0, b"")
    assert seam.take(told(b"x", 107)) == (1, b"x")


# ---- printing ----------------------------------------------------------------------------

OUT, ERR = Source(1, "stdout"), Source(1, "stderr")


@pytest.fixture
def bytes_out(capfdbinary: pytest.CaptureFixture[bytes]) -> Callable[[], bytes]:
    def read() -> bytes:
        sys.stdout.flush()
        return capfdbinary.readouterr().out

    return read


def test_a_single_source_is_passed_on_as_it_is(bytes_out: Callable[[], bytes]) -> None:
    printer = Printer("web", [OUT], on_terminal=False)
    for data in (b"\x1b[2J\xff\0", b"\xc3", b"\xa9"):
        printer.write(OUT, data)
    printer.finish(OUT)
    assert bytes_out() == b"\x1b[2J\xff\0\xc3\xa9"


def test_a_terminal_gets_text(bytes_out: Callable[[], bytes]) -> None:
    printer = Printer("web", [OUT], on_terminal=True)
    for data in (b"\x1b[2J\xff\0", b"\xc3", b"\xa9\r\nb"):
        printer.write(OUT, data)
    assert bytes_out() == "\\x1b[2J\\xff\\x00é\\r\nb".encode()


def test_lines_of_several_sources_are_marked_and_whole(bytes_out: Callable[[], bytes]) -> None:
    printer = Printer("web", [OUT, ERR], on_terminal=False)
    printer.write(OUT, b"one\ntw")
    printer.write(ERR, b"\xff\n")
    printer.write(OUT, b"o\nthree")
    assert bytes_out() == b"web.1 stdout | one\nweb.1 stderr | \xff\nweb.1 stdout | two\n"
    printer.finish(OUT)
    printer.write(OUT, b"x" * (LONGEST_LINE + 1))
    assert bytes_out() == (
        b"web.1 stdout | three\nweb.1 stdout | " + b"x" * (LONGEST_LINE + 1) + b"\n"
    )


def test_marks_are_in_colour_and_lines_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    printed: list[str] = []
    monkeypatch.setattr(click, "echo", lambda text: printed.append(text))
    printer = Printer("we\x07b", [OUT, ERR], on_terminal=True)
    printer.write(ERR, b"\x1b[2J\xff\n")
    (line,) = printed
    assert line != click.unstyle(line)
    assert click.unstyle(line) == "we\\x07b.1 stderr | \\x1b[2J\\xff"


# ---- the commands ------------------------------------------------------------------------


def test_tail(daemon: CannedDaemon, ctl: Run) -> None:
    tails = [told(b"a\nb", 3), told(b"", 0, stream="stderr"), told(b"c\n", 2, 813, wid=2)]
    daemon.replies["tail"] = {"tails": tails}
    assert ctl("tail", "web") == (
        *(0, "web.1 stdout | a\nweb.1 stdout | b\nweb.2 stdout | c\n", ""),
    )
    assert daemon.request()["properties"] == {"name": "web", "lines": 10}
    daemon.replies["tail"] = {"tails": tails[:1]}
    assert ctl("tail", "web", "stdout", "1", "-n", "3").out == "a\nb"
    assert daemon.request()["properties"] == {
        **{"name": "web", "wid": 1, "stream": "stdout", "lines": 3},
    }
    assert json.loads(ctl("tail", "web", "--json").out)["tails"] == tails[:1]


@pytest.mark.parametrize("words", ["1 2", "stdout stderr", "stdin", "1 stdout x"])
def test_a_wrong_tail(base: object, ctl: Run, words: str) -> None:
    code, _, err = ctl("tail", "web", *words.split())
    assert code == 2
    assert "NAME [WID] [stdout|stderr]" in err


def test_following(daemon: CannedDaemon, ctl: Run) -> None:
    """What is in both is printed once, what is missed is told, others are left out."""
    daemon.replies["tail"] = {"tails": [told(b"one\n", 104)]}
    daemon.events = [
        ("output.web.1.stdout", told(b"ne\n", 104)),
        ("output.web.1.2.stdout", told(b"of another\n", 11)),
        ("output.web.1.stderr", told(b"of another\n", 11, stream="stderr")),
        ("output.web.1.stdout", told(b"two\n", 108)),
        ("output.web.1.stdout", told(b"four\n", 118)),
        ("output.web.1.stdout", told(b"new\n", 4, pid=900)),
        ("output.web.1.stdout", {"stream": "stdout", "wid": None}),
    ]
    code, out, err = ctl("tail", "-f", "Web", "1", "stdout")
    assert out == "one\ntwo\nfour\nnew\n"
    assert "Web.1 stdout: 5 bytes missed\n" in err
    assert (code, err.splitlines()[-1]) == (1, "error: cannot read a message of Web's output")


def test_a_daemon_that_goes_while_it_is_followed_is_missed(base: Path) -> None:
    with CannedDaemon(base / "shop") as daemon:
        daemon.replies["tail"] = {"tails": [told(b"one\n", 104)]}
        with going_on("tail", "-f", "web") as process:
            assert line_of(process) == "one\n"
            daemon.close()
            assert hint_of(process) == GONE
            with CannedDaemon(base / "shop") as other:
                other.replies["tail"] = {"tails": [told(b"three\n", 114)]}
                assert (hint_of(process), line_of(process)) == (BACK, "three\n")
                assert hint_of(process) == "web.1 stdout: 4 bytes missed\n"


def test_following_as_json(daemon: CannedDaemon, ctl: Run) -> None:
    daemon.replies["tail"] = {"tails": [told(b"one\n", 104), told(b"", 0, stream="stderr")]}
    daemon.events = [("output.web.1.stdout", told(b"e\ntw\xff", 107)), ("output.web.1.stdout", {})]
    lines = [json.loads(line) for line in ctl("tail", "-f", "--json", "web").out.splitlines()]
    assert [(line["watcher"], line["data"]) for line in lines] == [
        ("web", "one\n"),
        ("web", "tw\udcff"),
    ]


def test_a_daemon_that_can_not_be_followed(
    daemon: CannedDaemon, ctl: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CannedDaemon, "_greet", lambda self, subscription: None)
    code, out, err = ctl("tail", "-f", "web", "--timeout", "0.02")
    assert (code, out) == (1, "")
    assert err.startswith("error: cannot follow web: ipc://")


def test_logs(daemon: CannedDaemon, ctl: Run) -> None:
    daemon.replies["logs"] = {"files": ["/a\x07", "/b"]}
    assert ctl("logs", "reopen") == (0, "reopened /a\\x07\nreopened /b\n", "")
    assert daemon.request()["properties"] == {"action": "reopen"}
    assert ctl("logs", "-a", "shop", "rotate", "web").out == "rotated /a\\x07\nrotated /b\n"
    assert daemon.request()["properties"] == {"action": "rotate", "name": "web"}
    full = "cannot write /b: No space left on device"

    def fail(request: object) -> None:
        raise Incomplete(full, {"files": ["/a"]})

    daemon.replies["logs"] = fail
    assert ctl("logs", "reopen") == (1, "reopened /a\n", f"error: {full}\n")
    assert json.loads(ctl("logs", "reopen", "--json").out)["files"] == ["/a"]
    daemon.replies["logs"] = {"files": []}
    assert ctl("logs", "reopen", "web").out == "there are no files\n"
    assert ctl("logs", "rotate").code == 2


SHOWN: dict[str, Any] = {
    **BROKEN,
    "name": "broken",
    "problem": "cannot write /log: disk full",
    "config_problem": "/a.ini:3: [watcher:broken] x: unknown option",
    "options": {"cmd": "gunicorn shop:app", "numprocesses": 2, "env": {"A": "1"}},
    "streams": [
        {
            "stream": "stdout",
            "class": "FileStream",
            "to": "/log",
            "failure": "cannot write /log: disk full",
            "bytes": 1536,
            "dropped_lines": 3,
            "dropped_bytes": 40,
        },
        {"stream": "stderr", "class": None, "to": None, "failure": None, "bytes": 0},
    ],
    "deaths": [
        {
            "wid": 1,
            "pid": 812,
            "exit_code": 1,
            "reason": "exit code 1",
            "ago": 63.0,
            "last_output": "Traceback\n\x1b[2Joh no",
        }
    ],
}


def test_show(daemon: CannedDaemon, ctl: Run) -> None:
    daemon.replies["show"] = {"watcher": SHOWN}
    assert (
        ctl("show", "broken").out
        == """\
broken flapping, 0/1 ready, 17 restarts, retry in 7s, exit code 1
  gunicorn shop:app
  cannot write /log: disk full
  keeps its old config: /a.ini:3: [watcher:broken] x: unknown option

processes
  NAME      STATE     PID  UPTIME  RESTARTS  RETRY  REASON
  broken.1  flapping  -    -       17        7s     exit code 1

streams
  stdout  /log (FileStream), 1.5 KiB
      cannot write /log: disk full
      3 lines (40 bytes) dropped
  stderr  closed, 0 bytes

last deaths
  broken.1  pid 812, exit code 1, 1m03s ago
      | Traceback
      | \\x1b[2Joh no

options
  env: {"A": "1"}
  numprocesses: 2
"""
    )
    assert json.loads(ctl("show", "broken", "--json").out)["watcher"] == SHOWN


def test_what_there_is_nothing_of_is_left_out() -> None:
    calm = {**WEB, "name": "web", "processes": [], "options": {"cmd": "x"}}
    lines = report({**calm, "streams": [], "deaths": []})
    assert [click.unstyle(line) for line in lines] == ["web active, 2/2 ready, up 1h02m", "  x"]


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 bytes"), (1, "1 byte"), (1023, "1023 bytes"), (1024, "1.0 KiB"), (5 << 20, "5.0 MiB")],
)
def test_sizes(number: int, text: str) -> None:
    assert size(number) == text


def test_events_of_streams() -> None:
    lost = {"wid": 1, "stream": "stdout", "dropped_lines": 2, "dropped_bytes": 2048}
    lost |= {"suppressed_lines": 0, "suppressed_bytes": 0}
    (line,) = event("web", "output_lost", lost)
    assert click.unstyle(line) == (
        "--:--:-- web.1 output_lost 2 lines (2.0 KiB) dropped, stream stdout"
    )
    (line,) = event("web", "sink_rotated", {"path": "/log"})
    assert click.unstyle(line) == "--:--:-- web sink_rotated path /log"


def test_completion(daemon: CannedDaemon) -> None:
    daemon.replies["list"] = {"watchers": ["db", "web"]}
    daemon.replies["status"] = {"status": "active", "watchers": {"web": WEB}}
    assert completed("tail", "w") == ["web"]
    assert completed("tail", "web", "") == ["1", "2", "stdout", "stderr"]
    assert completed("tail", "web", "1", "st") == ["stdout", "stderr"]
    assert completed("show", "d") == ["db"]
    assert completed("logs", "r") == ["reopen", "rotate"]
    assert completed("logs", "") == ["db", "web", "reopen", "rotate"]
    assert completed("logs", "rotate", "w") == ["web"]
    assert completed("logs", "-f", "w") == ["web"]
    assert completed("logs", "web", "") == ["db", "web"]
    assert completed("logs", "-p", "w") == ["warning"]
