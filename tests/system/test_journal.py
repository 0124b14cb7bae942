"""What the processes of a real sysupd print, in a real journal."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.conftest import Start
from tests.e2e.harness import Daemon, until
from tests.journald import Journald

JOURNAL = "stdout_stream.class = JournalStream\nstderr_stream.class = JournalStream\n"
UNDER_THE_JOURNAL = [
    *("systemd-cat", "--identifier=sysupd", "sh", "-c"),
    'export JOURNAL_STREAM="$(stat -L -c %d:%i /proc/self/fd/2)"; exec "$0" "$@"',
]
"""Before a command, has its output go to the journal, and says so as systemd does."""
EX_CONFIG = 78
LINES = 20_000
WRITERS = 5
LOSS = 2
"""Entries that any sender of datagrams loses when journald is killed twice."""
STREAM_LOSS = 2 * WRITERS * 1000
"""Lines that all streams lose then: for each, those of the buffer that journald had read."""


class App:
    """Watchers that run scripts, each of which says when it has written all."""

    def __init__(self, start: Start, journald: Journald, directory: Path) -> None:
        self._start = start
        self._journald = journald
        self._directory = directory
        self._done = directory / "done"
        self._done.mkdir()
        self._watchers: list[str] = []
        self._processes = 0

    def watcher(self, name: str, script: str, options: str = JOURNAL, processes: int = 1) -> None:
        """A script of sh(1), run once by each process."""
        file = self._directory / f"{name}.sh"
        file.write_text(f"{script}\ntouch {self._done}/$$\n")
        self._watchers.append(
            f"[watcher:{name}]\ncmd = sh {file}\nnumprocesses = {processes}\nrestart = never\n"
            f"{options}\n"
        )
        self._processes += processes

    def start(self, *under: str) -> Daemon:
        return self._start("\n".join(self._watchers), inside=[*self._journald.inside, *under])

    def wait(self) -> None:
        """Until all have written all, be it that it waits in a pipe."""
        until(lambda: len(os.listdir(self._done)) == self._processes, "all have written")

    def finish(self, daemon: Daemon) -> None:
        """Until all that was written is stored."""
        self.wait()
        assert daemon.stop() == 0
        self._journald.sync()

    def run(self, *under: str) -> Daemon:
        """From start to finish; returns the daemon that was."""
        daemon = self.start(*under)
        self.finish(daemon)
        return daemon


@pytest.fixture
def app(sysupd: Start, journald: Journald, tmp_path: Path) -> App:
    return App(sysupd, journald, tmp_path)


def rows(journald: Journald, *names: str, of: str = "web") -> list[tuple[str, ...]]:
    """Those fields of the entries of a watcher."""
    entries = journald.entries(f"SYSLOG_IDENTIFIER={of}")
    return [tuple(entry.get(name, b"").decode() for name in names) for entry in entries]


# ---- entries -----------------------------------------------------------------------------


def test_an_entry_says_where_it_comes_from(app: App, journald: Journald) -> None:
    app.watcher("web", "echo $$; echo $$ >&2", processes=2)
    daemon = app.run()
    places = {}
    for entry in journald.entries("SYSUP_WATCHER=web"):
        assert entry["SYSUP_APP"] == b"app"
        assert entry["SYSLOG_IDENTIFIER"] == b"web"
        assert entry["SYSLOG_PID"] == entry["MESSAGE"]
        assert entry["_PID"] == b"%d" % daemon.pid
        place = entry["SYSUP_WID"], entry["SYSUP_STREAM"]
        places[place] = entry["PRIORITY"]
    assert places == {
        (b"1", b"stdout"): b"6",
        (b"2", b"stdout"): b"6",
        (b"1", b"stderr"): b"4",
        (b"2", b"stderr"): b"4",
    }


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("", [("bad", "3"), ("plain", "6")]),
        ("stdout_stream.priority = err", [("bad", "3"), ("plain", "3")]),
        ("stdout_stream.level_prefix = no", [("<3>bad", "6"), ("plain", "6")]),
        ("stdout_stream.fields = no", [("bad", "3"), ("plain", "6")]),
        (
            "stdout_stream.fields = no\nstdout_stream.level_prefix = no\n"
            "stdout_stream.priority = debug",
            [("<3>bad", "7"), ("plain", "7")],
        ),
    ],
)
def test_levels(
    app: App, journald: Journald, options: str, expected: list[tuple[str, ...]]
) -> None:
    app.watcher("web", "echo '<3>bad'; echo plain", JOURNAL + options)
    app.run()
    assert rows(journald, "MESSAGE", "PRIORITY") == expected


def test_any_bytes(app: App, journald: Journald) -> None:
    app.watcher("web", r"printf '\377\000\001\n\n \342\230\n\n'; printf 'the end'")
    app.run()
    expected = [b"\xff\0\x01", b"", b" \xe2\x98", b"", b"the end"]
    assert journald.messages("SYSUP_WATCHER=web") == expected


def test_a_line_of_a_megabyte(app: App, journald: Journald) -> None:
    script = "head -c 1000000 /dev/zero | tr '\\0' x; echo; echo next"
    app.watcher("web", script, JOURNAL + "stdout_stream.max_line = 1M")
    app.run()
    assert journald.messages("SYSUP_WATCHER=web") == [b"x" * 1_000_000, b"next"]


def test_an_identifier_of_its_own(app: App, journald: Journald) -> None:
    app.watcher("web", "echo one", JOURNAL + "stdout_stream.identifier = shop")
    app.run()
    assert rows(journald, "MESSAGE", "SYSUP_WATCHER", of="shop") == [("one", "web")]


def test_without_fields_an_entry_is_of_its_process(
    app: App, journald: Journald, tmp_path: Path
) -> None:
    """While that lives: of the dead nobody can send credentials."""
    gate = tmp_path / "gate"
    script = f"echo $$; echo $$ >&2; until [ -e {gate} ]; do sleep 0.02; done"
    app.watcher("web", script, f"{JOURNAL}stdout_stream.fields = no\n", 2)
    daemon = app.start()

    def stored() -> int:
        journald.sync()
        return len(rows(journald, "MESSAGE"))

    until(lambda: stored() == 4, "four lines are stored")
    gate.touch()
    app.finish(daemon)
    found = rows(journald, "MESSAGE", "_PID", "_TRANSPORT", "SYSUP_WATCHER")
    streams = [row for row in found if row[2] == "stdout"]
    assert len(streams) == 2
    assert all(text == pid and not watcher for text, pid, _, watcher in streams)
    assert [row[3] for row in found if row[2] == "journal"] == ["web"] * 2


# ---- a burst, and what befalls journald meanwhile ----------------------------------------


def nothing(_: Journald) -> None:
    pass


def restart(journald: Journald) -> None:
    journald.stop()
    journald.start()


def pause(journald: Journald) -> None:
    journald.freeze()
    journald.thaw()


def kill(journald: Journald) -> None:
    journald.kill()
    journald.start()


@pytest.mark.parametrize(
    ("options", "disturb", "loss"),
    [
        pytest.param("", nothing, 0, id="fields"),
        pytest.param("", restart, 0, id="fields, restarted"),
        pytest.param("", pause, 0, id="fields, stopped"),
        pytest.param("", kill, LOSS, id="fields, killed"),
        pytest.param("stdout_stream.fields = no", nothing, 0, id="stream"),
        pytest.param("stdout_stream.fields = no", restart, 0, id="stream, restarted"),
        pytest.param("stdout_stream.fields = no", pause, 0, id="stream, stopped"),
        pytest.param("stdout_stream.fields = no", kill, STREAM_LOSS, id="stream, killed"),
    ],
)
def test_a_burst_of_many_is_stored_whole(
    app: App,
    journald: Journald,
    tmp_path: Path,
    options: str,
    disturb: Callable[[Journald], None],
    loss: int,
) -> None:
    """In the order of each; the second half waits until journald was disturbed twice."""
    gate = tmp_path / "gate"
    first = f"seq -f $$.%06g. {LINES // 2}"
    second = f"seq -f $$.%06g. {LINES // 2 + 1} {LINES}"
    wait = f"until [ -e {gate} ]; do sleep 0.02; done"
    app.watcher("web", f"{first}; {wait}; {second}", JOURNAL + options, WRITERS)
    daemon = app.start()
    until(lambda: len(set(rows(journald, "SYSLOG_PID", "_PID"))) == WRITERS, "all are known")
    for _ in range(2):
        disturb(journald)
        assert daemon.status("web") == "active"
    gate.touch()
    app.finish(daemon)
    found: dict[bytes, list[int]] = {}
    for text in journald.messages("SYSLOG_IDENTIFIER=web"):
        if whole := re.fullmatch(rb"(\d+)\.(\d{6})\.", text):
            found.setdefault(whole[1], []).append(int(whole[2]))
    assert all(numbers == sorted(set(numbers)) for numbers in found.values())
    assert 0 <= WRITERS * LINES - sum(map(len, found.values())) <= loss


def test_without_a_journald_all_waits_for_it(app: App, journald: Journald) -> None:
    lines = 3 * LINES  # more than the pipe and the pump hold, so the process has to wait
    journald.stop()
    app.watcher("web", f"seq -f %06g {lines}", processes=1)
    daemon = app.start()
    assert daemon.status("web") == "active"
    journald.start()
    app.finish(daemon)
    assert journald.messages("SYSUP_WATCHER=web") == [b"%06d" % (n + 1) for n in range(lines)]


# ---- journald's own stream ---------------------------------------------------------------


def test_a_direct_stream_is_none_of_sysupds_business(
    app: App, journald: Journald, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    script = f"echo $$ one; echo '<3>two'; until [ -e {gate} ]; do sleep 0.02; done; echo three"
    app.watcher("web", script, "stdout_stream.class = JournalDirect")
    daemon = app.start()

    def stored() -> list[tuple[str, ...]]:
        journald.sync()
        return rows(journald, "MESSAGE", "PRIORITY", "_TRANSPORT")

    until(lambda: len(stored()) == 2, "two lines are stored")
    (pid,) = daemon.pids("web")
    (at,) = {entry["_PID"] for entry in journald.entries("SYSLOG_IDENTIFIER=web")}
    assert at == b"%d" % pid
    assert os.readlink(f"/proc/{pid}/fd/1").startswith("socket:")
    restart(journald)
    gate.touch()
    app.finish(daemon)
    expected = [(f"{pid} one", "6"), ("two", "3"), ("three", "6")]
    assert stored() == [(*row, "stdout") for row in expected]
    assert f"{pid} one" not in daemon.log()
    assert rows(journald, "MESSAGE", of="sysupd") == []


def test_a_direct_stream_has_its_options(app: App, journald: Journald) -> None:
    options = "stdout_stream.class = JournalDirect\nstdout_stream.identifier = shop\n"
    options += "stdout_stream.priority = err\nstdout_stream.level_prefix = no\n"
    app.watcher(
        "web", "echo '<7>one'; echo two >&2", options + "stderr_stream.class = JournalDirect"
    )
    app.run()
    assert rows(journald, "MESSAGE", "PRIORITY", of="shop") == [("<7>one", "3")]
    assert rows(journald, "MESSAGE", "PRIORITY") == [("two", "4")]


# ---- inside and outside of systemd -------------------------------------------------------


@pytest.mark.parametrize("cls", ["JournalStream", "JournalDirect"])
def test_where_there_is_no_journal_it_is_stdout(app: App, journald: Journald, cls: str) -> None:
    """And that is said once, however many ask for it."""
    for name in ("socket", "stdout"):
        (journald.directory / name).unlink()
    for name in ("a", "b", "c"):
        app.watcher(name, f"echo from {name}", f"stdout_stream.class = {cls}", processes=2)
    daemon = app.start()
    app.wait()
    assert daemon.stop() == 0
    log = daemon.log().splitlines()
    for name in ("a", "b", "c"):
        assert sum(line.endswith(f"from {name}") for line in log) == 2
    assert len([line for line in log if "journal" in line.lower()]) == 1


def test_under_the_journal_streams_go_there(app: App, journald: Journald) -> None:
    app.watcher("web", "echo out; echo err >&2", options="")
    daemon = app.run(*UNDER_THE_JOURNAL)
    assert sorted(rows(journald, "MESSAGE", "SYSUP_WATCHER", "SYSUP_STREAM", "PRIORITY")) == [
        ("err", "web", "stderr", "4"),
        ("out", "web", "stdout", "6"),
    ]
    assert daemon.log() == ""
    assert ("out",) not in rows(journald, "MESSAGE", of="sysupd")


def test_a_stream_of_its_own_class_stays_there(
    app: App, journald: Journald, tmp_path: Path
) -> None:
    app.watcher("web", "echo out", f"stdout_stream.filename = {tmp_path}/log")
    app.run(*UNDER_THE_JOURNAL)
    assert (tmp_path / "log").read_bytes() == b"out\n"
    assert rows(journald, "MESSAGE") == []


@pytest.mark.parametrize("stream", ["1:2", "nonsense", ""])
def test_a_stream_that_is_not_the_journal_is_stdout(
    app: App, journald: Journald, stream: str
) -> None:
    """The variable is inherited by those whose output goes elsewhere."""
    app.watcher("web", "echo out", options="")
    daemon = app.run("env", f"JOURNAL_STREAM={stream}")
    assert "out" in daemon.log().splitlines()
    assert list(journald.entries()) == []


# ---- what sysupd says ------------------------------------------------------------------------


def said(journald: Journald, *matches: str) -> list[dict[str, bytes]]:
    """Entries of sysupd's own."""
    journald.sync()
    return list(journald.entries("SYSLOG_IDENTIFIER=sysupd", *matches))


def test_what_sysupd_says_has_fields(sysupd: Start, journald: Journald) -> None:
    ini = "[watcher:bad]\ncmd = false\n[watcher:web]\ncmd = sleep 1000\n"
    daemon = sysupd(ini, inside=[*journald.inside, *UNDER_THE_JOURNAL])
    first = until(lambda: said(journald, "SYSUP_EVENT=flapping"), "it crashed often")[0]
    assert re.match(rb"bad\.1: flapping, .*, next try in ", first["MESSAGE"])
    assert first["PRIORITY"] == b"4"
    assert first["SYSUP_APP"] == b"app"
    assert (first["SYSUP_WATCHER"], first["SYSUP_WID"]) == (b"bad", b"1")
    assert first["CODE_FILE"].endswith(b"log.py")
    assert first["_TRANSPORT"] == b"journal"
    assert daemon.stop() == 0
    entries = said(journald)
    assert {entry["_TRANSPORT"] for entry in entries} == {b"journal"}
    texts = [entry["MESSAGE"] for entry in entries]
    assert texts.index(b"app: 2 watchers") < texts.index(first["MESSAGE"])
    assert texts.index(first["MESSAGE"]) < texts.index(b"app: ending")
    (stop,) = said(journald, "SYSUP_WATCHER=web", "SYSUP_EVENT=stop")
    assert (stop["MESSAGE"], stop["PRIORITY"]) == (b"web: stop", b"6")


def test_a_wrong_config_is_an_error_in_the_journal(sysupd: Start, journald: Journald) -> None:
    ini = "[sysup]\nno_such_option = 1\n[watcher:web]\ncmd = sleep 1000\n"
    daemon = sysupd(ini, inside=[*journald.inside, *UNDER_THE_JOURNAL], wait=False)
    assert daemon.process.wait() == EX_CONFIG
    (found,) = said(journald)
    assert found["PRIORITY"] == b"3"
    assert b"no_such_option" in found["MESSAGE"]
    assert b"<3>" not in found["MESSAGE"]


def test_what_is_said_while_journald_is_away_comes_later(sysupd: Start, journald: Journald) -> None:
    """And holds nobody up, though its socket's queue is full."""
    ini = "[watcher:web]\ncmd = sleep 1000\n"
    daemon = sysupd(ini, inside=[*journald.inside, *UNDER_THE_JOURNAL])
    journald.stop()
    changes = 600
    for number in range(changes):
        daemon.call("set", name="web", options={"graceful_timeout": number + 1}, waiting=True)
    journald.start()
    until(lambda: len(said(journald, "SYSUP_EVENT=updated")) == changes, "all is stored")
    assert daemon.stop() == 0
    texts = [entry["MESSAGE"] for entry in said(journald)]
    assert texts.count(b"web: updated") == changes
    assert texts.index(b"app: 1 watcher") < texts.index(b"web: updated")
    assert texts[-1] in (b"web: stop", b"app: ending")
    assert not [text for text in texts if b"lost" in text]
