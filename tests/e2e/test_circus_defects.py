"""What is wrong in Circus 0.19 and can be seen over the wire, and is right here.

The numbers are those of docs/circus.md.
"""

from __future__ import annotations

import json
import re
import signal
import socket
import time
from pathlib import Path

import pytest
import zmq

from tests.e2e.conftest import Start
from tests.e2e.harness import PATIENCE, Daemon, Peer, children, until
from tests.e2e.test_circus_clients import circusctl

WEB = """\
[circus]
endpoint =
pubsub_endpoint =

[watcher:web]
cmd = sleep 1000
numprocesses = 2
graceful_timeout = 5
free.form = text
"""


@pytest.fixture
def daemon(sysupd: Start) -> Daemon:
    return sysupd(WEB)


def environ(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")


def test_d1_no_variable_name_in_the_environment(daemon: Daemon) -> None:
    assert not any(line.startswith("__name__") for line in environ(daemon.pids("web")[0]))


def test_d4_nobody_but_an_admin_changes_what_is_run(sysupd: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    endpoint = f"tcp://127.0.0.1:{port}"
    daemon = sysupd(
        f"[circus]\nendpoint = {endpoint}\npubsub_endpoint =\n[watcher:w]\ncmd = sleep 9\n"
    )
    for change in ("cmd ls", "uid 0", "hooks.before_start a.b", "stdout_stream.filename /tmp/x"):
        done = circusctl(endpoint, "set", "w", *change.split())
        assert (done.returncode, "permission denied" in done.stderr) == (3, True)
    assert daemon.call("get", name="w", keys=["cmd"])["options"] == {"cmd": "sleep 9"}


def test_d7_a_reload_starts_nothing_that_is_stopped(daemon: Daemon) -> None:
    daemon.call("stop", name="web", waiting=True)
    daemon.call("reload", waiting=True)
    assert daemon.status("web") == "stopped"


def test_d9_no_limit_to_retries_freezes_nothing(sysupd: Start) -> None:
    daemon = sysupd(WEB + "[watcher:bad]\ncmd = /no/such\nmax_retry = -1\n")
    bad = daemon.call("status", name="bad")["watchers"]["bad"]
    assert "/no/such" in bad["reason"]
    assert len(daemon.pids("web")) == 2


def test_d10_a_watcher_that_fails_is_shown(sysupd: Start) -> None:
    daemon = sysupd(WEB + "[watcher:bad]\ncmd = sleep 9\nuid = nosuchuser\n")
    shown = until(lambda: daemon.call("status")["watchers"]["bad"]["reason"], "it is told why")
    assert "nosuchuser" in shown


def test_d16_what_is_malformed_is_answered_and_harms_no_later_request(daemon: Daemon) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
    with context.socket(zmq.DEALER) as client:
        client.linger = 0
        client.connect(f"ipc://{daemon.runtime}/control")
        for text in (b"[]", b'{"id": 1}', b"", b"{", b"7", b'"x"'):
            client.send(text)
            assert client.poll(int(PATIENCE * 1000))
            assert json.loads(client.recv())["status"] == "error"
        client.send(b'{"id": 2, "command": "numwatchers"}')
        assert client.poll(int(PATIENCE * 1000))
        assert json.loads(client.recv())["numwatchers"] == 1


STUBBORN = """\
[watcher:stubborn]
cmd = sh -c 'trap "" TERM; echo > trapped; while :; do sleep 1000; done'
graceful_timeout = {}
"""


def stubborn(sysupd: Start, graceful: float, more: str = "") -> Daemon:
    """An app with a process that ignores SIGTERM."""
    daemon = sysupd(more + STUBBORN.format(graceful))
    until((daemon.directory / "trapped").exists, "it ignores SIGTERM")
    return daemon


def hurry(daemon: Daemon) -> None:
    """Have the end of the daemon not wait for it."""
    daemon.call("set", name="stubborn", options={"graceful_timeout": 0.1}, waiting=True)


def test_d17_a_signal_is_heard_in_the_midst_of_a_command(sysupd: Start) -> None:
    daemon = stubborn(sysupd, 5)
    with Peer(daemon.runtime) as peer:
        peer.send("restart", name="stubborn", waiting=True)
        until(lambda: daemon.status("stubborn") == "stopping", "it is asked to end")
        assert daemon.stop(signal.SIGTERM) == 0


def test_d17_no_command_is_refused_because_another_runs(sysupd: Start) -> None:
    daemon = stubborn(sysupd, 1000, WEB)
    with Peer(daemon.runtime) as peer:
        peer.send("stop", name="stubborn", waiting=True)
        until(lambda: daemon.status("stubborn") == "stopping", "it is asked to end")
        assert daemon.call("incr", name="web", waiting=True)["numprocesses"] == 3
        daemon.call("signal", name="stubborn", signum="KILL")
        assert peer.receive()["status"] == "ok"


def test_d18_options_of_ones_own_can_be_got(daemon: Daemon) -> None:
    listed = daemon.call("options", name="web")["options"]
    assert listed["free.form"] == "text"
    for key in listed:
        assert daemon.call("get", name="web", keys=[key])["status"] == "ok", key


@pytest.mark.parametrize("timeout", ["0.1", 0.1])
def test_d19_a_time_may_be_text(sysupd: Start, timeout: object) -> None:
    daemon = stubborn(sysupd, 1000)
    (before,) = daemon.pids("stubborn")
    reply = daemon.call("kill", name="stubborn", graceful_timeout=timeout, waiting=True)
    assert reply["status"] == "ok"
    assert before not in daemon.pids("stubborn")
    hurry(daemon)


def test_d19_and_so_circusctl_kills(sysupd: Start) -> None:
    daemon = stubborn(sysupd, 1000)
    (before,) = daemon.pids("stubborn")
    kill = ("kill", "stubborn", str(before), "--graceful_timeout", "0.1")
    assert circusctl(f"ipc://{daemon.runtime}/control", *kill).returncode == 0
    until(lambda: before not in daemon.pids("stubborn"), "it is killed")
    hurry(daemon)


@pytest.mark.parametrize("key", ["childpid", "child_pid"])
def test_d20_a_child_is_signalled_by_either_name(sysupd: Start, key: str) -> None:
    daemon = sysupd("[watcher:w]\ncmd = sh -c 'sleep 1000 & sleep 2000; wait'\n")
    (parent,) = daemon.pids("w")
    both = until(lambda: len(c := children(parent)) == 2 and c, "it has two children")
    daemon.call("signal", name="w", signum=9, **{key: both[0]})
    until(lambda: is_dead(both[0]), "the child is hit")
    assert not is_dead(both[1])
    assert daemon.pids("w") == [parent]


def is_dead(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("max_retry", 7),
        ("respawn", False),
        ("singleton", True),
        ("copy_env", True),
        ("close_child_stdin", False),
        ("close_child_stdout", True),
        ("retry_in", 3.0),
        ("flapping.attempts", 9),
    ],
)
def test_d21_whatever_is_set_holds(daemon: Daemon, key: str, value: object) -> None:
    reply = daemon.call("set", name="web", options={key: value}, waiting=True)
    if reply["status"] == "error":  # refused with a reason, at least, is not ignored
        assert key in reply["reason"]
        return
    assert reply["impacts"].keys() == {key}
    if key != "retry_in":
        assert daemon.call("get", name="web", keys=[key])["options"] == {key: value}


def test_d22_a_watcher_is_added_with_limits(daemon: Daemon) -> None:
    options = {"rlimit_nofile": 100}
    reply = daemon.call(
        "add", name="new", cmd="sleep 1000", options=options, start=True, waiting=True
    )
    (pid,) = reply["started"]
    limits = Path(f"/proc/{pid}/limits").read_text()
    assert re.search(r"^Max open files +100 ", limits, re.M)


def test_d24_every_process_that_ends_is_told_of(daemon: Daemon) -> None:
    events = daemon.events()
    before = daemon.pids("web")
    daemon.call("reload", name="web", waiting=True)
    after = daemon.pids("web")
    reaped = {events.wait_for_name("reap", "web").fields["process_pid"] for _ in before}
    assert reaped == set(before)
    daemon.call("decr", name="web", waiting=True)
    assert events.wait_for_name("reap", "web").fields["process_pid"] in after


def test_d25_dots_in_names(sysupd: Start) -> None:
    daemon = sysupd("[watcher:a.b.c]\ncmd = sleep 1000\n")
    events = daemon.events()
    daemon.call("restart", name="a.b.c", waiting=True)
    assert events.wait_for_name("spawn").watcher == "a.b.c"


def test_d30_the_last_words_at_a_stop(sysupd: Start, tmp_path: Path) -> None:
    log = tmp_path / "out"
    daemon = sysupd(
        "[watcher:w]\ncmd = sh -c 'trap \"echo farewell; exit\" TERM; echo up; sleep 1000 & wait'\n"
        f"stdout_stream.class = FileStream\nstdout_stream.filename = {log}\n"
    )
    until(lambda: log.exists() and log.read_text() == "up\n", "it will say farewell")
    daemon.call("stop", name="w", waiting=True)
    until(lambda: log.read_text() == "up\nfarewell\n", "it is written")


def test_d31_and_d32_a_reload_of_the_config_does_what_differs(daemon: Daemon) -> None:
    before = daemon.pids("web")
    daemon.file.write_text(
        WEB.replace("[circus]", "[circus]\ncheck_delay = 9") + "[watcher:x]\ncmd = sleep 9\n"
    )
    daemon.call("reloadconfig", waiting=True)
    assert daemon.call("globaloptions")["options"]["check_delay"] == 9.0
    assert daemon.pids("web") == before
    daemon.file.write_text(WEB.replace("free.form = text", "umask = 077"))
    reply = daemon.call("reloadconfig", waiting=True)
    assert reply["removed"] == ["x"]
    assert daemon.call("get", name="web", keys=["umask"])["status"] == "ok"
    assert not set(daemon.pids("web")) & set(before), "they are replaced by then"


def test_d33_a_shell_gets_its_syntax(sysupd: Start, tmp_path: Path) -> None:
    out = tmp_path / "out"
    daemon = sysupd(f"[watcher:w]\ncmd = echo a > {out} && exec sleep 1000\nshell = True\n")
    until(lambda: out.exists() and out.read_text() == "a\n", "both commands are run")
    assert daemon.status("w") == "active"


def test_d34_a_restart_of_several_leaves_none_down(sysupd: Start) -> None:
    daemon = sysupd(WEB + "[watcher:web2]\ncmd = sleep 1000\nautostart = False\n")
    daemon.call("start", name="web2", waiting=True)
    daemon.call("restart", name="web*", waiting=True)
    assert [daemon.status(name) for name in ("web", "web2")] == ["active", "active"]


def test_stats_of_many_are_soon_there(sysupd: Start) -> None:
    """Circus looks at all processes for each one, and does nothing else meanwhile."""
    daemon = sysupd("[watcher:web]\ncmd = sleep 1000\nnumprocesses = 200\n")
    with Peer(daemon.runtime) as peer:
        began = time.monotonic()
        for _ in range(3):
            peer.send("stats")
        daemon.call("numwatchers")
        infos = [peer.receive()["infos"]["web"] for _ in range(3)]
        assert time.monotonic() - began < PATIENCE / 4
    assert [len(rows) for rows in infos] == [200, 200, 200]
    assert all(isinstance(row, dict) for row in infos[0].values())
