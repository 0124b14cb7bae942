"""The commands: their roles, their properties, their replies."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import warnings
from collections.abc import Coroutine, Iterator, Mapping
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sysup import __version__, commands, config, pace, reach
from sysup.commands import COMMANDS, OPERABLE
from sysup.config import Role
from sysup.machine import Want
from sysup.properties import Properties
from sysup.protocol import (
    AccessDenied,
    MessageError,
    Request,
    SysupError,
    UnknownCommand,
    Written,
)
from sysup.stdin import LIMIT
from sysup.table import RANK, Later, Soon
from sysup.watcher import Watcher
from tests.fakes import whole
from tests.world import World

READ, OPERATE, ADMIN = Role.READ, Role.OPERATE, Role.ADMIN

ROLES = {
    READ: {
        "diff",
        *("status", "list", "numprocesses", "numwatchers", "options", "get", "globaloptions"),
        *("listsockets", "stats", "dstats", "version", "commands", "listen", "show"),
    },
    OPERATE: {
        *("start", "stop", "restart", "reload", "incr", "decr", "signal", "kill"),
        *("tail", "logs", "send", "set"),
    },
    ADMIN: {"add", "rm", "reloadconfig", "upgrade", "quit", "ipython"},
}


class FakeApp:
    """An app with a few watchers; notes what it is asked for."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.watchers: dict[str, Watcher] = {}
        self.roster: Any = self
        self.asked: list[str] = []
        self.takeovers = 2
        self.saved: list[tuple[str, dict[str, Any]]] = []

    def have(self, name: str, **options: Any) -> Watcher:
        self.watchers[name.lower()] = self.world.watcher(name, **options)
        return self.watchers[name.lower()]

    def add(self, name: str, cmd: str, args: Any, options: Mapping[str, Any]) -> Watcher:
        spec = config.add(name, cmd, args, options)
        self.watchers[spec.name.lower()] = Watcher(self.world.board, spec)
        return self.watchers[spec.name.lower()]

    async def remove(self, watcher: Watcher, *, nostop: bool) -> None:
        self.asked.append(f"remove {watcher.name} nostop={nostop}")

    async def start_all(self) -> None:
        self.asked.append("start_all")

    async def stop_all(self, *, wait: bool) -> None:
        self.asked.append(f"stop_all wait={wait}")

    async def _reload(self) -> Mapping[str, Any]:
        return {"added": ["x"], "impacts": {}}

    changed_files: ClassVar[list[str]] = ["/etc/app.ini"]
    kept: ClassVar[dict[str, tuple[str, ...]]] = {"watcher:new": ("/etc/app.ini:3: wrong",)}

    async def plan_reload(self) -> Mapping[str, Any]:
        return {"removed": ["x"]}

    async def save(self, watcher: Watcher, options: Mapping[str, Any]) -> str:
        self.saved.append((watcher.name, dict(options)))
        return "/etc/app.d/90-saved.ini"

    async def differences(self) -> Mapping[str, Any]:
        both = {"config": {"A": "secret"}, "running": {"A": "secret2"}}
        return {"changed": {"web": {"env": both, "cmd": {"config": "a", "running": "b"}}}}

    def reload_config(self) -> Coroutine[Any, Any, Mapping[str, Any]]:
        return self._reload()

    async def _upgrade(self) -> Mapping[str, Any]:
        return {"from": "1", "to": "2"}

    def upgrade(self) -> Coroutine[Any, Any, Mapping[str, Any]]:
        return self._upgrade()

    def quit(self) -> None:
        self.asked.append("quit")

    async def ended(self) -> None:
        self.asked.append("ended")

    def options(self) -> Mapping[str, Any]:
        return {"check_delay": 5.0}

    def sockets(self) -> list[Mapping[str, Any]]:
        return [{"fd": 3, "name": "api"}]

    def own_stats(self) -> Any:
        return {"pid": 1}

    async def stats(self, watchers: list[Watcher]) -> dict[str, dict[str, Any]]:
        return {
            w.name: {str(body.process.pid): {"cpu": 0.0} for _, body in w.slots.bodies}
            for w in watchers
        }

    def ask(self, command: str, role: Role = ADMIN, **properties: Any) -> Mapping[str, Any]:
        """The reply to a client that waits."""
        result = COMMANDS.run(self, Request(command, properties), role)
        reply = self.world.run(result.work) if isinstance(result, Later) else result
        return {k: json.loads(v) if isinstance(v, Written) else v for k, v in reply.items()}


@pytest.fixture
def app(world: World) -> FakeApp:
    """`web` with two processes and `db` with one run; `Idle` doesn't."""
    app = FakeApp(world)
    app.have("web", numprocesses=2, env={"SECRET": "hush"})
    app.have("db")
    app.have("Idle", autostart=False)
    for name in ("web", "db"):
        app.ask("start", name=name)
    return app


def drop(result: Mapping[str, Any] | Later) -> Mapping[str, Any]:
    """The reply to who doesn't wait; the work is never begun."""
    if not isinstance(result, Later):
        return result
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of a coroutine inside of it
        result.work.close()
        reply = result.at_once
        del result
    return reply


# ---- roles -------------------------------------------------------------------------------


def test_each_command_has_its_role_and_a_line_of_help(app: FakeApp) -> None:
    assert {role: {n for n, c in COMMANDS.items() if c.role is role} for role in ROLES} == ROLES
    table = app.ask("commands", READ)["commands"]
    assert {name: row["role"] for name, row in table.items()} == {
        name: str(entry.role) for name, entry in COMMANDS.items()
    }
    assert all(row["help"].endswith(".") for row in table.values())


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("name", COMMANDS)
def test_a_role_may_what_its_rank_allows(app: FakeApp, name: str, role: Role) -> None:
    allowed = RANK[role] >= RANK[COMMANDS[name].role]
    if allowed:
        with contextlib.suppress(MessageError):
            drop(COMMANDS.run(app, Request(name, {}), role))
    else:
        with pytest.raises(AccessDenied, match=f"{name} needs the role '{COMMANDS[name].role}'"):
            COMMANDS.run(app, Request(name, {}), role)


def test_an_unknown_command(app: FakeApp) -> None:
    with pytest.raises(UnknownCommand, match="unknown command: 'nope'"):
        app.ask("nope", READ)


def test_environments_are_for_who_may_command(app: FakeApp) -> None:
    for role, value in ((READ, "(hidden)"), (OPERATE, "hush"), (ADMIN, "hush")):
        assert app.ask("options", role, name="web")["options"]["env"] == {"SECRET": value}
        reply = app.ask("get", role, name="web", keys=["env", "priority"])
        assert reply == {"options": {"env": {"SECRET": value}, "priority": 0}}


def test_what_only_ones_own_classes_understand_is_too(app: FakeApp) -> None:
    told = {"stdout_stream.class": "my.Stream", "stdout_stream.token": "hush"}
    app.ask("set", ADMIN, name="web", options={**told, "stdout_stream.filename": "x"})
    for role, value in ((READ, "(hidden)"), (OPERATE, "hush")):
        whole = {"class": "my.Stream", "token": value, "filename": "x"}
        keys = ["stdout_stream", "stdout_stream.token", "stdout_stream.class"]
        found = app.ask("get", role, name="web", keys=keys)["options"]
        assert found == dict(zip(keys, (whole, value, "my.Stream"), strict=True))
        options = app.ask("options", role, name="web")["options"]
        assert options["stdout_stream_conf"] == whole
        options = app.ask("show", role, name="web")["watcher"]["options"]
        assert options["stdout_stream_conf"] == whole


# ---- properties --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "good", "bad"),
    [
        ("text", {"a": "a", "": ""}, [1, True, [], {}, 1.5]),
        ("integer", {3: 3, -1: -1}, ["3", True, 1.5, []]),
        ("seconds", {3: 3.0, "1.5": 1.5, 0: 0.0}, ["x", -1, "nan", "inf", True, [], 10**400]),
        ("strings", {}, ["a", [1], {}, 3]),
        ("mapping", {}, ["a", [1], 3, True]),
        ("signum", {"term": 15, "SIGHUP": 1, 9: 9, "9": 9}, ["nope", 0, 99, True, [], 1.5]),
        ("pid", {7: 7, "7": 7}, ["x", True, 1.5, [], "7" * 5000]),
    ],
)
def test_properties_have_types(method: str, good: dict[Any, Any], bad: list[Any]) -> None:
    for value, read in good.items():
        assert getattr(Properties({"key": value}, READ), method)("key") == read
    for value in bad:
        with pytest.raises(MessageError, match="message invalid 'key' isn't"):
            getattr(Properties({"key": value}, READ), method)("key")


@pytest.mark.parametrize("method", ["text", "integer", "strings", "signum"])
def test_what_is_missing_is_named(method: str) -> None:
    for values in ({}, {"key": None}):
        with pytest.raises(MessageError, match="message invalid 'key' is missing"):
            getattr(Properties(values, READ), method)("key")


def test_what_may_be_missing() -> None:
    p = Properties({}, READ)
    assert (p.seconds("a"), p.pid(), p.mapping("a"), p.anything("a")) == (None, None, {}, None)
    assert (p.integer("a", 1), p.flag("a"), p.flag("a", True)) == (1, False, True)
    assert Properties({"a": ["b"]}, READ).strings("a") == ["b"]


def test_flags_may_be_text() -> None:
    for value, read in {"True": True, "no": False, 1: True, 0: False, "1": True}.items():
        assert Properties({"a": value}, READ).flag("a") is read


ANYTHING: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
LIKELY = st.sampled_from(["web", "idle", "w*", "(", "[a-", "regex", "glob", "simple", "9" * 400])
WORDS = (
    *("name", "match", "keys", "options", "option", "nb", "signum", "pid", "childpid", "child_pid"),
    *("children", "recursive", "graceful_timeout", "graceful", "sequential", "process", "cmd"),
    *("args", "start", "nostop", "waiting", "wid", "stream", "lines", "action"),
)


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    max_examples=300,
    deadline=None,
)
@given(
    command=st.sampled_from(sorted(COMMANDS)),
    properties=st.dictionaries(st.sampled_from(WORDS), LIKELY | ANYTHING),
)
def test_whatever_is_asked_only_sysup_errors_are_raised(
    app: FakeApp, command: str, properties: dict[str, Any]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of patterns that re may read otherwise
        warnings.simplefilter("ignore", DeprecationWarning)
        with contextlib.suppress(SysupError):
            json.dumps(drop(COMMANDS.run(app, Request(command, properties), ADMIN)))


# ---- sending -----------------------------------------------------------------------------


@pytest.fixture
def cat(app: FakeApp) -> Iterator[Watcher]:
    """A watcher of three processes that texts can be sent to."""
    watcher = app.have("cat", numprocesses=3, stdin="pipe")
    app.ask("start", name="cat")
    yield watcher
    for _, body in watcher.slots.bodies:
        assert body.stdin
        body.stdin.close()


def received(world: World) -> dict[int, bytes]:
    """What each process got since the last look."""
    return {pid: os.read(fd, 1 << 16) for pid, fd in world.os.inputs.items() if readable(fd)}


def readable(fd: int) -> bool:
    return bool(select.select([fd], [], [], 0)[0])


@pytest.mark.parametrize(
    ("properties", "data"),
    [
        ({"text": "one"}, b"one\n"),
        ({"text": "one\n"}, b"one\n"),
        ({"text": ""}, b"\n"),
        ({"text": "one\ntwo", "newline": False}, b"one\ntwo"),
        ({"text": "\0\u00e9\udcff", "newline": "no"}, b"\0\xc3\xa9\xff"),
    ],
)
def test_what_is_sent(
    app: FakeApp, world: World, cat: Watcher, properties: dict[str, Any], data: bytes
) -> None:
    reply = app.ask("send", OPERATE, name="CAT", **properties)
    assert reply == {"bytes": len(data), "processes": 3}
    assert received(world) == dict.fromkeys([104, 105, 106], data)


def test_who_is_sent_to(app: FakeApp, world: World, cat: Watcher) -> None:
    assert app.ask("send", name="cat", text="x", wid=2)["processes"] == 1
    assert received(world) == {105: b"x\n"}
    app.ask("send", name="cat", text="y", pid="106")
    assert received(world) == {106: b"y\n"}
    world.os.deaf.add(signal.SIGTERM)
    whole(reach.send_signal(cat.slots, signal.SIGUSR1))
    world.begin(cat.kill(104, None, None))
    assert app.ask("send", name="cat", text="z")["processes"] == 2
    assert received(world) == {105: b"z\n", 106: b"z\n"}
    app.ask("send", name="cat", text="z", wid=1)
    assert received(world) == {104: b"z\n"}


@pytest.mark.parametrize(
    ("properties", "reason"),
    [
        ({"name": "web"}, "cannot send to web: set stdin = pipe"),
        ({"name": "web", "wid": 1}, "cannot send to web: set stdin = pipe"),
        ({"name": "idle"}, "cannot send to Idle: set stdin = pipe"),
        ({"wid": 0}, "cannot send to cat: it has no process with wid 0"),
        ({"wid": 1, "pid": 105}, "cannot send to cat: it has no process with wid 1 and pid 105"),
        ({"text": None}, "message invalid 'text' is missing"),
        ({"text": "\udc00"}, "message invalid 'text' has a lone surrogate"),
        ({"wid": True}, "message invalid 'wid' isn't a whole number"),
        ({"text": "x" * (LIMIT + 1)}, "cannot send to cat.1: the text has 1048578 bytes, 0 bytes"),
    ],
)
def test_what_cannot_be_sent(
    app: FakeApp, world: World, cat: Watcher, properties: dict[str, Any], reason: str
) -> None:
    with pytest.raises(SysupError) as refused:
        app.ask("send", **{"name": "cat", "text": "x", **properties})
    assert str(refused.value).startswith(reason)
    assert received(world) == {}


def test_the_dead_and_the_stopped_get_nothing(app: FakeApp, world: World, cat: Watcher) -> None:
    world.os.die(105)
    world.loop.settle()
    assert app.ask("send", name="cat", text="x")["processes"] == 3  # one is new
    assert received(world) == {104: b"x\n", 105: b"", 106: b"x\n", 107: b"x\n"}
    app.ask("stop", name="cat")
    with pytest.raises(SysupError, match="cannot send to cat: it has no running process"):
        app.ask("send", name="cat", text="x")


def test_a_pipe_comes_with_the_next_process(app: FakeApp, world: World) -> None:
    web = app.watchers["web"]
    web.slots.replace_spec(config.with_option(web.spec, "stdin", "pipe"))
    with pytest.raises(SysupError, match="cannot send to web: it was started before stdin = pipe"):
        app.ask("send", name="web", text="x")


# ---- what is -----------------------------------------------------------------------------


def test_replies_about_what_is(app: FakeApp) -> None:
    assert app.ask("list") == {"watchers": ["db", "idle", "web"]}
    assert app.ask("list", name="WEB") == {"pids": [101, 102]}
    assert app.ask("numprocesses") == {"numprocesses": 3}
    assert app.ask("numprocesses", name="web") == {"numprocesses": 2, "watcher_name": "web"}
    assert app.ask("numwatchers") == {"numwatchers": 3}
    assert app.ask("version") == {"version": __version__, "takeovers": 2}
    assert app.ask("listsockets") == {"sockets": [{"fd": 3, "name": "api"}]}
    assert app.ask("dstats") == {"info": {"pid": 1}}
    assert app.ask("globaloptions") == {"options": {"check_delay": 5.0}}
    assert app.ask("globaloptions", option="check_delay") == {"options": {"check_delay": 5.0}}
    assert app.ask("ipython")["shell"] is False


def test_a_status_that_takes_long_is_the_same(
    app: FakeApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    reply = app.ask("status", processes=True)
    monkeypatch.setattr(pace, "TURN", -1)
    soon = COMMANDS.run(app, Request("status", {"processes": True}), ADMIN)
    assert isinstance(soon, Soon)
    later = app.world.run(soon.work)
    assert {*later} == {*reply}
    assert {*json.loads(later["watchers"])} == {*reply["watchers"]}


def test_status(app: FakeApp) -> None:
    reply = app.ask("status")
    assert reply["statuses"] == {"web": "active", "db": "active", "Idle": "stopped"}
    assert reply["watchers"]["web"]["ready"] == 2
    assert "processes" not in reply["watchers"]["web"]
    each = app.ask("status", processes=True)["watchers"]
    assert [row["pid"] for row in each["web"]["processes"]] == [101, 102]
    one = app.ask("status", name="IDLE")
    assert (one["status"], [*one["watchers"]]) == ("stopped", ["Idle"])


def test_stats(app: FakeApp) -> None:
    assert [*app.ask("stats")["infos"]] == ["web", "db", "Idle"]
    reply = app.ask("stats", name="web")
    assert (reply["name"], [*reply["info"]]) == ("web", ["101", "102"])
    assert app.ask("stats", name="web", process="102") == {"process": 102, "info": {"cpu": 0.0}}
    with pytest.raises(MessageError, match="process 103 not found in web"):
        app.ask("stats", name="web", process=103)


@pytest.mark.parametrize(
    ("command", "properties", "reason"),
    [
        ("status", {"name": "nope"}, "program nope not found"),
        ("options", {}, "'name' is missing"),
        ("get", {"name": "web", "keys": ["nope"]}, "unknown key 'nope'"),
        ("globaloptions", {"option": "nope"}, "'nope' isn't an option"),
        ("listen", {}, "use a pub/sub socket"),
        ("set", {"name": "web", "options": {"priority": "high"}}, "priority"),
        ("signal", {"name": "web"}, "'signum' is missing"),
        ("start", {"name": "w*", "match": "maybe"}, "glob, regex or simple"),
        ("start", {"name": "nope*"}, "program nope.* not found"),
    ],
)
def test_what_is_wrong_is_told(
    app: FakeApp, command: str, properties: dict[str, Any], reason: str
) -> None:
    with pytest.raises(MessageError, match=reason):
        app.ask(command, **properties)


# ---- matching ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("properties", "names"),
    [
        ({"name": "WEB"}, ["web"]),
        ({"name": "[wd]*"}, ["web", "db"]),
        ({"name": "I*"}, ["Idle"]),
        ({"name": "web", "match": "simple"}, ["web"]),
        ({"name": "W|D", "match": "regex"}, ["web", "db"]),
        ({"name": r"\Wx|\S{3}$", "match": "regex"}, ["web"]),
    ],
)
def test_names_match(app: FakeApp, properties: dict[str, Any], names: list[str]) -> None:
    assert [w.name for w in commands.match(app, Properties(properties, ADMIN))] == names


@pytest.mark.parametrize("pattern", ["(", "a{999999999999}", "(" * 5000 + ")" * 5000, "*"])
def test_what_is_no_pattern(app: FakeApp, pattern: str) -> None:
    with pytest.raises(MessageError, match="'name' isn't a pattern"):
        app.ask("start", name=pattern, match="regex")


def test_simple_is_no_pattern(app: FakeApp) -> None:
    with pytest.raises(MessageError, match=r"program w\* not found"):
        app.ask("start", name="w*", match="simple")


# ---- what is to be -----------------------------------------------------------------------


def test_one_watcher_tells_what_was_done(app: FakeApp) -> None:
    info = {"started": [104], "stopped": [103], "kept": []}
    assert app.ask("restart", name="db") == {"info": info}
    assert app.ask("reload", name="db")["info"]["started"] == [105]
    assert app.ask("reload", name="db", graceful=False)["info"]["started"] == [106]
    assert app.ask("stop", name="db") == {"info": None}
    assert app.ask("start", name="db")["info"]["started"] == [107]


def test_a_reload_waits_for_the_restart_before_it(app: FakeApp) -> None:
    loop = app.world.loop
    app.world.os.deaf = {15}
    restart = COMMANDS.run(app, Request("restart", {"name": "db"}), ADMIN)
    assert isinstance(restart, Later)
    restarted = app.world.begin(restart.work)
    assert app.watchers["db"].want is Want.DOWN
    reload = COMMANDS.run(app, Request("reload", {"name": "db"}), ADMIN)
    assert isinstance(reload, Later)
    reloaded = app.world.begin(reload.work)
    app.world.os.die(103, 0)
    loop.run_until_complete(restarted)
    assert loop.run_until_complete(reloaded)["info"]["started"] == [105], "after 104"


def test_what_is_stopped_cannot_be_reloaded(app: FakeApp) -> None:
    with pytest.raises(SysupError, match="Idle is stopped"):
        COMMANDS.run(app, Request("reload", {"name": "idle"}), ADMIN)


def test_several_watchers_tell_nothing_and_autostart_counts(app: FakeApp) -> None:
    assert app.ask("stop", name="*") == {}
    assert app.ask("start", name="*") == {}
    assert {n: w.want for n, w in app.watchers.items()} == {
        "web": Want.UP,
        "db": Want.UP,
        "idle": Want.DOWN,
    }
    assert app.ask("start", name="i*")["info"]["started"]
    assert app.ask("reload") == {}
    assert app.ask("restart", name="*") == {}
    assert app.watchers["idle"].want is Want.UP, "what was up is up again"


def test_without_a_name_it_is_all(app: FakeApp) -> None:
    app.ask("stop")
    app.ask("start")
    app.ask("stop", waiting=True)
    assert app.asked == ["stop_all wait=False", "start_all", "stop_all wait=True"]
    app.ask("stop", name="db")
    assert app.ask("restart") == {}
    assert (app.watchers["db"].want, app.watchers["idle"].want) == (Want.UP, Want.DOWN)


def test_one_that_fails_is_told_of_and_the_others_go_on(app: FakeApp) -> None:
    app.world.os.fails["db"] = "cannot execute db"
    with pytest.raises(SysupError, match="cannot replace db"):
        app.ask("reload")
    assert app.ask("list", name="web") == {"pids": [104, 105]}


def test_scaling(app: FakeApp) -> None:
    assert app.ask("incr", name="db") == {"numprocesses": 2}
    assert app.ask("incr", name="db", nb=2) == {"numprocesses": 4}
    assert app.ask("decr", name="db", nb=3) == {"numprocesses": 1}


def test_a_singleton_is_not_scaled_and_says_so_at_once(app: FakeApp) -> None:
    app.have("one", singleton=True)
    app.ask("start", name="one")
    as_it_is = {"numprocesses": 1, "singleton": True}
    for command in ("incr", "decr"):
        result = COMMANDS.run(app, Request(command, {"name": "one"}), ADMIN)
        assert isinstance(result, Later)
        assert result.at_once == app.world.run(result.work) == as_it_is
    assert app.ask("list", name="one") == {"pids": [104]}
    app.ask("set", name="one", options={"numprocesses": 0})
    assert app.ask("incr", name="one") == {"numprocesses": 0, "singleton": True}


def test_signals(app: FakeApp) -> None:
    one = {"processes": 1}
    assert app.ask("signal", name="web", signum="usr1", pid="102") == one
    assert app.ask("signal", name="web", signum=1, pid=101, children="true") == one
    assert app.ask("signal", name="web", signum=1, pid=101, child_pid=102) == one
    with pytest.raises(SysupError, match="900 is no child of a process of web"):
        app.ask("signal", name="web", signum=1, pid=101, childpid=900)
    with pytest.raises(SysupError, match="0 is no child"):
        app.ask("signal", name="web", signum=1, pid=101, childpid=0)
    assert app.ask("signal", name="web", signum=1, pid=999) == {"processes": 0}
    assert app.world.os.sent == [
        ("process", 102, 10),
        ("children", 101, 1),
        ("child", 102, 1),
        ("child", 900, 1),
        ("child", 0, 1),
    ]


def test_kill(app: FakeApp) -> None:
    done = app.ask("kill", name="web", pid=101, signum="INT", graceful_timeout="3")
    assert done == {"processes": 1}
    assert app.ask("list", name="web") == {"pids": [104, 102]}
    assert app.ask("kill", name="web", pid=101) == {"processes": 0}
    assert app.ask("kill", name="web") == {"processes": 2}


def test_set_tells_impacts_and_checks_before_it_answers(app: FakeApp) -> None:
    assert app.ask("set", name="db", options={"priority": 3}) == {"impacts": {"priority": "live"}}
    with pytest.raises(MessageError):
        COMMANDS.run(app, Request("set", {"name": "db", "options": {"nope": 1}}), ADMIN)
    with pytest.raises(MessageError, match="message invalid 'options' is missing"):
        COMMANDS.run(app, Request("set", {"name": "db", "option": {"priority": 4}}), ADMIN)


def test_what_is_to_be_saved(app: FakeApp) -> None:
    path = "/etc/app.d/90-saved.ini"
    asked: dict[str, Any] = {"options": {"priority": 3}, "save": True}
    assert app.ask("set", name="db", **asked) == {"impacts": {"priority": "live"}, "saved": path}
    assert app.ask("incr", name="db", save=True) == {"numprocesses": 2, "saved": path}
    assert app.ask("add", name="new", cmd="new", save=True) == {"saved": path}
    assert app.ask("decr", name="db") == {"numprocesses": 1}
    assert app.saved == [("db", {"priority": 3}), ("db", {"numprocesses": 2}), ("new", {})]
    with pytest.raises(AccessDenied, match="to save needs the role 'admin'"):
        app.ask("incr", OPERATE, name="db", save=True)
    app.world.os.fails["nope"] = "cannot execute nope"
    with pytest.raises(SysupError, match="cannot execute nope"):
        app.ask("set", name="db", options={"cmd": "nope"}, save=True)
    assert len(app.saved) == 3, "what does not work is not kept"


@pytest.mark.parametrize(("role", "value"), [(READ, "(hidden)"), (OPERATE, "secret")])
def test_a_difference_hides_what_its_options_hide(app: FakeApp, role: Role, value: str) -> None:
    changed = app.ask("diff", role)["changed"]["web"]
    assert changed["env"]["config"] == {"A": value}
    assert changed["cmd"] == {"config": "a", "running": "b"}


@pytest.mark.parametrize(
    "key",
    [
        *("cmd", "args", "executable", "shell", "uid", "gid", "env", "working_dir"),
        *("hooks.before_start", "stdout_stream.filename", "stderr_stream.class"),
        *("rlimit_nofile", "capabilities", "nope"),
    ],
)
def test_what_runs_is_set_by_admins_alone(app: FakeApp, key: str) -> None:
    options = {"priority": 3, key: "1"}
    with pytest.raises(AccessDenied, match=f"set '{key}' needs the role 'admin', you have 'oper"):
        COMMANDS.run(app, Request("set", {"name": "db", "options": options}), OPERATE)
    assert app.ask("get", name="db", keys=["priority"])["options"] == {"priority": 0}


def test_how_many_run_is_set_by_operators(app: FakeApp) -> None:
    options = {"numprocesses": 2, "flapping.attempts": 5, "backoff.max": 9.0, "priority": 3}
    app.ask("set", OPERATE, name="db", options=options)
    assert app.ask("get", name="db", keys=[*options])["options"] == options
    assert {*config.options(app.watchers["db"].spec), "respawn"} >= OPERABLE


def test_add_and_remove(app: FakeApp) -> None:
    assert app.ask("add", name="new", cmd="new", args=["a"]) == {}
    assert app.watchers["new"].want is Want.DOWN
    assert app.ask("add", name="more", cmd="more", start=True)["started"] == [104]
    assert app.ask("rm", name="new") == {}
    assert app.ask("rm", name="db", nostop=True) == {}
    assert app.asked == ["remove new nostop=False", "remove db nostop=True"]


def test_the_daemon(app: FakeApp) -> None:
    assert app.ask("reloadconfig") == {"added": ["x"], "impacts": {}}
    assert app.ask("reloadconfig", dry_run=True) == {"removed": ["x"]}
    assert app.ask("upgrade") == {"from": "1", "to": "2"}
    result = COMMANDS.run(app, Request("quit", {}), ADMIN)
    assert app.asked == ["quit"], "at once, though nobody waits"
    assert isinstance(result, Later)
    app.world.run(result.work)
    assert app.asked == ["quit", "ended"]
