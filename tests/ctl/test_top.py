"""What `top` makes of figures: who is shown, in what order, in how many cells."""

from __future__ import annotations

import json
from typing import Any

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sysup.ctl import figures
from sysup.ctl.figures import (
    BLOCKS,
    END,
    ORDERS,
    PATIENT,
    PLAIN_BLOCKS,
    Figures,
    cells,
    fit,
    pad,
    sparkline,
    table,
)
from sysup.ctl.top import Live, title_of
from tests.canned import CannedDaemon
from tests.ctl.conftest import Run


def told(watcher: str, wid: int, pid: int, **more: Any) -> tuple[str, dict[str, Any]]:
    info = {
        **{"mem_info1": "1.5M", "mem_info2": "2.44M", "cpu": 1.0, "mem": 0.5, "ctime": "0:01.00"},
        **{"pid": pid, "username": "root", "nice": 0, "age": 65.0, "cmdline": "sleep"},
        **{"children": [], "subtopic": pid, "name": None, "watcher": watcher, "wid": wid},
    }
    return f"stat.{watcher}.{pid}", {**info, **more}


def a_round(found: Figures, *messages: tuple[str, dict[str, Any]]) -> Figures:
    for message in messages:
        assert not found.take(*message)
    assert not found.take("stat.circus.1", {"name": "circusd", "cpu": 0.2, "mem_info1": "30M"})
    assert found.take(END, {"pid": [1]})
    return found


def plain(found: Figures, order: str = "name", width: int | None = None) -> list[str]:
    return [click.unstyle(line) for line in table(found.sorted(order), width)]


def test_a_line_for_each_process() -> None:
    found = a_round(Figures(), told("web", 1, 7), told("web", 2, 8, cpu=99.96), told("db", 1, 9))
    head, *rows = plain(found)
    assert head.split() == [name for name in figures.COLUMNS if name]
    assert [row.split() for row in rows] == [
        ["db.1", "9", "root", "1.0", "1.5M", "0.5", "0:01.00", "1m05s", "sleep"],
        ["web.1", "7", "root", "1.0", "1.5M", "0.5", "0:01.00", "1m05s", "sleep"],
        ["web.2", "8", "root", "100.0", "1.5M", "0.5", "0:01.00", "1m05s", "sleep"],
    ]
    ends = {
        row.index(figure) + len(figure)
        for row, figure in zip(rows, ("1.0", "1.0", "100.0"), strict=True)
    }
    assert len(ends) == 1, "figures stand under each other"
    assert found.summary() == "3 processes, cpu 102.0%, memory 1.5%, sysupd 0.2% 30M"


def test_only_those_that_are_asked_for() -> None:
    found = a_round(Figures(["WEB"]), told("web", 1, 7), told("website", 1, 8), told("db", 1, 9))
    assert [process.pid for process in found.sorted("pid")] == [7]


@pytest.mark.parametrize(
    ("order", "pids"),
    [
        ("cpu", [9, 7, 8]),
        ("mem", [8, 9, 7]),
        ("time", [7, 8, 9]),
        ("age", [8, 7, 9]),
        ("name", [9, 7, 8]),
        ("pid", [7, 8, 9]),
        ("user", [8, 7, 9]),
    ],
)
def test_orders(order: str, pids: list[int]) -> None:
    found = a_round(
        Figures(),
        told("web", 2, 7, cpu=5.0, mem=0.1, ctime="100:00.00", age=50, username="bob"),
        told("web", 10, 8, cpu="N/A", mem=3.0, ctime="9:59.99", age=99, username="al"),
        told("db", 1, 9, cpu=50.0, mem=2.0, ctime="N/A", age=5, username="root"),
    )
    assert [process.pid for process in found.sorted(order)] == pids
    assert [process.pid for process in found.sorted(order, reverse=True)] == pids[::-1]


def test_who_is_not_heard_of_for_some_rounds_has_gone() -> None:
    found = a_round(Figures(), told("web", 1, 7), told("web", 2, 8))
    for _ in range(PATIENT):
        a_round(found, told("web", 1, 7))
        assert len(found.sorted("pid")) == 2 or found.rounds > PATIENT
    assert [process.pid for process in found.sorted("pid")] == [7]


@pytest.mark.parametrize(
    ("topic", "message"),
    [
        ("stat.web.7", None),
        ("stat.web.7", [1]),
        ("stat.web", {}),
        ("stat.web.x", {}),
        ("stat.sockets.5", {"reads": 1}),
        ("stat..7", {}),
        ("nonsense", {}),
        ("", {}),
    ],
)
def test_what_is_no_process_is_passed_over(topic: str, message: Any) -> None:
    found = Figures()
    assert not found.take(topic, message)
    assert found.sorted("cpu") == []


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=30),
    st.lists(st.integers(), max_size=2),
)


@given(
    st.dictionaries(
        st.sampled_from(["cpu", "mem", "ctime", "age", "username", "cmdline", "mem_info1", "wid"]),
        VALUES,
    ),
    st.text(max_size=30),
    st.sampled_from([*ORDERS]),
    st.integers(1, 200),
)
def test_no_value_can_command_the_terminal_or_be_too_wide(
    values: dict[str, Any], watcher: str, order: str, width: int
) -> None:
    found = Figures()
    for _ in range(2):
        a_round(found, (f"stat.x.{7}", {"watcher": watcher, **values}), told("web", 1, 8))
    for line in plain(found, order, width):
        assert line.isprintable()
        assert cells(line) <= width
    assert all(line.isprintable() for line in plain(found, order))
    assert found.summary().isprintable()


def test_bars() -> None:
    assert sparkline([0, 12, 50, 100], 4, 100.0) == " ▁▄█"
    assert sparkline([0.1], 3, 100.0) == "  ▁", "what is not nothing is seen"
    assert sparkline([1, 2, 3, 400], 2, 100.0) == "▁█"
    assert sparkline([2, 4], 2, 0.0) == "▄█"
    assert sparkline([0, 0], 2, 0.0) == "  "
    assert sparkline([], 3, 100.0) == "   "
    assert sparkline([100], 1, 100.0, PLAIN_BLOCKS) == "#"
    assert sparkline([1, 2], 0, 100.0) == ""
    assert len({cells(block) for block in BLOCKS}) == 1


def test_cells() -> None:
    assert (cells("abc"), cells("日本"), cells("é")) == (3, 4, 1)
    assert (fit("日本語", 5), fit("abc", 2), fit("abc", 0)) == ("日本", "ab", "")
    assert (pad("日", 3), pad("7", 3, right=True), pad("abcd", 3)) == ("日 ", "  7", "abc")


# ---- the screen --------------------------------------------------------------------------


def live(found: Figures) -> Live:
    return Live(None, found, "pid", reverse=False, title="sh\x1bop")  # type: ignore[arg-type]


def screen(it: Live, columns: int = 120, lines: int = 10, late: float = 0.0) -> list[str]:
    shown = [click.unstyle(line) for line in it.lines(columns, lines, late)]
    assert len(shown) <= lines
    assert all(line.isprintable() and cells(line) <= columns for line in shown)
    return shown


def test_the_screen_has_its_size() -> None:
    found = a_round(Figures(), *(told("web", n, n) for n in range(1, 31)))
    it = live(found)
    for columns, lines in ((120, 10), (20, 5), (80, 24), (1, 1), (300, 100)):
        screen(it, columns, lines)
    shown = screen(it)
    assert shown[0].startswith("sh\\x1bop: 30 processes, ")
    assert shown[-1].endswith("24 more below")
    assert [line.split()[0] for line in shown[3:-1]] == [f"web.{n}" for n in range(1, 7)]


def test_keys() -> None:
    found = a_round(Figures(), *(told("web", n, n, cpu=n) for n in range(1, 31)))
    it = live(found)

    def first(*keys: str) -> str:
        for key in keys:
            assert it._press(key, 10)
        return screen(it)[3].split()[0]

    assert first("c") == "web.30"
    assert first("r") == "web.1"
    assert first("r", "down", "down") == "web.28"
    assert first("up") == "web.29"
    assert first("page down") == "web.24"
    assert first("page up", "page up") == "web.30"
    assert first(*["page down"] * 9) == "web.6", "not past the end"
    assert first("n") == "web.1", "another order begins at its beginning"
    assert first("x", "escape") == "web.1"
    assert not it._press("q", 10)
    assert not it._press("", 10)


def test_the_title_is_the_apps_name() -> None:
    assert title_of("ipc:///run/sysup/shop/events") == "shop"
    assert title_of("ipc:///tmp/x/stats") == "ipc:///tmp/x/stats"
    assert title_of("tcp://127.0.0.1:5557") == "tcp://127.0.0.1:5557"


def test_silence_is_told() -> None:
    assert "waiting for figures" in screen(live(Figures()))[0]
    assert "no figures for 5 s" in screen(live(Figures()), late=5.0)[0]


# ---- once --------------------------------------------------------------------------------


@pytest.fixture
def streaming(daemon: CannedDaemon) -> CannedDaemon:
    """Two rounds are told to each who subscribes."""
    daemon.replies["list"] = {"pids": [7]}
    for cpu in (0.0, 12.5):
        daemon.events += [told("web", 1, 7, cpu=cpu), (END, {"pid": [1]})]
    return daemon


def test_in_a_pipe_it_is_a_table(streaming: CannedDaemon, ctl: Run) -> None:
    done = ctl("top")
    assert done.code == 0, done.err
    head, row = done.out.splitlines()
    assert head.split() == [name for name in figures.COLUMNS if name]
    assert row.split()[:4] == ["web.1", "7", "root", "12.5"]
    assert "\x1b" not in done.out


def test_as_json(streaming: CannedDaemon, ctl: Run) -> None:
    done = ctl("top", "web", "--json", "--sort", "mem")
    (process,) = json.loads(done.out)["processes"]
    assert (process["watcher"], process["pid"], process["cpu"]) == ("web", 7, 12.5)


def test_a_watcher_that_there_is_not(daemon: CannedDaemon, ctl: Run) -> None:
    def refuse(message: dict[str, Any]) -> Any:
        from sysup.protocol import MessageError

        if "name" in message["properties"]:
            raise MessageError("program wbe not found")
        return {"watchers": ["web"]}

    daemon.replies["list"] = refuse
    done = ctl("top", "wbe")
    assert (done.code, done.out) == (1, "")
    assert "did you mean web?" in done.err


def test_a_daemon_that_tells_nothing(daemon: CannedDaemon, ctl: Run) -> None:
    done = ctl("--timeout", "0.05", "top")
    assert (done.code, done.out) == (4, "")
    assert "no statistics" in done.err
