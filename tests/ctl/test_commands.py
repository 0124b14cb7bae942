"""What each command asks and prints, and how it ends."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from docs import sysupctl
from sysup.protocol import Incomplete, MessageError, SysupError
from tests.canned import CannedDaemon, Gone, Reply

from .conftest import Run
from .states import BROKEN, WEB, status_of


def refusing(error: SysupError | Exception) -> Reply:
    def refuse(message: dict[str, Any]) -> None:
        raise error

    return refuse


def rows(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


# ---- status ------------------------------------------------------------------------------


def test_status_is_a_line_for_each_watcher(daemon: CannedDaemon, ctl: Run) -> None:
    daemon.replies["status"] = status_of(web=WEB, db={**WEB, "restarts": 3, "reason": "killed"})
    code, out, err = ctl("status")
    assert (code, err) == (0, "")
    assert rows(out) == [
        ["NAME", "STATE", "READY", "PID", "UPTIME", "RESTARTS", "RETRY", "REASON"],
        ["db", "active", "2/2", "-", "1h02m", "3", "-", "killed"],
        ["web", "active", "2/2", "-", "1h02m", "0", "-", "-"],
    ]
    assert len({line.index("active") for line in out.splitlines()[1:]}) == 1
    assert daemon.request()["properties"] == {"processes": True}


def test_status_tells_what_they_take(daemon: CannedDaemon, ctl: Run) -> None:
    daemon.replies["status"] = status_of(web=WEB, broken=BROKEN)
    info = {"ctime": "1:30.00", "age": 900.0, "mem_info1": "1.5M"}
    gone = "No such process (stopped?)"
    daemon.replies["stats"] = {"infos": {"web": {"812": info, "813": info}, "broken": {"9": gone}}}
    head, broken, *_, web = (line.split() for line in ctl("status").out.splitlines())
    at = head.index("CPU%")
    assert head[at : at + 2] == ["CPU%", "MEM"]
    assert web[at : at + 2] == ["20.0", "3.0M"]
    assert broken[at : at + 2] == ["-", "-"]
    assert "20.0" not in ctl("status", "--json").out
    daemon.replies["status"] = {"status": "active", "watchers": {"web": WEB}}
    daemon.replies["stats"] = {"name": "web", "info": {"812": info}}
    rows = [line.split() for line in ctl("status", "web").out.splitlines()[1:]]
    assert [row[at : at + 2] for row in rows] == [["10.0", "1.5M"], ["10.0", "1.5M"], ["-", "-"]]


def test_what_is_wrong_is_told_with_the_last_words(daemon: CannedDaemon, ctl: Run) -> None:
    daemon.replies["status"] = status_of(web={**WEB, "problem": "disk full"}, broken=BROKEN)
    code, out, _ = ctl("status")
    assert code == 3
    assert out.splitlines()[1:] == [
        "broken  flapping  0/1    -    -       17        7s     exit code 1",
        "    | Traceback",
        "    | ImportError: \\x1b[2Jno module",
        "web     active    2/2    -    1h02m   0         -      -",
        "    disk full",
    ]


def test_what_does_not_follow_the_config_is_marked(daemon: CannedDaemon, ctl: Run) -> None:
    web = {**WEB, "config_problem": "/a.ini:3: [watcher:web] x: one\n/a.ini:4: \x1btwo"}
    kept = {"watcher:web": ["told"], "watcher:new\x1b": ["/a.ini:7: wrong"], "socket:s": ["a", "b"]}
    daemon.replies["status"] = {"statuses": {}, "watchers": {"web": web}, "kept": kept}
    code, out, err = ctl("status")
    assert code == 0, "it runs"
    assert out.splitlines()[2:] == [
        "    keeps its old config: /a.ini:3: [watcher:web] x: one",
        "    keeps its old config: /a.ini:4: \\x1btwo",
    ]
    assert err == (
        "hint: [watcher:new\\x1b] is not followed: /a.ini:7: wrong\n"
        "hint: [socket:s] is not followed: a; b\n"
    )


@pytest.mark.parametrize("flags", ["", "--dry-run"])
def test_a_reload_in_part_tells_both(daemon: CannedDaemon, ctl: Run, flags: str) -> None:
    done = {"added": ["new"], "removed": [], "changed": {}, "kept": {"watcher:web": ["why"]}}
    reason = "cannot take all of the config over: watcher web stays as it is: why"
    daemon.replies["reloadconfig"] = refusing(Incomplete(reason, done))
    assert ctl("reloadconfig", *flags.split()) == (
        1,
        "add   new          started if it starts by itself\n"
        "keep  watcher:web  not as in the files\n",
        f"error: {reason}\n",
    )
    shown = json.loads(ctl("reloadconfig", *flags.split(), "--json").out)
    assert (shown["status"], shown["kept"]) == ("error", done["kept"])


def test_one_watcher_is_shown_with_its_processes(daemon: CannedDaemon, ctl: Run) -> None:
    daemon.replies["status"] = {"status": "active", "watchers": {"web": WEB}}
    code, out, _ = ctl("status", "web")
    assert code == 0
    assert [row[:5] for row in rows(out)[2:]] == [
        ["web.1", "running", "-", "812", "1h02m"],
        ["web.2", "running", "-", "813", "1h02m"],
    ]
    assert daemon.request()["properties"] == {"name": "web", "processes": True}
    daemon.replies["status"] = status_of(web=WEB)
    assert ctl("status", "--processes").out == out


@pytest.mark.parametrize(
    ("change", "among_all", "by_name"),
    [
        ({}, 0, 0),
        ({"state": "starting"}, 3, 3),
        ({"state": "failed"}, 3, 3),
        ({"ready": 1}, 3, 3),
        ({"state": "done", "ready": 0}, 0, 0),
        ({"state": "stopped", "ready": 0, "want": "down"}, 0, 3),
        ({"numprocesses": 0, "ready": 0}, 0, 0),
    ],
)
def test_status_exits_by_what_is_wanted(
    daemon: CannedDaemon, ctl: Run, change: dict[str, Any], among_all: int, by_name: int
) -> None:
    daemon.replies["status"] = status_of(web={**WEB, **change}, db=WEB)
    assert ctl("status").code == among_all
    daemon.replies["status"] = {"status": "x", "watchers": {"web": {**WEB, **change}}}
    assert ctl("status", "web").code == by_name


def test_status_of_nothing(daemon: CannedDaemon, ctl: Run) -> None:
    daemon.replies["status"] = status_of()
    code, out, err = ctl("status")
    assert (code, len(out.splitlines())) == (0, 1)
    assert err == "hint: there are no watchers: add a [watcher:NAME] to the config\n"


def test_status_of_a_daemon_of_circus(daemon: CannedDaemon, ctl: Run) -> None:
    daemon.replies["status"] = {"statuses": {"web": "active", "db": "stopped"}}
    assert ctl("status") == (3, "db: stopped\nweb: active\n", "")
    daemon.replies["status"] = {"status": "active"}
    assert ctl("status", "web") == (0, "web: active\n", "")


def test_status_can_not_be_told(daemon: CannedDaemon, ctl: Run) -> None:
    daemon.replies["status"] = refusing(MessageError("program web not found"))
    daemon.replies["list"] = {"watchers": []}
    assert ctl("status", "web").code == 4
    daemon.close()
    assert ctl("status").code == 4


# ---- what a command asks, and what it says -----------------------------------------------

INFO = {"info": {"started": [812, 813], "stopped": [700], "kept": []}}
WAIT = {"waiting": True}

CASES: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    # command line; the request's properties; fields of the reply; what is printed
    ("list", {}, {"watchers": ["db", "web app"]}, "db\nweb app\n"),
    ("list web", {"name": "web"}, {"pids": [812, 813]}, "812\n813\n"),
    ("numprocesses", {}, {"numprocesses": 7}, "7\n"),
    ("numprocesses web", {"name": "web"}, {"numprocesses": 2, "watcher_name": "web"}, "2\n"),
    ("numwatchers", {}, {"numwatchers": 3}, "3\n"),
    ("options web", {"name": "web"}, {"options": {"b": 1, "a": "x"}}, "a: x\nb: 1\n"),
    ("get web a b", {"name": "web", "keys": ["a", "b"]}, {"options": {"a": None}}, "a: null\n"),
    ("globaloptions", {}, {"options": {"check_delay": 5}}, "check_delay: 5\n"),
    ("globaloptions x", {"option": "x"}, {"options": {"x": 5}}, "x: 5\n"),
    ("start", WAIT, {}, "started\n"),
    ("start web", {"name": "web", **WAIT}, INFO, "web: started 812, 813; stopped 700\n"),
    ("start w* --match glob", {"name": "w*", "match": "glob", **WAIT}, {}, "w*: started\n"),
    ("start web --no-wait", {"name": "web"}, {}, "ok\n"),
    ("start web --waiting", {"name": "web", **WAIT}, INFO, "web: started 812, 813; stopped 700\n"),
    ("stop web", {"name": "web", **WAIT}, {"info": None}, "web: stopped\n"),
    ("stop", WAIT, {}, "stopped\n"),
    ("restart", WAIT, {}, "restarted\n"),
    ("restart web", {"name": "web", **WAIT}, INFO, "web: started 812, 813; stopped 700\n"),
    ("reload", WAIT, {}, "reloaded\n"),
    (
        "reload web --sequential --terminate",
        {"name": "web", "sequential": True, "graceful": False, **WAIT},
        INFO,
        "web: started 812, 813; stopped 700\n",
    ),
    ("incr web", {"name": "web", "nb": 1, **WAIT}, {"numprocesses": 4}, "web: 4 processes\n"),
    ("decr web 3", {"name": "web", "nb": 3, **WAIT}, {"numprocesses": 1}, "web: 1 process\n"),
    (
        "incr web 2 --waiting",
        {"name": "web", "nb": 2, **WAIT},
        {"numprocesses": 1, "singleton": True},
        "web: 1 process (singleton)\n",
    ),
    ("incr web --no-wait", {"name": "web", "nb": 1}, {}, "ok\n"),
    ("signal web hup", {"name": "web", "signum": "HUP"}, {}, "ok\n"),
    ("signal web 812 9", {"name": "web", "pid": 812, "signum": 9}, {}, "ok\n"),
    (
        "signal web --children --recursive SIGUSR1",
        {"name": "web", "signum": "SIGUSR1", "children": True, "recursive": True},
        {},
        "ok\n",
    ),
    (
        "send web hello 'my world'",
        {"name": "web", "text": "hello my world", **WAIT},
        {"bytes": 15, "processes": 2},
        "web: 15 bytes to 2 processes\n",
    ),
    (
        "send web --wid 2 --pid 812 --no-newline --eof --no-wait -- -x",
        {"name": "web", "text": "-x", "wid": 2, "pid": 812, "newline": False, "eof": True},
        {"bytes": 1, "processes": 1},
        "web: 1 byte to 1 process\n",
    ),
    (
        "send web --eof",
        {"name": "web", "text": "", "newline": False, "eof": True, **WAIT},
        {"bytes": 0, "processes": 1},
        "web: 0 bytes to 1 process\n",
    ),
    (
        "signal web hup",
        {"name": "web", "signum": "HUP"},
        {"processes": 2},
        "web: 2 processes signalled\n",
    ),
    ("kill web", {"name": "web", **WAIT}, {"processes": 1}, "web: 1 process ended\n"),
    ("kill web", {"name": "web", **WAIT}, {}, "ok\n"),
    (
        "kill web 812 --signum quit --graceful_timeout 1.5 --no-wait",
        {"name": "web", "pid": 812, "signum": "QUIT", "graceful_timeout": 1.5},
        {},
        "ok\n",
    ),
    (
        "add web sleep 1000",
        {"name": "web", "cmd": "sleep 1000", "options": {}, "start": False},
        {},
        "web: added, and stopped until it is started\n",
    ),
    (
        "add --start --option numprocesses=2 --option uid=1000 web sh -c 'a b' --json",
        {
            "name": "web",
            "cmd": "sh -c 'a b' --json",
            "options": {"numprocesses": 2, "uid": "1000"},
            "start": True,
            **WAIT,
        },
        {"started": [812], "kept": []},
        "web: started 812\n",
    ),
    (
        "add --start --no-wait web 'sleep $(circus.wid)'",
        {"name": "web", "cmd": "sleep $(circus.wid)", "options": {}, "start": True},
        {},
        "ok\n",
    ),
    ("rm web", {"name": "web", **WAIT}, {}, "web: removed\n"),
    ("rm web --nostop", {"name": "web", "nostop": True, **WAIT}, {}, "web: removed\n"),
    ("reloadconfig", WAIT, {}, "ok\n"),
    (
        "reloadconfig",
        WAIT,
        {"added": ["a", "b"], "removed": [], "changed": {"web": ["cmd", "uid"]}},
        "add   a              started if it starts by itself\n"
        "add   b              started if it starts by itself\n"
        "live  web: cmd, uid  used when it is next needed\n",
    ),
    (
        "reloadconfig --dry-run",
        {"dry_run": True},
        {
            "added": [],
            "removed": ["old"],
            "changed": {"web": ["cmd", "priority"], "job": ["numprocesses"]},
            "impacts": {
                "web": {"cmd": "reload", "priority": "live"},
                "job": {"numprocesses": "scale"},
            },
            "sockets": {"added": ["b"], "removed": [], "changed": ["a"]},
            "sysup": {"now": ["check_delay"], "restart": ["pidfile"]},
        },
        "remove  old                 its processes are stopped\n"
        "reload  web: cmd, priority  processes are replaced, gracefully\n"
        "scale   job: numprocesses   processes are started or stopped\n"
        "socket  b added             bound\n"
        "socket  a changed           watchers that use it are restarted\n"
        "sysup   check_delay         holds from now on\n"
        "sysup   pidfile             holds after a restart of sysupd\n",
    ),
    (
        "reloadconfig --dry-run",
        {"dry_run": True},
        {"added": [], "removed": [], "changed": {}},
        "nothing differs from what was read before\n",
    ),
    (
        "incr web --save",
        {"name": "web", "nb": 1, "save": True, **WAIT},
        {"numprocesses": 4, "saved": "/x\x1b"},
        "web: 4 processes\nsaved in /x\\x1b\n",
    ),
    (
        "add --save web sleep 1000",
        {"name": "web", "cmd": "sleep 1000", "options": {}, "start": False, "save": True},
        {"saved": "/x"},
        "web: added, and stopped until it is started\nsaved in /x\n",
    ),
    (
        "diff",
        {},
        {
            "changed": {
                "web": {
                    "numprocesses": {"config": 1, "running": 3},
                    "umask": {"config": None, "running": 7},
                }
            },
            "added": ["job"],
            "removed": ["old"],
            "saved": {"web": ["numprocesses", "priority"]},
        },
        "WATCHER  OPTION        CONFIG  RUNNING\n"
        "web      numprocesses  1       3\n"
        "web      umask         -       7\n"
        "added at run time: job\n"
        "removed at run time: old\n"
        "saved: web (numprocesses, priority)\n",
    ),
    (
        "diff",
        {},
        {"changed": {}, "added": [], "removed": [], "saved": {}},
        "what runs is what the config says\n",
    ),
    ("quit", WAIT, {}, "stopped\n"),
    ("quit --no-wait", {}, {}, "ok\n"),
]


@pytest.mark.parametrize(("line", "asked", "reply", "printed"), CASES)
def test_a_command_asks_and_tells(
    daemon: CannedDaemon,
    ctl: Run,
    line: str,
    asked: dict[str, Any],
    reply: dict[str, Any],
    printed: str,
) -> None:
    words = shlex.split(line)
    daemon.replies[words[0]] = reply
    assert ctl(*words) == (0, printed, "")
    request = daemon.request()
    assert (request["command"], request["properties"]) == (words[0], asked)


def test_set_sends_values_of_the_types_that_are_there(daemon: CannedDaemon, ctl: Run) -> None:
    daemon.replies["options"] = {"options": {"numprocesses": 1, "cmd": "sleep 1", "shell": False}}
    daemon.replies["set"] = {"impacts": {"numprocesses": "scale", "x": "new"}}
    done = ctl("set", "web", "numprocesses", "3", "cmd", "42", "shell", "yes", "max_retry", "-1")
    assert done == (
        0,
        "numprocesses: changed, and processes started or stopped\nx: new\n",
        "",
    )
    assert daemon.request()["command"] == "options"
    assert daemon.request()["properties"] == {
        "name": "web",
        "options": {"numprocesses": 3, "cmd": "42", "shell": True, "max_retry": -1},
        "waiting": True,
    }


def test_set_for_good(daemon: CannedDaemon, ctl: Run) -> None:
    daemon.replies["options"] = {"options": {"umask": None}}
    daemon.replies["set"] = {"impacts": {}, "saved": "/etc/sysup/app.d/90-saved.ini"}
    done = ctl("set", "web", "umask", "22", "--save")
    assert done.out == "ok\nsaved in /etc/sysup/app.d/90-saved.ini\n"
    daemon.request()
    assert daemon.request()["properties"]["save"] is True


def test_a_start_that_leaves_nothing_running_shows_why(daemon: CannedDaemon, ctl: Run) -> None:
    daemon.replies["start"] = {"info": {"started": [], "stopped": [], "kept": []}}
    daemon.replies["status"] = {"status": "active", "watchers": {"web": BROKEN}}
    code, out, _ = ctl("start", "web")
    assert code == 1
    assert "ImportError" in out
    daemon.replies["status"] = {"status": "active", "watchers": {"web": WEB}}
    assert ctl("start", "web") == (0, "web: nothing to do\n", "")


@pytest.mark.parametrize(
    ("args", "reply"),
    [
        (["restart", "web"], {"info": {"started": [], "stopped": [700], "kept": []}}),
        (["add", "--start", "web", "nope"], {"started": [], "kept": []}),
        (["incr", "web"], {"numprocesses": 3}),
    ],
)
def test_a_change_after_which_nothing_comes_up_fails_and_shows_why(
    daemon: CannedDaemon, ctl: Run, args: list[str], reply: dict[str, Any]
) -> None:
    daemon.replies[args[0]] = reply
    daemon.replies["status"] = {"status": "active", "watchers": {"web": BROKEN}}
    code, out, _ = ctl(*args)
    assert code == 1
    assert "ImportError" in out


def test_scaling_what_is_stopped_says_that_it_is(daemon: CannedDaemon, ctl: Run) -> None:
    down = {**WEB, "state": "stopped", "want": "down", "ready": 0, "processes": []}
    daemon.replies["incr"] = {"numprocesses": 3}
    daemon.replies["status"] = {"status": "stopped", "watchers": {"web": down}}
    assert ctl("incr", "web") == (0, "web: 3 processes once it is started\n", "")


def test_a_process_that_there_is_not_can_not_be_reached(daemon: CannedDaemon, ctl: Run) -> None:
    daemon.replies["signal"] = daemon.replies["kill"] = {"processes": 0}
    assert ctl("signal", "web", "7", "HUP") == (1, "", "error: web has no process 7\n")
    assert ctl("kill", "web") == (1, "", "error: web has no process\n")


def test_a_name_that_is_taken_is_not_suggested(daemon: CannedDaemon, ctl: Run) -> None:
    daemon.replies["add"] = refusing(MessageError("program web already exists"))
    daemon.replies["list"] = {"watchers": ["web"]}
    assert ctl("add", "web", "true").err == "error: program web already exists\n"


def test_quit_is_done_when_the_daemon_is_gone(daemon: CannedDaemon, ctl: Run) -> None:
    daemon.replies["quit"] = refusing(Gone())
    assert ctl("quit") == (0, "stopped\n", "")


PROCESS = {
    "pid": 812,
    "wid": 1,
    "username": "www",
    "nice": 0,
    "mem_info1": "1.4M",
    "mem_info2": "2.4M",
    "cpu": 0.5,
    "mem": 0.1,
    "ctime": "0:00.0",
    "age": 61.2,
    "cmdline": "sleep",
    "children": [{"pid": 900, "cmdline": "cat"}],
}
STATS_ROW = ["www", "0", "1.4M", "2.4M", "0.5", "0.1", "0:00.0", "1m01s", "sleep"]


@pytest.mark.parametrize(
    ("args", "asked", "reply"),
    [
        ((), {}, {"infos": {"web": {"812": PROCESS}}}),
        (("web",), {"name": "web"}, {"name": "web", "info": {"812": PROCESS}}),
        (
            ("web", "812", "--extended"),
            {"name": "web", "process": 812, "extended": True},
            {"process": 812, "info": PROCESS},
        ),
    ],
)
def test_stats(
    daemon: CannedDaemon,
    ctl: Run,
    args: tuple[str, ...],
    asked: dict[str, Any],
    reply: dict[str, Any],
) -> None:
    daemon.replies["stats"] = reply
    code, out, _ = ctl("stats", *args)
    assert code == 0
    assert rows(out)[1] == ["web.1", "812", *STATS_ROW]
    assert rows(out)[2][:2] + rows(out)[2][-1:] == ["web", "900", "cat"]
    assert daemon.request()["properties"] == asked


def test_stats_of_what_is_gone(daemon: CannedDaemon, ctl: Run) -> None:
    daemon.replies["stats"] = {"infos": {"web": {"812": "No such process (stopped?)"}}}
    assert "No such process (stopped?)" in ctl("stats").out


def test_dstats(daemon: CannedDaemon, ctl: Run) -> None:
    daemon.replies["dstats"] = {"info": {**PROCESS, "wid": 1}}
    assert rows(ctl("dstats").out)[1][1:] == ["812", *STATS_ROW]
    daemon.replies["dstats"] = {
        "info": {**PROCESS, "loop_blocked": 0.0312, "loop_blocked_lately": 0.004}
    }
    assert ctl("dstats").out.splitlines()[-1:] == ["blocked at most 31 ms, lately 4 ms"]


def test_listsockets(daemon: CannedDaemon, ctl: Run) -> None:
    daemon.replies["listsockets"] = {
        "sockets": [
            {"fd": 7, "name": "s1", "backlog": 2048, "host": "127.0.0.1", "port": 80},
            {"fd": 8, "name": "u1", "backlog": 64, "path": "/tmp/u1.sock"},
        ]
    }
    assert rows(ctl("listsockets").out)[1:] == [
        ["7", "s1", "127.0.0.1:80", "2048"],
        ["8", "u1", "/tmp/u1.sock", "64"],
    ]


def test_version_needs_no_daemon(base: Path, ctl: Run) -> None:
    own = ctl("version")
    assert re.fullmatch(r"sysupctl \d+\.\d+\.\d+\n", own.out)
    assert ctl("--version").out == own.out
    with CannedDaemon(base / "shop") as daemon:
        daemon.replies["version"] = {"version": "9.9"}
        assert ctl("version").out == own.out + "sysupd 9.9\n"


# ---- common options ----------------------------------------------------------------------


@pytest.mark.parametrize("args", [("--json", "numwatchers"), ("numwatchers", "--json")])
def test_json_is_the_reply_as_it_came(
    daemon: CannedDaemon, ctl: Run, args: tuple[str, ...]
) -> None:
    daemon.replies["numwatchers"] = {"numwatchers": 3, "time": 12.5}
    out = ctl(*args).out
    assert out.count("\n") == 1
    reply = json.loads(out)
    assert reply.pop("id") == daemon.request()["id"]
    assert reply == {"status": "ok", "time": 12.5, "numwatchers": 3}


def test_prettify_indents(daemon: CannedDaemon, ctl: Run) -> None:
    daemon.replies["numwatchers"] = {"numwatchers": 3}
    assert '\n  "numwatchers": 3' in ctl("numwatchers", "--prettify").out


def test_json_of_a_refusal(daemon: CannedDaemon, ctl: Run) -> None:
    daemon.replies["stop"] = refusing(SysupError("no"))
    code, out, err = ctl("stop", "--json")
    assert (code, err, json.loads(out)["reason"]) == (1, "error: no\n", "no")


def test_the_app_or_the_endpoint_can_be_said(base: Path, daemon: CannedDaemon, ctl: Run) -> None:
    with CannedDaemon(base / "blog") as blog:
        daemon.replies["numwatchers"] = {"numwatchers": 1}
        blog.replies["numwatchers"] = {"numwatchers": 2}
        several = "error: several apps are running: blog, shop; name one (-a APP)\n"
        assert ctl("numwatchers") == (4, "", several)
        assert ctl("-a", "blog", "numwatchers").out == "2\n"
        assert ctl("numwatchers", "--app", "shop").out == "1\n"
        assert ctl("numwatchers", "--endpoint", blog.endpoint).out == "2\n"


# ---- errors ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("known", "hint"),
    [
        (["db", "web"], "; did you mean web?"),
        (["db", "mail"], "; there is db, mail"),
        ([], "; there are no watchers"),
    ],
)
def test_the_nearest_watcher_is_named(
    daemon: CannedDaemon, ctl: Run, known: list[str], hint: str
) -> None:
    daemon.replies["stop"] = refusing(MessageError("program Wbe not found"))
    daemon.replies["list"] = {"watchers": known}
    assert ctl("stop", "Wbe") == (1, "", f"error: program Wbe not found{hint}\n")


def test_no_name_is_suggested_where_none_can_be_had(daemon: CannedDaemon, ctl: Run) -> None:
    daemon.replies["stop"] = refusing(MessageError("program wbe not found"))
    assert ctl("stop", "wbe") == (1, "", "error: program wbe not found\n")


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["stopp"], "no such command: stopp; did you mean stop?"),
        (["help"], "no such command: help; it is `sysupctl [COMMAND] --help`"),
        (["xyzzy"], "no such command: xyzzy\n"),
        (["incr", "web", "many"], "many"),
        (["incr"], "NAME"),
        (["set", "web", "cmd"], "no value for cmd"),
        (["send", "web"], "there is no TEXT"),
        (["send", "web", "--wid", "x", "hello"], "--wid"),
        (["signal", "web", "1", "2", "3"], "NAME [PID] SIGNAL"),
        (["signal", "web", "x", "HUP"], "NAME [PID] SIGNAL"),
        (["add", "--option", "cmd", "web", "x"], "cmd is not KEY=VALUE"),
        (["--nope"], "--nope"),
    ],
)
def test_wrong_usage(base: Path, ctl: Run, args: list[str], says: str) -> None:
    code, out, err = ctl(*args)
    assert (code, out) == (2, "")
    assert says in err


def test_no_daemon(base: Path, ctl: Run) -> None:
    reason = f"error: no sysupd is running (looked in {base})\n"
    hint = "hint: start it by `systemctl start sysup@{0}`, or here by `sysupd {0}.ini`\n"
    assert ctl("list") == (4, "", reason + hint.format("APP"))
    code, out, err = ctl("-a", "shop", "list")
    assert (code, out) == (4, "")
    assert err.endswith(hint.format("shop"))


def test_a_timeout_says_what_to_do(daemon: CannedDaemon, ctl: Run) -> None:
    daemon.replies["stop"] = None
    code, out, err = ctl("stop", "web", "--timeout", "0.02")
    assert (code, out) == (4, "")
    assert err.startswith("error: timed out after 0.02 s: no reply to stop")
    assert "--timeout" in err.splitlines()[1]


# ---- the page ----------------------------------------------------------------------------


def test_the_page_is_what_the_commands_declare() -> None:
    committed = (Path(__file__).parents[2] / "docs" / "sysupctl.md").read_text()
    assert committed == sysupctl.page(), "run: python -m docs.sysupctl > docs/sysupctl.md"
