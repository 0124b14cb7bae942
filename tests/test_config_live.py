"""A running daemon's config: get, set, add, diff; what a process is started with; the page."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from docs.config import page
from sysup.config import (
    FlappingSpec,
    Identity,
    Impact,
    Restart,
    Rlimit,
    StopStage,
    StreamSpec,
    WatcherSpec,
    add,
    command,
    diff,
    difference,
    environment,
    get,
    impact,
    options,
    with_option,
    with_options,
)
from sysup.config.declare import Option
from sysup.config.kinds import Choice, Flag, Later, Octal, Part, Seconds, Size, Whole
from sysup.config.specs import FAMILIES, WATCHER_OPTIONS
from sysup.config.values import Account, Codes, Cpus, Limit, Ready, Respawn, Stages
from sysup.protocol import Errno, MessageError, SysupError
from tests.config_files import load, web

SPEC = WatcherSpec("web", cmd="prog")

CIRCUS_OPTIONS = """
    numprocesses warmup_delay working_dir uid gid send_hup stop_signal stop_children shell
    shell_args env max_retry cmd args respawn graceful_timeout executable use_sockets priority
    copy_env singleton stdout_stream_conf on_demand stderr_stream_conf max_age max_age_variance
    close_child_stdin close_child_stdout close_child_stderr
"""


# ---- get and options


def test_options_have_the_shape_of_circus() -> None:
    spec = web(
        "stdout_stream.filename = /tmp/out.log\nflapping.attempts = 3\nfoo.bar = baz\n"
        "rlimit_nofile = 5:6\nrlimit_core =\nmax_age = 7"
    )
    shown = options(spec)
    assert set(CIRCUS_OPTIONS.split()) <= set(shown)
    assert shown["stop_signal"] == 15
    assert shown["uid"] is None
    assert shown["env"] == {}
    assert shown["respawn"] is True
    assert shown["foo.bar"] == "baz"
    assert shown["flapping.attempts"] == 3
    assert shown["rlimit_nofile"] == "5:6"
    assert shown["rlimit_core"] == "infinity"
    assert shown["stdout_stream_conf"] == {"class": "FileStream", "filename": "/tmp/out.log"}
    assert shown["stderr_stream_conf"] == {}
    assert "__name__" not in shown
    assert "memory_max" not in shown
    assert json.loads(json.dumps(shown)) == shown
    assert all(get(spec, key) == value for key, value in shown.items())


def test_get_of_what_is_not_set_and_what_is_not_there() -> None:
    spec = web("stdout_stream.class = my.Stream\nstdout_stream.level = 3")
    assert get(spec, "rlimit_nofile") is None
    assert get(spec, "memory_max") is None
    assert get(spec, "stdout_stream") == {"class": "my.Stream", "level": "3"}
    assert get(spec, "stdout_stream.class") == "my.Stream"
    assert get(spec, "stdout_stream.level") == "3"
    assert get(web("stdout_stream.filename=x"), "stdout_stream.max_line") == 65536
    for key in ("numproceses", "rlimit_nofil", "a.b", "stdout_stream.x", "", "rlimit_"):
        with pytest.raises(MessageError, match=f"^unknown key '{key}'") as caught:
            get(spec, key)
        assert caught.value.errno == Errno.MESSAGE_ERROR


# ---- set


@pytest.mark.parametrize(
    ("key", "value", "field", "wanted"),
    [
        ("numprocesses", 3, "numprocesses", 3),
        ("graceful_timeout", 3, "graceful_timeout", 3.0),
        ("stop_signal", 9, "stop_signal", (StopStage(9),)),
        ("stop_signal", "QUIT 3 TERM", "stop_signal", (StopStage(3, 3), StopStage(15))),
        ("respawn", False, "restart", Restart.NEVER),
        ("restart", "on-failure", "restart", Restart.ON_FAILURE),
        ("uid", 33, "uid", "33"),
        ("uid", None, "uid", None),
        ("uid", "", "uid", None),
        ("success_codes", "", "success_codes", frozenset()),
        ("args", ["a b", "c"], "args", ("a b", "c")),
        ("env", {"A": "1"}, "env", {"A": "1"}),
        ("flapping.attempts", 9, "flapping", FlappingSpec(attempts=9)),
        ("on_give_up", "exit", "flapping", FlappingSpec(on_give_up="exit")),
        ("rlimit_nofile", 500, "rlimits", (Rlimit("nofile", 500, 500),)),
        ("rlimit_nofile", "1:2", "rlimits", (Rlimit("nofile", 1, 2),)),
        ("rlimit_nofile", None, "rlimits", ()),
        ("cpu_affinity", [0, 2], "cpu_affinity", frozenset({0, 2})),
        (
            "stdout_stream",
            {"class": "my.S", "x": "1"},
            "stdout_stream",
            StreamSpec("my.S", {"x": "1"}),
        ),
        ("stdout_stream", {}, "stdout_stream", None),
        ("plugin.key", "x", "free", {"plugin.key": "x"}),
        ("hooks", {}, "hooks", {}),
        ("on_demand", False, "on_demand", False),
    ],
)
def test_set(key: str, value: object, field: str, wanted: object) -> None:
    assert getattr(with_option(SPEC, key, value), field) == wanted


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("numproceses", 1, "unknown key 'numproceses' (did you mean 'numprocesses'?)"),
        ("zzz", "x", "unknown key 'zzz'"),
        ("hooks.before_strat", "a.b", "unknown key 'hooks.before_strat' (did you mean"),
        ("numprocesses", "3", "numprocesses: '3' is not a whole number"),
        ("numprocesses", True, "numprocesses: True is not a whole number"),
        ("numprocesses", 1.5, "numprocesses: 1.5 is not a whole number"),
        ("numprocesses", -1, "numprocesses: -1 is less than 0"),
        ("numprocesses", None, "numprocesses: None is not a whole number"),
        ("graceful_timeout", "3", "graceful_timeout: '3' is not a number"),
        ("graceful_timeout", float("nan"), "graceful_timeout: nan is not a number of seconds"),
        ("graceful_timeout", 10**400, "graceful_timeout: 1000"),
        ("copy_env", 1, "copy_env: 1 is not a boolean"),
        ("cmd", 3, "cmd: 3 is not a string"),
        ("cmd", "", "cmd: missing: what is to be run?"),
        ("cmd", "a\0b", "cmd: a NUL byte is not allowed"),
        ("cmd", "\ud800", "cmd: not valid Unicode"),
        ("cmd", "'", "cmd: cannot split it: no closing quotation"),
        ("cmd", "a" * (1 << 17), "cmd: longer than 131071 characters: the kernel takes none"),
        ("args", "a " * (1 << 16), "args: longer than 131071 characters"),
        ("env", ["A=1"], "env: ['A=1'] is not an object"),
        ("env", {"A": 1}, "env: 1 is not a string"),
        ("env", {"A=B": "1"}, "env: 'A=B' cannot be the name of a variable"),
        ("stop_signal", "NOPE", "stop_signal: unknown signal 'NOPE'"),
        ("uid", 2**32, "uid: 4294967296 is too large for an id"),
        ("rlimit_nofile", "2:1", "rlimit_nofile: the soft limit is above the hard limit, 1"),
        ("stdout_stream", "x", "stdout_stream: 'x' is not an object"),
        ("stdout_stream", {"x": 1}, "stdout_stream.class: missing"),
        ("stdout_stream.max_bytes", 1, "stdout_stream.class: missing"),
        ("copy_path", True, "copy_path: needs copy_env = True"),
        ("virtualenv", "/v", "virtualenv: is set in the file alone"),
        ("memory_max", 5, "memory_max: not supported yet"),
        ("hooks", {"before_start": "a.b"}, "hooks: not supported yet"),
        ("hooks.before_start", "a.b", "hooks.before_start: not supported yet"),
        ("ready", "notify", "ready: not supported yet"),
    ],
)
def test_set_refuses(key: str, value: object, message: str) -> None:
    with pytest.raises(MessageError) as caught:
        with_option(SPEC, key, value)
    assert str(caught.value).startswith(message)


def test_set_of_one_option_of_a_stream_keeps_the_others() -> None:
    spec = web("stdout_stream.filename = a\nstdout_stream.max_bytes = 10M")
    spec = with_option(spec, "stdout_stream.backup_count", 3)
    assert get(spec, "stdout_stream") == {
        "class": "FileStream",
        "filename": "a",
        "max_bytes": 10 << 20,
        "backup_count": 3,
    }


def test_several_options_are_checked_together() -> None:
    spec = with_option(SPEC, "numprocesses", 3)
    both = {"singleton": True, "numprocesses": 1}
    assert with_options(spec, both).singleton
    with pytest.raises(MessageError, match="a singleton has 0 or 1"):
        with_option(spec, "singleton", True)


def test_add() -> None:
    spec = add(
        "New one",
        "prog",
        ["-x", "a b"],
        {"rlimit_nofile": 9, "env": {"A": "1"}, "stdout_stream": {"filename": "f"}, "uid": "me"},
        flapping=FlappingSpec(attempts=8),
    )
    assert (spec.name, spec.cmd, spec.args, spec.uid) == ("New one", "prog", ("-x", "a b"), "me")
    assert spec.rlimits == (Rlimit("nofile", 9, 9),)
    assert spec.flapping.attempts == 8
    assert get(spec, "stdout_stream") == {"class": "FileStream", "filename": "f"}
    assert add("a", "prog", None).args == ""


@pytest.mark.parametrize(
    ("name", "cmd", "more", "message"),
    [
        ("", "x", None, "'' cannot be a watcher's name"),
        ("a\nb", "x", None, "'a\\nb' cannot be a watcher's name"),
        (3, "x", None, "3 cannot be a watcher's name"),
        ("a", None, None, "cmd: None is not a string"),
        ("a", " ", None, "cmd: missing"),
        ("a", "x", [1], "[1] is not an object"),
        ("a", "x", {"nope": 1}, "unknown key 'nope'"),
    ],
)
def test_add_refuses(name: Any, cmd: Any, more: Any, message: str) -> None:
    with pytest.raises(MessageError) as caught:
        add(name, cmd, None, more)
    assert str(caught.value).startswith(message)


_seconds = st.floats(0, 1e6).map(repr) | st.sampled_from(["300ms", "5s", "2m", ".5"])
_names = st.from_regex(r"[a-z_][a-z0-9_-]{0,8}", fullmatch=True)
_signals = st.sampled_from(["TERM", "sigint", "9", "RTMIN+3", "SIGRTMAX-2"])
_limits = st.sampled_from(["", "infinity"]) | st.integers(0, 10**12).map(str)


def _whole(kind: Any) -> st.SearchStrategy[str]:
    low = -(10**6) if kind.low is None else kind.low
    return st.integers(low, 10**6 if kind.high is None else kind.high).map(str)


_BY_KIND: dict[type, st.SearchStrategy[str]] = {
    Flag: st.sampled_from(["yes", "NO", "True", "0"]),
    Respawn: st.sampled_from(["on", "off"]),
    Seconds: _seconds,
    Part: st.floats(0, 1).map("{:.3f}".format),
    Size: st.sampled_from(["1", "10K", "2m", "3GiB"]),
    Octal: st.sampled_from(["0", "022", "0777"]),
    Stages: st.lists(st.tuples(_signals, _seconds).map(" ".join), min_size=1).map(" ".join),
    Codes: st.lists(st.integers(-64, 255).map(str) | _signals).map(" ".join),
    Cpus: st.sampled_from(["0", "0-3,8", "1 2"]),
    Ready: st.just("spawn") | _seconds.map("uptime:{}".format),
    Account: _names | st.integers(0, 2**32 - 2).map(str),
}


def _texts(option: Option) -> st.SearchStrategy[str]:
    """Valid text for an option; where its kind has no rule, a word."""
    if isinstance(option.kind, Whole):
        return _whole(option.kind)
    if isinstance(option.kind, Choice):
        return st.sampled_from(sorted(option.kind.values))
    if option.name == "capabilities":
        return st.sampled_from(["", "net_raw", "CAP_KILL chown"])
    return _BY_KIND.get(type(option.kind), _names)


SETTABLE = [
    option
    for option in WATCHER_OPTIONS.values()
    if option.where == "file and wire" and not isinstance(option.kind, Later)
]


@settings(deadline=None, max_examples=400)
@given(data=st.data())
def test_what_a_file_says_is_got_and_can_be_set(data: st.DataObject) -> None:
    option = data.draw(st.sampled_from(SETTABLE))
    text = data.draw(_texts(option))
    if option.name == "stdin_socket":
        config = load(f"[watcher:web]\ncmd=x\nstdin_socket={text}\n[socket:{text}]\nport=1")
        spec = config.watchers["web"]
    else:
        more = "copy_env = yes\n" if option.name == "copy_path" else ""
        if text == "socket":
            more = "stdin_socket = s\n[socket:s]\nport = 1\n[watcher:web]\n"
        spec = load(f"[watcher:web]\n{option.name} = {text}\n{more}cmd = x").watchers["web"]
    value = json.loads(json.dumps(get(spec, option.name)))
    for other in (SPEC, with_option(SPEC, "numprocesses", 7)):
        changes = json.loads(json.dumps(difference(other, spec)))
        assert with_options(other, changes) == spec
    needed = spec.stdin_socket if spec.stdin == "socket" else None
    base = WatcherSpec("web", cmd="x", copy_env=spec.copy_env, stdin_socket=needed)
    assert with_option(base, option.name, value) == spec


@given(data=st.data())
def test_rlimits_are_got_and_can_be_set(data: st.DataObject) -> None:
    soft = data.draw(_limits)
    text = data.draw(st.sampled_from([soft, f"{soft}:infinity"]))
    spec = web(f"rlimit_core = {text}")
    value = json.loads(json.dumps(get(spec, "rlimit_core")))
    assert with_option(SPEC, "rlimit_core", value).rlimits == spec.rlimits
    assert Limit().text(text) == (spec.rlimits[0].soft, spec.rlimits[0].hard)


# ---- impact and diff


@pytest.mark.parametrize(
    ("key", "wanted"),
    [
        ("numprocesses", Impact.SCALE),
        ("rlimit_nofile", Impact.LIMITS),
        ("cmd", Impact.RELOAD),
        ("stdout_stream", Impact.RELOAD),
        ("stdout_stream.filename", Impact.RELOAD),
        ("flapping.attempts", Impact.LIVE),
        ("respawn", Impact.LIVE),
        ("my.key", Impact.LIVE),
    ],
)
def test_impact(key: str, wanted: Impact) -> None:
    assert impact(key) is wanted


def test_diff() -> None:
    old = load(
        "[watcher:a]\ncmd=a\n[watcher:b]\ncmd=b\nmax_age = 3\nmy.key = 1\nrlimit_core = 0\n"
        "[watcher:c]\ncmd=c\n[socket:s]\nport=1\n[socket:t]\nport=1\n"
    )
    new = load(
        "[sysup]\ncheck_delay = 1\n[watcher:b]\ncmd=b\nflapping.attempts = 3\nmy.other = 1\n"
        "rlimit_core = 1\nrlimit_nofile = 1\nrestart = never\nstdout_stream.filename = x\n"
        "[watcher:c]\ncmd=c\n[watcher:d]\ncmd=d\n[socket:t]\nport=2\n[env:b]\nX=1\n"
    )
    changes = diff(old, new)
    assert changes
    assert (changes.added, changes.removed) == (("d",), ("a",))
    assert changes.changed == {
        "b": {
            *("max_age", "my.key", "my.other", "flapping.attempts", "rlimit_core", "rlimit_nofile"),
            *("restart", "stdout_stream", "env"),
        }
    }
    assert changes.sockets.removed == ("s",)
    assert changes.sockets.changed == {"t": {"port"}}
    assert changes.daemon == {"check_delay"}
    assert not diff(new, new)


# ---- what a process is started with


@pytest.mark.parametrize(
    ("lines", "argv"),
    [
        ("args = -p $(circus.wid) '$(sysup.env.X) y'", ["prog", "-p", "7", "1 y"]),
        ("args = $(circus.sockets.Web-1) ((sysup.wid))", ["prog", "5", "7"]),
        (
            "args = $(circus.sockets.no) $(circus.no)",
            ["prog", "$(circus.sockets.no)", "$(circus.no)"],
        ),
        ("args = $(sysup.numprocesses) $(circus.uid)x", ["prog", "1", "x"]),
        ("args = $(circus.working_dir)", ["prog", "/ours"]),
        ("args = $(circus.working_dir)\nworking_dir = /its", ["prog", "/its"]),
        ("args = $(circus.rlimits.nofile)\nrlimit_nofile = 9:10", ["prog", "9"]),
        ("shell = yes\nargs = > 'a b' | c", ["/bin/sh", "-c", "prog > 'a b' | c"]),
        ("shell = yes\nshell_args = a 'b c'", ["/bin/sh", "-c", "prog", "a", "b c"]),
    ],
)
def test_command(lines: str, argv: list[str]) -> None:
    config = load(f"[circus]\n[watcher:w]\ncmd = prog\n{lines}\n[env]\nX=1")
    assert command(config.watchers["w"], 7, {"web-1": 5}, "/ours") == argv


def test_command_of_added_watchers() -> None:
    assert command(add("a", "p x", ["b c", "$(sysup.wid)"]), 1, {}) == ["p", "x", "b c", "1"]
    shell = add("a", "p", ["b c"], {"shell": True})
    assert command(shell, 1, {}) == ["/bin/sh", "-c", "p 'b c'"]
    with pytest.raises(SysupError, match="cannot split cmd: no closing quotation"):
        command(WatcherSpec("a", cmd="'"), 1, {})
    with pytest.raises(SysupError, match="cannot run cmd: it is empty"):
        command(WatcherSpec("a", cmd=" "), 1, {})


DAEMON = {"PATH": "/bin", "LANG": "C", "SECRET": "x", "PYTHONPATH": "/p"}
ME = Identity("me", "/home/me", "/bin/zsh")


def test_environment_of_ours_is_clean_but_complete() -> None:
    spec = WatcherSpec("a", cmd="x", env={"A": "1", "HOME": "/mine"})
    env = environment(spec, circus=False, environ=DAEMON, identity=ME, extra={"LISTEN_FDS": "1"})
    assert env == {
        **{"PATH": "/bin", "LANG": "C", "A": "1", "HOME": "/mine", "SHELL": "/bin/zsh"},
        **{"USER": "me", "LOGNAME": "me", "LISTEN_FDS": "1"},
    }
    assert environment(SPEC, circus=False, environ={}).keys() == {"PATH"}


def test_environment_of_circus_is_what_the_file_says() -> None:
    spec = WatcherSpec("a", cmd="x", env={"A": "1"})
    assert environment(spec, circus=True, environ=DAEMON, identity=ME) == {"A": "1"}
    copied = WatcherSpec("a", cmd="x", env={"A": "1"}, copy_env=True, copy_path=True)
    env = environment(copied, circus=True, environ=DAEMON, sys_path=["", "/lib"])
    assert env == {**DAEMON, "A": "1", "PYTHONPATH": "/lib:/p"}


def test_environment_of_a_virtualenv() -> None:
    spec = WatcherSpec("a", cmd="x", copy_env=True, virtualenv="/v", python_path=("/v/s",))
    env = environment(spec, circus=True, environ=DAEMON)
    assert env == {
        **DAEMON,
        **{"PATH": "/v/bin:/bin", "PYTHONPATH": "/v/s:/p", "VIRTUAL_ENV": "/v"},
    }


# ---- the whole


def test_the_reference_page_is_up_to_date() -> None:
    committed = Path(__file__).parents[1] / "docs" / "config.md"
    assert committed.read_text() == page(), "run: python -m docs.config > docs/config.md"


def test_the_reference_page_has_every_option() -> None:
    names = [*WATCHER_OPTIONS, *(f"{family.prefix}NAME" for family in FAMILIES)]
    assert [name for name in names if f"`{name}`" not in page()] == []


def test_a_thousand_watchers_are_read_quickly() -> None:
    lines = "numprocesses = 3\nstdout_stream.filename = /x.log\nrlimit_nofile = 5\nuid = nobody"
    text = "".join(
        f"[watcher:w{n}]\ncmd = p $(circus.env.N) $(circus.wid)\n{lines}\n[env:w{n}]\nN = {n}\n"
        for n in range(1000)
    )
    before = time.process_time()
    config = load(text)
    assert time.process_time() - before < 1.0
    assert config.watchers["w7"].cmd == "p 7 $(circus.wid)"
