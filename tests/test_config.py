"""Files: syntax, includes, variables, sections, and what is told of mistakes."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sysup.config import (
    ConfigError,
    FlappingSpec,
    Level,
    Rlimit,
    SocketSpec,
    StopStage,
    WatcherSpec,
    parse,
)
from sysup.config.load import FOR_CIRCUS
from sysup.config.rules import ELSEWHERE
from sysup.config.specs import WATCHER_OPTIONS
from sysup.config.streams import STREAMS
from tests.config_files import MAIN, Files, errors, load, warnings, web, web_errors

# ---- the announcement


def test_first_founding_file() -> None:
    config = load(
        "[circus]\ncheck_delay = 5\nendpoint = tcp://127.0.0.1:5555\n\n"
        "[watcher:myprogram]\ncmd = myprogram\nrlimit_nofile = 500\n"
    )
    assert (config.app, config.path, config.circus) == ("app", MAIN, True)
    assert config.daemon.check_delay == 5.0
    assert config.daemon.endpoint == "tcp://127.0.0.1:5555"
    assert config.daemon.pubsub_endpoint == "tcp://127.0.0.1:5556"
    spec = config.watchers["myprogram"]
    assert spec.rlimits == (Rlimit("nofile", 500, 500),)
    assert spec == WatcherSpec("myprogram", cmd="myprogram", rlimits=spec.rlimits)


def test_second_founding_file() -> None:
    config = load(
        "[watcher:myprogram]\ncmd = myprogram\nnumprocesses = 100\n"
        "# will push in test.log the stream every 300 ms\n"
        "stdout_stream.class = FileStream\nstdout_stream.filename = myprogram.log\n"
        "stdout_stream.refresh_time = 0.3\n"
    )
    assert not config.circus
    assert config.daemon.endpoint is None
    assert config.problems == ()
    spec = config.watchers["myprogram"]
    assert spec.numprocesses == 100
    assert spec.stdout_stream is not None
    assert spec.stdout_stream.cls == "FileStream"
    wanted = {"filename": "myprogram.log", "refresh_time": 0.3, "max_line": 65536, "max_bytes": 0}
    assert wanted.items() <= spec.stdout_stream.options.items()


# ---- syntax


@pytest.mark.parametrize(
    ("line", "args"),
    [
        ("args = a b", "a b"),
        ("args=a", "a"),
        ("args : a", "a"),
        ("args = a ; comment", "a"),
        ("args = a;b ; c", "a;b ; c"),
        ("args = a # no comment", "a # no comment"),
        ("args = %(x)s", "%(x)s"),
        ("args = a = b : c", "a = b : c"),
        ("args =", ""),
        ('args = ""', ""),
        ('args = "a b"', '"a b"'),
        ("args = a\n  b\n\n# comment\n\tc", "a\nb\nc"),
        ("args = a\r", "a"),
        ("rem args = b\nREM args = c\n;args = d\nargs = a", "a"),
    ],
)
def test_values(line: str, args: str) -> None:
    assert web(line).args == args


def test_option_and_section_names_are_case_sensitive() -> None:
    assert web_errors("NumProcesses = 2") == [
        "3: [watcher:web] NumProcesses: unknown option (did you mean 'numprocesses'?)"
    ]
    assert errors("[Watcher:web]\ncmd = x") == [
        "1: [Watcher:web]: unknown section (did you mean 'watcher'?)"
    ]


def test_first_definition_wins_and_the_other_is_told() -> None:
    config = load(
        "[watcher:web]\ncmd = a\nargs = 1\nargs = 2\n  3\n[watcher:web]\ncmd = b\nnumprocesses=2"
    )
    spec = config.watchers["web"]
    assert (spec.cmd, spec.args, spec.numprocesses) == ("a", "1", 2)
    assert warnings(config) == [
        "4: [watcher:web] args: ignored: line 3 has set it already",
        "7: [watcher:web] cmd: ignored: line 2 has set it already",
    ]


def test_broken_lines_are_all_told() -> None:
    found = errors("cmd = a\n[watcher:web\n[watcher:web]\n  indented\nno separator\n= b\ncmd = x\n")
    assert found == [
        "1: no section before this line, such as [sysup]",
        "2: no section before this line, such as [sysup]",
        "4: [watcher:web]: an indented line continues a value: there is none above it",
        "5: [watcher:web]: 'no separator' is neither '[section]' nor 'name = value'",
        "6: [watcher:web]: '= b' is neither '[section]' nor 'name = value'",
    ]


def test_indented_comment_is_data_and_told() -> None:
    config = load("[watcher:web]\ncmd = a\n  # b")
    assert config.watchers["web"].cmd == "a\n# b"
    assert warnings(config) == ["2: [watcher:web] cmd: line 3 is no comment: it is indented"]


def test_nul_is_refused() -> None:
    assert web_errors("args = a\0b") == ["3: [watcher:web]: a NUL byte is not allowed"]


def test_default_section_feeds_what_knows_its_options() -> None:
    config = load(
        "[DEFAULT]\nnumprocesses = 3\nwarmup_delay = 1\nmine.x = 1\nrlimit_core = 0\n"
        "[sysup]\n[watcher:a]\ncmd = a\n[watcher:b]\ncmd = b\nnumprocesses = 1\n[env]\nX = 1"
    )
    a, b = config.watchers.values()
    assert (a.numprocesses, b.numprocesses) == (3, 1)
    assert config.daemon.warmup_delay == a.warmup_delay == 1
    assert a.free == {"mine.x": "1"}
    assert a.rlimits == (Rlimit("core", 0, 0),)
    assert a.env == {"X": "1"}
    assert errors("[DEFAULT]\nnumproceses = 1") == [
        "2: [DEFAULT] numproceses: unknown option (did you mean 'numprocesses'?)"
    ]


def test_sections_are_sorted_and_names_kept() -> None:
    config = load(
        "[watcher:b]\ncmd=x\n[watcher:A b]\ncmd=x\n[socket:S]\nport=1\n[socket:a]\nport=2"
    )
    assert list(config.watchers) == ["A b", "b"]
    assert list(config.sockets) == ["a", "s"]


def test_a_name_is_printable() -> None:
    assert errors("[watcher:caf\udce9]\ncmd=x") == [
        "1: [watcher:caf\udce9]: a name is of printable characters, in UTF-8"
    ]


def test_names_that_differ_by_case_alone() -> None:
    text = "[watcher:web]\ncmd=x\n[watcher:Web]\ncmd=x\n[socket:s]\nport=1\n[socket:S]\nport=2"
    assert errors(text) == [
        f"3: [watcher:Web]: there is a watcher of this name in {MAIN}:1",
        f"7: [socket:S]: there is a socket of this name in {MAIN}:5",
    ]


def test_empty_section_is_told() -> None:
    config = load("[watcher:web]\n")
    assert config.watchers == {}
    assert warnings(config) == ["1: [watcher:web]: is empty, and ignored"]


def test_sections_need_names() -> None:
    assert errors("[watcher:]\ncmd=x\n[watcher]\ncmd=x\n[env:]\nA=1") == [
        "1: [watcher:]: needs a name, as in [watcher:NAME]",
        "3: [watcher]: needs a name, as in [watcher:NAME]",
        "5: [env:]: needs a name, as in [env:NAME]",
    ]


# ---- files


def test_includes_come_after_the_main_file_and_drop_ins_override() -> None:
    config = load(
        "[sysup]\ninclude = one.ini conf/*.ini\ninclude_dir = dir\n[watcher:web]\ncmd = main\n",
        more={
            "one.ini": "[watcher:web]\ncmd = one\nargs = one\n",
            "conf/b.ini": "[watcher:web]\nargs = b\npriority = 2\n",
            "conf/a.ini": "[watcher:web]\npriority = 1\n",
            "dir/x.ini": "[watcher:x]\ncmd = x\n",
            "app.d/20.ini": "[watcher:web]\nargs = twenty\n",
            "app.d/10.ini": "[watcher:web]\nargs = ten\numask = 022\n",
        },
    )
    spec = config.watchers["web"]
    assert (spec.cmd, spec.args, spec.priority, spec.umask) == ("main", "twenty", 1, 0o22)
    assert list(config.watchers) == ["web", "x"]
    assert config.problems == ()


def test_include_that_cannot_be_read_is_told_where_it_is_asked_for() -> None:
    found = errors("[sysup]\ninclude = none.ini *.conf", more={"secret.conf": None})
    assert found == [
        "2: [sysup] include: cannot read /etc/sysup/none.ini: No such file or directory",
        "2: [sysup] include: cannot read /etc/sysup/secret.conf: Permission denied",
    ]


def test_include_without_match_and_nested_include_are_warnings() -> None:
    config = load(
        "[sysup]\ninclude = no*.ini a.ini\ninclude_dir = nodir",
        more={"a.ini": "[sysup]\ninclude = b.ini\n"},
    )
    assert [str(problem) for problem in config.problems] == [
        f"{MAIN}:2: [sysup] include: no file matches /etc/sysup/no*.ini",
        f"{MAIN}:3: [sysup] include_dir: no file matches /etc/sysup/nodir/*.ini",
        "/etc/sysup/a.ini:2: [sysup] include: ignored: only the main file includes others",
    ]


def test_problem_in_an_included_file_names_it() -> None:
    found = errors("[sysup]\ninclude = a.ini", more={"a.ini": "[watcher:a]\ncmd = a\nnice = x"})
    assert found == ["/etc/sysup/a.ini:3: [watcher:a] nice: 'x' is not a whole number"]


def test_missing_main_file() -> None:
    with pytest.raises(ConfigError, match=r"^/no\.ini: cannot read it: No such file"):
        parse("/no.ini", source=Files({}), environ={})


def test_file_that_is_not_text() -> None:
    class Binary(Files):
        def read(self, path: str) -> str:
            return b"\xff".decode()

    with pytest.raises(ConfigError, match="is not UTF-8"):
        parse(MAIN, source=Binary({}), environ={})


# ---- variables and environment


@pytest.mark.parametrize(
    ("line", "field", "value"),
    [
        ("args = $(circus.env.FOO)", "args", "7"),
        ("args = $(SYSUP.env.foo)-((circus.Env.FOO))", "args", "7-7"),
        ("args = $(circus.env.NONE) $(circus.wid)", "args", "$(circus.env.NONE) $(circus.wid)"),
        ("numprocesses = $(sysup.env.FOO)", "numprocesses", 7),
        ("rlimit_core = $(sysup.env.FOO)", "rlimits", (Rlimit("core", 7, 7),)),
        ("stop_signal = $(sysup.env.FOO)", "stop_signal", (StopStage(7),)),
        ("my.option = $(sysup.env.FOO)", "free", {"my.option": "7"}),
        ("flapping.attempts = $(sysup.env.FOO)", "flapping", FlappingSpec(attempts=7)),
        ("args = $(sysup.env.TWICE)", "args", "$(sysup.env.FOO)"),
    ],
)
def test_variables(line: str, field: str, value: object) -> None:
    assert getattr(web(line, {"FOO": "7", "TWICE": "$(sysup.env.FOO)"}), field) == value


def test_variables_of_a_watcher_come_before_those_of_the_daemon() -> None:
    config = load(
        "[watcher:a]\ncmd = $(sysup.env.X) $(sysup.env.Y)\nnumprocesses = $(sysup.env.N)\n"
        "[watcher:b]\ncmd = $(sysup.env.X)\n[socket:s]\nport = $(sysup.env.P)\n"
        "[env]\nX = every\nP = 90\n[env:a]\nX = mine\nN = 4\n",
        {"X": "daemon", "Y": "daemon"},
    )
    assert config.watchers["a"].cmd == "mine daemon"
    assert config.watchers["a"].numprocesses == 4
    assert config.watchers["b"].cmd == "every"
    assert config.sockets["s"].port == 90


def test_env_sections() -> None:
    config = load(
        "[watcher:a]\ncmd=x\n[watcher:b1]\ncmd=x\n[watcher:c]\ncmd=x\n"
        "[env:a,b*]\nA = 2\nB = 2\n[env]\nA = 1\nPATH = $HOME/bin:$home:$NONE:\n"
        "[env:b1]\nB = 3\nC = $(sysup.env.HOME)\n[env:zz]\nA = 9\n",
        {"HOME": "/root", "home": "no"},
    )
    path = "/root/bin:$home::"
    assert config.watchers["a"].env == {"A": "2", "B": "2", "PATH": path}
    assert config.watchers["b1"].env == {"A": "2", "B": "3", "C": "/root", "PATH": path}
    assert config.watchers["c"].env == {"A": "1", "PATH": path}
    assert warnings(config) == ["16: [env:zz]: is of no watcher"]


def test_include_takes_variables() -> None:
    config = parse(
        MAIN,
        source=Files({MAIN: "[sysup]\ninclude = $(sysup.env.D)/a", "/d/a": "[watcher:a]\ncmd=x"}),
        environ={"D": "/d"},
    )
    assert list(config.watchers) == ["a"]


# ---- problems


def test_all_problems_are_told_in_the_order_of_the_file() -> None:
    found = errors(
        "[sysup]\ncheck_dealy = 1\n[watcher:web]\nnumprocesses = x\nsingleton = y\n"
        "[socket:s]\nport = 70000\n"
    )
    assert found == [
        "2: [sysup] check_dealy: unknown option (did you mean 'check_delay'?)",
        "3: [watcher:web] cmd: missing: what is to be run?",
        "4: [watcher:web] numprocesses: 'x' is not a whole number",
        "5: [watcher:web] singleton: 'y' is neither yes nor no",
        "7: [socket:s] port: 70000 is more than 65535",
    ]


def test_options_that_do_not_go_together() -> None:
    assert web_errors("singleton = yes\nnumprocesses = 2") == [
        "4: [watcher:web] numprocesses: a singleton has 0 or 1"
    ]
    assert web_errors("restart = never\nrespawn = yes") == [
        "4: [watcher:web] respawn: is another name of 'restart': give one of them"
    ]
    config = load(
        "[watcher:web]\ncmd = x\nshell_args = y\nstdout_stream.filename=z\n"
        "stdout_stream.max_bytes = 10M"
    )
    assert warnings(config) == [
        "3: [watcher:web] shell_args: has no effect without shell = True",
        "5: [watcher:web] stdout_stream.max_bytes: has no effect without backup_count:"
        " the file never rotates",
    ]


# ---- streams


def test_streams() -> None:
    spec = web(
        "stdout_stream.class = FancyStdoutStream\nstdout_stream.color = RED\n"
        "stderr_stream.class = my.Stream\nstderr_stream.level = 3"
    )
    assert spec.stdout_stream is not None
    assert spec.stdout_stream.options["color"] == "red"
    assert spec.stdout_stream.options["time_format"] == "%Y-%m-%d %H:%M:%S"
    assert spec.stderr_stream is not None
    assert (spec.stderr_stream.cls, spec.stderr_stream.options) == ("my.Stream", {"level": "3"})


def test_stream_problems() -> None:
    assert web_errors("stdout_stream.class = FileStream\nstdout_stream.backup_cuont = 3") == [
        "1: [watcher:web] stdout_stream.filename: missing",
        "4: [watcher:web] stdout_stream.backup_cuont: FileStream has no such option"
        " (did you mean 'backup_count'?)",
    ]


# ---- Circus's files and ours


def test_what_circus_let_pass_is_a_warning_in_its_files() -> None:
    config = load(
        "[circus]\nstatsd = 1\nmulticast_endpoint = udp://237.219.251.97:12027\nold = 1\n"
        "[watcher:web]\ncmd = x $(circus.sockets.no)\nNumProcesses = 2\nmy.key = 1\n"
        "hooks.before_start = my.hook\nstdout_stream.class = QueueStream\nready = notify\n"
        "[plugin:p]\nuse = my.Plugin\n[other]\nx = 1\n"
    )
    assert [line.split(" ", 1)[0] for line in warnings(config)] == [
        *("3:", "4:", "6:", "7:", "9:", "11:", "13:", "14:"),
    ]
    spec = config.watchers["web"]
    assert spec.free == {"NumProcesses": "2", "my.key": "1"}
    assert spec.stdout_stream is not None
    assert (spec.stdout_stream.cls, spec.ready, spec.hooks) == ("QueueStream", "spawn", {})
    assert config.daemon.statsd is True


def test_defaults_that_are_off_are_no_news() -> None:
    config = load("[circus]\nstatsd = no\nhttpd = 0\nmulticast_endpoint =\nendpoint =\n")
    assert config.problems == ()
    assert config.daemon.endpoint is None


def test_flapping_plugin_sets_the_default() -> None:
    config = load(
        "[plugin:f]\nuse = circus.plugins.flapping.Flapping\nretry_in = 3\nattempts = 5\n"
        "[watcher:a]\ncmd=x\n[watcher:b]\ncmd=x\nflapping.attempts = 6\n"
    )
    assert config.flapping == FlappingSpec(retry_in=3.0, attempts=5)
    assert config.watchers["a"].flapping == config.flapping
    assert config.watchers["b"].flapping == FlappingSpec(retry_in=3.0, attempts=6)
    assert config.plugins == {}
    assert errors("[plugin:f]\nuse = circus.plugins.flapping.Flapping\nattemps = 3") == [
        "3: [plugin:f] attemps: unknown option (did you mean 'attempts'?)"
    ]
    assert errors("[plugin:p]\npriority = 1\n[plugin:q]\nuse = my.Plugin") == [
        "1: [plugin:p] use: missing",
        "4: [plugin:q] use: not supported yet; until then run it by circus-plugin in a watcher, as"
        " docs/circus.md shows",
    ]


@pytest.mark.parametrize(
    "endpoint", ["tcp://127.0.0.1:1", "tcp://localhost:65535", "tcp://[::1]:1", "ipc:///run/x"]
)
def test_endpoints(endpoint: str) -> None:
    config = load(f"[sysup]\nendpoint = {endpoint}")
    assert config.daemon.endpoint == endpoint
    told = [line for line in warnings(config) if "read-only" in line]
    assert len(told) == endpoint.startswith("tcp")


@pytest.mark.parametrize(
    ("endpoint", "message"),
    [
        ("tcp://0.0.0.0:1", "plain TCP is served on loopback only; use ipc://, or set curve_dir"),
        ("tcp://*:1", "plain TCP is served on loopback only"),
        ("tcp://127.0.0.1.evil.com:1", "plain TCP is served on loopback only"),
        ("tcp://127.0.0.1", "'tcp://127.0.0.1' is neither tcp://HOST:PORT nor ipc://PATH"),
        ("tcp://127.0.0.1:0", "0 is less than 1"),
        ("udp://x:1", "'udp://x:1' is neither"),
    ],
)
def test_endpoints_that_are_refused(endpoint: str, message: str) -> None:
    for option in ("endpoint", "pubsub_endpoint"):
        (found,) = errors(f"[circus]\n{option} = {endpoint}")
        assert found.startswith(f"2: [circus] {option}: {message}")


def test_tcp_with_keys_is_open_to_other_machines() -> None:
    text = "[sysup]\nendpoint = tcp://0.0.0.0:5555\ncurve_dir = /etc/sysup/keys"
    config = load(text)
    assert config.daemon.curve_dir == "/etc/sysup/keys"
    assert config.problems == ()
    (found,) = errors(f"{text}\ntcp_plain_role = read")
    assert found.startswith("4: [sysup] tcp_plain_role: has no effect with curve_dir")
    (found,) = errors("[sysup]\ncurve_dir = keys")
    assert found.startswith("2: [sysup] curve_dir: 'keys' is not an absolute path")


def test_plain_tcp_is_opened_knowingly() -> None:
    config = load("[sysup]\nendpoint = tcp://0.0.0.0:5555\ntcp_plain_role = admin")
    assert config.daemon.tcp_plain_role == "admin"
    assert config.problems == ()


def test_sockets() -> None:
    config = load(
        "[socket:Web]\nhost = ::1\nfamily = AF_INET6\numask = 022\n[socket:u]\npath = /run/u\n"
        "[watcher:w]\ncmd = x $(circus.sockets.WEB)\nstdin_socket = u\n"
    )
    assert config.sockets["web"] == SocketSpec("web", host="::1", family="AF_INET6", umask=0o22)
    assert config.sockets["u"] == SocketSpec("u", path="/run/u", family="AF_UNIX")
    assert errors("[socket:s]\nfamily = AF_UNIX\nso_reuseport = yes\nprot = 1") == [
        "1: [socket:s]: an AF_UNIX socket needs a path",
        "3: [socket:s] so_reuseport: not supported yet",
        "4: [socket:s] prot: unknown option (did you mean 'proto'?)",
    ]


def test_virtualenv_is_looked_up_when_the_file_is_read() -> None:
    site = "/v[1]/lib/python3.11/site-packages"
    tree: dict[str, str | None] = {
        site: None,
        f"{site}/a.pth": "# no\nimport os\nlib\n/abs\n",
        MAIN: "[watcher:w]\ncmd = x\ncopy_env = yes\nvirtualenv = /v[1]",
    }
    config = parse(MAIN, source=Files(tree), environ={})
    assert config.watchers["w"].python_path == (site, f"{site}/lib", "/abs")
    assert errors("[watcher:w]\ncmd = x\ncopy_env = 1\nvirtualenv = /v") == [
        "4: [watcher:w] virtualenv: /v is no virtual environment: there is no"
        " lib/python*/site-packages"
    ]


# ---- files from elsewhere


def test_what_others_call_it() -> None:
    assert errors("[program:web]\ncommand = x") == [
        "1: [program:web]: unknown section (did you mean 'watcher'?)"
    ]
    assert errors("[watcher:web]\ncmd = x\nuser = me\nautorestart = true\nenvironment = A=1") == [
        "3: [watcher:web] user: unknown option (here it is 'uid')",
        "4: [watcher:web] autorestart: unknown option (here it is 'restart')",
        "5: [watcher:web] environment: unknown option (variables have sections of their own: [env],"
        " [env:NAME])",
    ]


def test_every_name_from_elsewhere_leads_to_an_option() -> None:
    files = {
        f"{s}.{name}" for s in ("stdout_stream", "stderr_stream") for name in STREAMS["FileStream"]
    }
    assert not {*ELSEWHERE} & {*WATCHER_OPTIONS}
    assert {name.partition(" = ")[0] for name in ELSEWHERE.values()} <= {*WATCHER_OPTIONS, *files}


@pytest.mark.parametrize(
    "text",
    [
        "[watcher:w]\ncmd = x $(circus.sockets.web)\nnope = 1\n[socket:web]\nport = 1",
        "[watcher:w]\ncmd = x\nhooks.before_start = a.b",
        "[watcher:w]\ncmd = x\n[plugin:p]\nuse = circus.plugins.statsd.FullStats",
    ],
)
def test_a_file_of_circus_without_its_section_is_told_of_it(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(text)
    assert caught.value.problems[0].message == FOR_CIRCUS
    assert load(f"[circus]\ncheck_delay = 5\n{text}").circus
    for other in (f"[sysup]\ncheck_delay = 5\n{text}", "[watcher:w]\ncmd = x\nnope = 1"):
        with pytest.raises(ConfigError) as caught:
            load(other)
        assert FOR_CIRCUS not in {problem.message for problem in caught.value.problems}


@pytest.mark.parametrize(
    ("cmd", "strange"),
    [
        ("prog > /dev/null", ">"),
        ("prog 2>&1 | logger", "2>&1"),
        ("prog  # the web", "#"),
        ("prog '>' \"a | b\" x#y >x", None),
        ("prog '# no'", None),
    ],
)
def test_words_for_a_shell_are_remarked(cmd: str, strange: str | None) -> None:
    told = warnings(load(f"[watcher:w]\ncmd = {cmd}"))
    assert len(told) == (strange is not None)
    assert strange is None or told[0].startswith(f"2: [watcher:w] cmd: {strange} is an argument")
    assert warnings(load(f"[watcher:w]\ncmd = {cmd}\nshell = yes")) == []


def test_a_warning_may_be_labelled() -> None:
    (problem,) = load("[watcher:w]\ncmd = x > y").problems
    assert problem.labelled().startswith(f"{MAIN}:2: warning: [watcher:w] cmd: ")
    with pytest.raises(ConfigError) as caught:
        load("[watcher:w]\ncmd = x\nnope = 1")
    assert caught.value.problems[0].labelled() == str(caught.value.problems[0])


# ---- properties

_WORDS = """
    [circus] [sysup] [watcher:a] [watcher:A] [env] [env:a*] [socket:s] [plugin:p] [DEFAULT] cmd = :
    ; # include a.ini *.ini numprocesses 1 -1 1e9 $(circus.env.A) ((sysup.env.B)) $A stop_signal ' "
    TERM rlimit_nofile 1:2 stdout_stream.class FileStream stdout_stream.filename x endpoint yes ] [
    tcp://127.0.0.1:1 virtualenv copy_env flapping.attempts hooks.a use a.b cpu_affinity
    success_codes capabilities ready umask check.a notify_a my.x
"""
_words = st.sampled_from([*_WORDS.split(), "\0", "\t", ""])
_lines = st.lists(st.lists(_words, max_size=5).map(" ".join), max_size=12).map("\n".join)


@settings(deadline=None, max_examples=300)
@given(text=st.one_of(_lines, st.text()), more=st.one_of(_lines, st.text()))
@example(text="[env:[]\nA=1\n[watcher:a]\ncmd=x", more="")
@example(text="[sysup]\ninclude = [", more="")
def test_nothing_but_config_errors(text: str, more: str) -> None:
    env = {"A": "$(circus.env.B)", "B": "\0", "C": "x"}
    files: dict[str, str | None] = {"a.ini": more, "app.d/a.ini": more}
    try:
        problems, failed = load(text, env, files).problems, False
    except ConfigError as error:
        problems, failed = error.problems, True
    assert failed == any(problem.level is Level.ERROR for problem in problems)
    assert all(problem.message and str(problem) for problem in problems)
