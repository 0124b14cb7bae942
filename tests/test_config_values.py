"""Each kind of value, and the words for each that is wrong."""

from __future__ import annotations

import pytest

from sysup.config import FlappingSpec, Restart, Rlimit, StopStage
from tests.config_files import errors, load, web, web_errors


@pytest.mark.parametrize(
    ("line", "field", "value"),
    [
        ("respawn = no", "restart", Restart.NEVER),
        ("respawn = 1", "restart", Restart.ALWAYS),
        ("restart = On-Failure", "restart", Restart.ON_FAILURE),
        ("singleton = TRUE", "singleton", True),
        ("numprocesses = 0", "numprocesses", 0),
        ("graceful_timeout = 300ms", "graceful_timeout", 0.3),
        ("graceful_timeout = 2m", "graceful_timeout", 120.0),
        ("warmup_delay = .5", "warmup_delay", 0.5),
        ("backoff.delay = 2", "backoff_delay", 2.0),
        ("flapping.window = 2", "flapping", FlappingSpec(window=2.0)),
        ("on_give_up = exit", "flapping", FlappingSpec(on_give_up="exit")),
        ("stop_signal = QUIT", "stop_signal", (StopStage(3),)),
        ("stop_signal = sigusr1", "stop_signal", (StopStage(10),)),
        ("stop_signal = 9", "stop_signal", (StopStage(9),)),
        ("stop_signal = SIGRTMIN+1", "stop_signal", (StopStage(35),)),
        ("stop_signal = QUIT 30 TERM 5 KILL", "stop_signal", (StopStage(3, 30), StopStage(15, 5))),
        ("stop_signal = INT TERM 500ms", "stop_signal", (StopStage(2), StopStage(15, 0.5))),
        ("rlimit_nofile = 10:20", "rlimits", (Rlimit("nofile", 10, 20),)),
        ("rlimit_as = 1G", "rlimits", (Rlimit("as", 1 << 30, 1 << 30),)),
        ("rlimit_core =", "rlimits", (Rlimit("core", None, None),)),
        ("rlimit_core = 0:infinity", "rlimits", (Rlimit("core", 0, None),)),
        ("rlimit_core = -1", "rlimits", (Rlimit("core", None, None),)),
        ("umask = 027", "umask", 0o27),
        ("uid = www-data", "uid", "www-data"),
        ("uid =", "uid", None),
        ("uid = 0", "uid", "0"),
        ("groups = a, b", "groups", ("a", "b")),
        ("groups =", "groups", ()),
        ("success_codes = 0 3 SIGTERM", "success_codes", frozenset({0, 3, -15})),
        ("restart_prevent = 78,-9", "restart_prevent", frozenset({78, -9})),
        ("cpu_affinity = 0-2,5", "cpu_affinity", frozenset({0, 1, 2, 5})),
        ("capabilities = net_raw CAP_KILL", "capabilities", ("CAP_NET_RAW", "CAP_KILL")),
        ("capabilities =", "capabilities", ()),
        ("ready = uptime:2s", "ready", "uptime:2"),
        ("max_retry = -1", "max_retry", -1),
        ("on_demand = no", "on_demand", False),
    ],
)
def test_typed_values(line: str, field: str, value: object) -> None:
    assert getattr(web(line), field) == value


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("numprocesses = two", "'two' is not a whole number"),
        ("numprocesses = -1", "-1 is less than 0"),
        ("numprocesses = ", "'' is not a whole number"),
        ("numprocesses = auto", "not supported yet"),
        ("singleton = maybe", "'maybe' is neither yes nor no"),
        ("graceful_timeout = nan", "'nan' is not a number of seconds"),
        ("graceful_timeout = -1", "-1.0 is less than 0"),
        ("graceful_timeout = 1e999", "inf is not a number of seconds below 1e+09"),
        ("stop_signal = TREM", "unknown signal 'TREM' (did you mean 'TERM'?)"),
        ("stop_signal = 0", "'0' is not a signal: there are 1 to 64"),
        ("stop_signal = RTMIN+40", "'RTMIN+40' is not a signal: there are 1 to 64"),
        ("stop_signal =", "a signal is needed"),
        ("umask = 9", "'9' is not an octal mode (such as 022)"),
        ("uid = a b", "'a b' is neither a name nor a number"),
        ("uid = 4294967295", "4294967295 is too large for an id"),
        ("rlimit_nofile = 20:10", "the soft limit is above the hard limit, 10"),
        ("rlimit_nofile = infinity:10", "the soft limit is above the hard limit, 10"),
        ("rlimit_nofile = many", "'many' is not a size (such as 1048576 or 10M)"),
        ("rlimit_nofil = 1", "unknown option (did you mean 'rlimit_nofile'?)"),
        ("restart = often", "'often' is not one of always, on-failure, never"),
        ("cpu_affinity = 3-1", "'3-1' is not a range of CPUs below 4096"),
        ("capabilities = net_rw", "unknown capability 'net_rw' (did you mean 'CAP_NET_RAW'?)"),
        ("backoff.jitter = 2", "2.0 is not between 0 and 1"),
        ("ready = soon", "'soon' is neither spawn nor uptime:SECONDS"),
        ("ready = notify", "not supported yet"),
        ("ready = tcp:localhost:80", "not supported yet"),
        ("on_demand = yes", "not supported yet"),
        ("hooks.before_start = my.hook, true", "not supported yet"),
        ("hooks.before_strat = my.hook", "unknown option (did you mean 'hooks.before_start'?)"),
        ("hooks.before_start = 3", "'3' is not a dotted Python name, with `, true` after it if"),
        ("memory_max = 1G", "not supported yet"),
        ("memory_max = lots", "'lots' is not a size (such as 1048576 or 10M)"),
        ("check.http = x", "not supported yet"),
        ("flapping.atempts = 3", "unknown option (did you mean 'flapping.attempts'?)"),
        ("flapping.attempts = 0", "0 is less than 1"),
        ("numproceses = 3", "unknown option (did you mean 'numprocesses'?)"),
        ("zzz = 3", "unknown option"),
        ("env = A=1", "unknown option (variables have sections of their own: [env], [env:NAME])"),
        ("args = 'x", "cannot split it: no closing quotation"),
        ("copy_path = yes", "needs copy_env = True"),
        ("stdin = file", "'file' is not one of null, pipe, socket"),
        ("pty = yes\nclose_child_stdout = yes", "does not go with close_child_stdout: the term"),
        ("stdout_stream.class = FileStrem", "unknown stream class 'FileStrem' (did you mean"),
        ("stdout_stream.filname = x", "unknown option (did you mean 'stdout_stream.filename'?)"),
    ],
)
def test_what_is_wrong_with_a_value(line: str, message: str) -> None:
    option = line.split("=")[0].strip()
    assert web_errors(line)[-1].startswith(f"3: [watcher:web] {option}: {message}")


@pytest.mark.parametrize("line", ["stdin_socket = http", "args = --fd $(circus.sockets.http)"])
@pytest.mark.parametrize(
    ("sockets", "hint"),
    [("", "; it has to come from systemd"), ("[socket:htp]\nport = 1", " (did you mean 'htp'?)")],
)
def test_a_socket_that_is_not_in_the_file_may_come_from_systemd(
    line: str, sockets: str, hint: str
) -> None:
    (problem,) = load(f"[watcher:w]\ncmd = x\n{line}\n{sockets}").problems
    option = line.split("=")[0].strip()
    assert str(problem).endswith(f"[watcher:w] {option}: there is no socket 'http'{hint}")


@pytest.mark.parametrize("word", ["null", "pipe"])
def test_a_socket_goes_with_no_other_input(word: str) -> None:
    found = errors(
        f"[watcher:web]\ncmd = x\nstdin_socket = s\nstdin = {word}\n[socket:s]\nport = 1"
    )
    assert found == [f"3: [watcher:web] stdin_socket: does not go with stdin = {word}"]


def test_an_input_that_is_a_socket_says_which() -> None:
    assert web_errors("stdin = socket") == [
        "1: [watcher:web] stdin_socket: missing: which socket is stdin = socket?"
    ]
    spec = load("[watcher:w]\ncmd = x\nstdin = Socket\nstdin_socket = s\n[socket:s]\nport = 1")
    assert spec.watchers["w"].stdin == "socket"
