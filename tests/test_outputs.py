"""What the commands about output tell: tail, logs, show."""

from __future__ import annotations

from functools import partial

import pytest

from sysup.config import Role, StreamSpec
from sysup.outputs import last_lines
from sysup.protocol import Incomplete, MessageError, SysupError
from sysup.streams import Losses
from sysup.watcher import Watcher
from tests.test_commands import FakeApp
from tests.world import World

FILE = StreamSpec("FileStream", {"filename": "/log/web"})


@pytest.fixture
def app(world: World) -> FakeApp:
    """`web` with two processes that write a file, and `db` that doesn't."""
    app = FakeApp(world)
    app.have("web", numprocesses=2, stdout_stream=FILE, stderr_stream=FILE, env={"A": "hush"})
    app.have("db")
    for name in ("web", "db"):
        app.ask("start", name=name)
    for pid, streams in world.pump.streams.items():
        streams[0].text = b"a\nb\n%d\n" % pid
    return app


@pytest.mark.parametrize(
    ("data", "number", "last"),
    [
        (b"", 3, b""),
        (b"a\nb\nc\n", 2, b"b\nc\n"),
        (b"a\nb\nc", 2, b"b\nc"),
        (b"a\n\n\n", 2, b"\n\n"),
        (b"a\nb\n", 9, b"a\nb\n"),
        (b"\n", 1, b"\n"),
        (b"a\n", 0, b""),
        (b"a", 0, b""),
    ],
)
def test_the_last_lines(data: bytes, number: int, last: bytes) -> None:
    assert last_lines(data, number) == last


def test_tail(app: FakeApp) -> None:
    tails = app.ask("tail", Role.OPERATE, name="WEB", lines=2)["tails"]
    assert [(t["wid"], t["pid"], t["stream"], t["data"], t["at"]) for t in tails] == [
        (1, 101, "stdout", "b\n101\n", 8),
        (1, 101, "stderr", "", 0),
        (2, 102, "stdout", "b\n102\n", 8),
        (2, 102, "stderr", "", 0),
    ]
    (one,) = app.ask("tail", name="web", wid=2, stream="stdout")["tails"]
    assert one["data"] == "a\nb\n102\n"


@pytest.mark.parametrize(
    ("properties", "reason"),
    [
        ({}, "'name' is missing"),
        ({"name": "web", "wid": 3}, "there is no process 3 of web"),
        ({"name": "web", "wid": -1}, "'wid' is below 0"),
        ({"name": "web", "stream": "stdin"}, "'stream' isn't stdout or stderr"),
        ({"name": "web", "lines": "3"}, "'lines' isn't a whole number"),
    ],
)
def test_a_wrong_tail(app: FakeApp, properties: dict[str, object], reason: str) -> None:
    with pytest.raises(MessageError, match=reason):
        app.ask("tail", Role.ADMIN, **properties)


def test_where_none_runs_it_is_the_last_one(app: FakeApp) -> None:
    app.world.os.fails["db"] = "cannot execute"
    app.world.os.die(103, 1, b"last words")
    app.world.loop.settle()
    assert [t["data"] for t in app.ask("tail", name="db")["tails"]] == ["last words", ""]
    app.ask("stop", name="db")
    assert [t["pid"] for t in app.ask("tail", name="db")["tails"]] == [103, 103]
    del app.world.os.fails["db"]
    app.ask("start", name="db")
    assert [t["pid"] for t in app.ask("tail", name="db")["tails"]] == [104, 104]


def done(app: FakeApp, name: str) -> list[str]:
    """What was done to the sinks of a place."""
    return [what for sink in app.world.pump.sinks if sink.name == name for what in sink.done]


def test_logs(app: FakeApp) -> None:
    assert app.ask("logs", Role.OPERATE, action="rotate", name="web") == {"files": ["/log/web"]}
    assert done(app, "/log/web") == ["rotate"], "once, though two streams share it"
    assert app.ask("logs", action="reopen") == {"files": ["/log/web"]}
    assert app.ask("logs", action="reopen", name="db") == {"files": []}
    assert done(app, "/log/web") == ["rotate", "reopen"]
    (sink,) = {sink for sink in app.world.pump.sinks if sink.done}
    for reason in ("cannot write /log/web: No space left on device", ""):
        sink.reason = reason
        sink.reopens = bool(reason)
        with pytest.raises(Incomplete) as failure:
            app.ask("logs", action="reopen")
        told = reason or "cannot open /log/web: that takes longer than 3 s"
        assert (str(failure.value), failure.value.fields) == (told, {"files": []})
    for name, reason in (("db", "it writes no file"), ("idle", "its file is not open")):
        app.have("idle", stdout_stream=FILE)
        with pytest.raises(SysupError, match=f"cannot rotate {name}: {reason}"):
            app.ask("logs", action="rotate", name=name)
    for properties in ({}, {"action": "burn"}, {"action": "rotate"}):
        with pytest.raises(MessageError):
            app.ask("logs", Role.ADMIN, **properties)


def test_show(app: FakeApp) -> None:
    watcher: Watcher = app.watchers["web"]
    app.world.pump.sinks[0].reason = "cannot write /log/web: disk full"
    app.world.os.die(102, 3, b"oh no")
    app.world.loop.settle()
    watcher.slots.generations._on_loss("stdout", Losses(dropped_lines=3, dropped_bytes=40))
    watcher.slots.generations._on_loss("stdout", Losses(dropped_lines=1, dropped_bytes=2))
    shown = app.ask("show", name="web")["watcher"]
    assert {**shown, **watcher.describe()} == shown
    assert shown["options"]["numprocesses"] == 2
    assert "graceful_timeout" not in shown["options"]
    assert shown["streams"][0] == {
        "stream": "stdout",
        "class": "FileStream",
        "to": "/log/web",
        "failure": "cannot write /log/web: disk full",
        "bytes": 8,
        "dropped_lines": 4,
        "dropped_bytes": 42,
        "suppressed_lines": 0,
        "suppressed_bytes": 0,
    }
    assert shown["deaths"] == [
        {
            "wid": 2,
            "pid": 102,
            "exit_code": 3,
            "reason": "exit code 3",
            "ago": 0.0,
            "last_output": "oh no",
        }
    ]
    assert app.world.told("output_lost")[1] == {
        "stream": "stdout",
        "dropped_lines": 1,
        "dropped_bytes": 2,
        "suppressed_lines": 0,
        "suppressed_bytes": 0,
    }
    assert app.ask("show", name="db")["watcher"]["streams"][1]["to"] == "stderr of sysupd"


def test_where_nobody_writes_is_told(app: FakeApp) -> None:
    app.have("odd", close_child_stdout=True, stderr_stream=StreamSpec("my.Stream", {}))
    shown = app.ask("show", name="odd")["watcher"]
    assert [stream["to"] for stream in shown["streams"]] == [None, "my.Stream"]
    assert (shown["deaths"], shown["processes"]) == ([], [])


def test_the_role_read_sees_no_output(app: FakeApp) -> None:
    app.world.os.die(102, 3, b"oh no")
    app.world.loop.settle()
    ask = partial(app.ask, "status", processes=True)
    for role, word in ((Role.READ, "(hidden)"), (Role.OPERATE, "oh no")):
        for reply in (ask(role), ask(role, name="web")):
            outputs = [row["last_output"] for row in reply["watchers"]["web"]["processes"]]
            assert outputs == [None, word]
        shown = app.ask("show", role, name="web")["watcher"]
        assert shown["deaths"][0]["last_output"] == word
        assert (shown["options"]["env"]["A"] == "hush") == (role is Role.OPERATE)


def test_a_rotation_is_told(world: World) -> None:
    watcher = world.watcher()
    world.run(watcher.start())
    watcher.slots.generations.moulds[0]._on_rotated("/log/web")
    assert world.told("sink_rotated") == [{"path": "/log/web"}]


def test_a_terminal_has_both_streams(app: FakeApp) -> None:
    app.have("chatty", pty=True)
    streams = app.ask("show", name="chatty")["watcher"]["streams"]
    assert [stream["to"] for stream in streams] == ["stdout of sysupd", "the terminal of stdout"]
