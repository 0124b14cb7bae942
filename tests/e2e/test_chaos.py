"""What a hostile user, client, child or machine does to it, and that nothing comes of it."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import zmq

from sysup import protocol
from tests.e2e.conftest import Start
from tests.e2e.harness import PROGRAMS, Daemon, descendants, until

SLEEPER = "\n[watcher:good]\ncmd = sleep 1000\ngraceful_timeout = 5\n"
DEAF = (
    "\n[watcher:deaf]\ncmd = sh -c \"trap '' TERM; echo deaf; while :; do sleep 0.1; done\"\n"
    "graceful_timeout = {timeout}\n"
)


class Peer:
    """A client of its own, that need not wait for replies."""

    def __init__(self, runtime: Path) -> None:
        self.socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.connect(f"ipc://{runtime}/control")

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *args: object) -> None:
        self.socket.close()

    def send(self, command: str, **properties: Any) -> None:
        self.socket.send(protocol.encode_request(protocol.Request(command, properties, command)))

    def receive(self) -> dict[str, Any]:
        assert self.socket.poll(15000), "no reply"
        reply: dict[str, Any] = json.loads(self.socket.recv())
        return reply


# ---- commands that cross ---------------------------------------------------------------------


def test_a_start_comes_after_the_stop_that_somebody_waits_for(sysupd: Start) -> None:
    daemon = sysupd(DEAF.format(timeout=0.5))
    until(lambda: "deaf" in daemon.log(), "it is deaf")
    with Peer(daemon.runtime) as peer:
        peer.send("stop", name="deaf", waiting=True)
        until(lambda: daemon.status("deaf") == "stopping", "it is stopping")
        assert daemon.call("start", name="deaf", waiting=True)["status"] == "ok"
        assert peer.receive()["status"] == "ok"
    assert len(daemon.pids("deaf")) == 1


def test_a_start_does_not_save_what_is_being_removed(sysupd: Start) -> None:
    daemon = sysupd(DEAF.format(timeout=0.5))
    until(lambda: "deaf" in daemon.log(), "it is deaf")
    with Peer(daemon.runtime) as peer:
        peer.send("rm", name="deaf", waiting=True)
        until(lambda: daemon.status("deaf") == "stopping", "it is stopping")
        assert daemon.call("start", name="deaf", waiting=True)["status"] == "error"
        assert peer.receive()["status"] == "ok"
    assert daemon.call("list")["watchers"] == []
    assert descendants(daemon.pid) == {}


def test_nothing_starts_once_it_was_told_to_end(sysupd: Start) -> None:
    daemon = sysupd(DEAF.format(timeout=0.5) + SLEEPER)
    until(lambda: "deaf" in daemon.log(), "it is deaf")
    daemon.process.send_signal(signal.SIGTERM)
    until(lambda: daemon.status("deaf") == "stopping", "it is stopping")
    assert "ending" in daemon.call("start", name="deaf", waiting=True)["reason"]
    daemon.call("start", waiting=True)
    daemon.call("restart", name="good")
    daemon.call("add", name="new", cmd="sleep 1000", start=True)
    daemon.file.write_text(SLEEPER + "[watcher:newer]\ncmd = sleep 1000\n")
    daemon.process.send_signal(signal.SIGHUP)
    assert daemon.process.wait(10) == 0


@pytest.mark.parametrize(("scope", "env"), [("tree", "env -i "), ("main", "")])
def test_what_fled_with_the_pipe_of_a_crashed_process_does_not_delay_the_end(
    sysupd: Start, tmp_path: Path, scope: str, env: str
) -> None:
    (tmp_path / "once").write_text(
        f"test -e fled && exec sleep 1000\n{env}setsid sh -c 'touch fled; exec sleep 1000' &\n"
        "while ! test -e fled; do :; done; exit 1\n"
    )
    daemon = sysupd(f"[watcher:w]\ncmd = sh once\nstop_scope = {scope}\n")
    until(lambda: list(descendants(daemon.pid).values()).count("sleep 1000") == 2, "two sleep")
    assert daemon.stop(timeout=10) == 0


def test_a_forgotten_watcher_starts_nothing_more(sysupd: Start) -> None:
    daemon = sysupd(
        "[watcher:w]\ncmd = false\nflapping.retry_in = 0.3\nbackoff.delay = 0.3\n" + SLEEPER
    )
    until(
        lambda: daemon.call("status", name="w")["watchers"]["w"]["state"] == "flapping", "flapping"
    )
    events = daemon.events()
    removed = daemon.call("rm", name="w", nostop=True, waiting=True)["time"]
    daemon.call("add", name="later", cmd="sleep 0.6", start=True)
    events.wait_for_name("reap", "later")
    spawned = [event for event in events.seen if (event.watcher, event.name) == ("w", "spawn")]
    assert not [event for event in spawned if event.fields["time"] > removed]


def test_a_removed_and_forgotten_watcher_costs_nothing(sysupd: Start) -> None:
    daemon = sysupd(SLEEPER)
    before = len(os.listdir(f"/proc/{daemon.pid}/fd"))
    for number in range(5):
        daemon.call("add", name="w", cmd="sleep 1000", start=True, waiting=True)
        (pid,) = daemon.pids("w")
        daemon.call("rm", name="w", nostop=True, waiting=True)
        os.kill(pid, signal.SIGKILL)
        until(lambda: not os.path.exists(f"/proc/{pid}"), "it is reaped")
    until(lambda: len(os.listdir(f"/proc/{daemon.pid}/fd")) == before, "nothing is left open")


# ---- the config while it changes -------------------------------------------------------------


def test_a_limit_that_cannot_be_set_does_not_cost_the_rest_of_a_reload(sysupd: Start) -> None:
    ini = "[watcher:a]\ncmd = sleep 1000\nrlimit_nofile = 100\n[watcher:b]\ncmd = sleep 1000\n"
    daemon = sysupd(ini)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    ini = (
        ini.replace("100\n", f"{most * 2}\n") + "numprocesses = 2\n[watcher:c]\ncmd = sleep 1000\n"
    )
    daemon.file.write_text(ini)
    reply = daemon.call("reloadconfig", waiting=True)
    assert "rlimit_nofile" in reply["reason"]
    until(lambda: len(daemon.pids("b")) == 2, "b grew")
    assert len(daemon.pids("c")) == 1


def test_reloads_of_the_config_that_cross(sysupd: Start) -> None:
    daemon = sysupd(DEAF.format(timeout=0.5) + SLEEPER)
    until(lambda: "deaf" in daemon.log(), "it is deaf")
    with Peer(daemon.runtime) as peer:
        daemon.file.write_text("[watcher:new]\ncmd = sleep 1000\n")
        peer.send("reloadconfig", waiting=True)
        until(lambda: daemon.status("deaf") == "stopping", "it is stopping")
        daemon.file.write_text("[watcher:newer]\ncmd = sleep 1000\n")
        assert daemon.call("reloadconfig", waiting=True)["status"] == "ok"
        assert peer.receive()["status"] == "ok"
    assert daemon.call("list")["watchers"] == ["newer"]
    assert len(descendants(daemon.pid)) == 1


def test_a_config_may_take_over_what_was_added(sysupd: Start) -> None:
    daemon = sysupd(SLEEPER)
    daemon.call("add", name="new", cmd="sleep 2000", start=True, waiting=True)
    daemon.file.write_text(SLEEPER + "[watcher:new]\ncmd = sleep 3000\n")
    assert daemon.call("reloadconfig", waiting=True)["status"] == "ok"
    until(
        lambda: sorted(descendants(daemon.pid).values()) == ["sleep 1000", "sleep 3000"],
        "the config's alone runs",
    )


@pytest.mark.parametrize("what", ["deleted", "unreadable", "a directory", "binary"])
def test_a_config_that_cannot_be_read_changes_nothing(sysupd: Start, what: str) -> None:
    daemon = sysupd(SLEEPER)
    before = daemon.pids("good")
    daemon.file.unlink()
    if what == "unreadable":
        daemon.file.symlink_to(daemon.file)
    elif what == "a directory":
        daemon.file.mkdir()
    elif what == "binary":
        daemon.file.write_bytes(b"\0\xff\xfe[" * 1000)
    reply = daemon.call("reloadconfig", waiting=True)
    assert reply["status"] == "error"
    assert str(daemon.file) in reply["reason"]
    daemon.process.send_signal(signal.SIGHUP)
    until(lambda: "cannot reload the config" in daemon.log(), "it is told")
    assert daemon.pids("good") == before
    assert "Traceback" not in daemon.log()


# ---- its own descriptors ---------------------------------------------------------------------


@pytest.mark.parametrize("shut", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_its_own_descriptors_may_be_closed(tmp_path: Path, shut: str) -> None:
    file = tmp_path / "app.ini"
    log = tmp_path / "log"
    file.write_text(
        f"[sysup]\nruntime_dir = {tmp_path / 'r'}\nlogoutput = {log}\n"
        "[watcher:w]\ncmd = sh -c 'cat; echo out; echo err >&2; exec sleep 1000'\n"
        "close_child_stdin = False\n"
    )
    with subprocess.Popen(["sh", "-c", f"exec {PROGRAMS}/sysupd {file} {shut}"]) as daemon:
        with Peer(tmp_path / "r" / "app") as peer:
            peer.send("restart", waiting=True)
            assert peer.receive()["status"] == "ok"
            until(lambda: "sleep 1000" in descendants(daemon.pid).values(), "it got through")
            peer.send("status")
            watcher = peer.receive()["watchers"]["w"]
        daemon.terminate()
        assert daemon.wait(10) == 0
    assert watcher["problem"] is None
    assert watcher["state"] == "active"
    assert "Traceback" not in log.read_text()


# ---- hostile clients -------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [200, 450, 900, 990, 2000, 20_000, 300_000])
@pytest.mark.parametrize("where", ["id", "properties", "options"])
def test_json_that_is_deep(sysupd: Start, where: str, depth: int) -> None:
    daemon = sysupd(SLEEPER)
    deep = b"[" * depth + b"]" * depth
    message = {
        "id": b'{"command": "version", "id": %s}',
        "properties": b'{"command": "stop", "properties": {"name": %s}}',
        "options": b'{"command": "set", "properties": {"name": "good", "options": {"cmd": %s}}}',
    }[where]
    with Peer(daemon.runtime) as peer:
        peer.socket.send(message % deep)
        assert peer.receive()["status"] in ("ok", "error")
    assert daemon.status("good") == "active"
    assert "Traceback" not in daemon.log()


@pytest.mark.parametrize("name", ["\ud800", "a\nb", "a\0b", "", ".", "x" * 300_000, "\udc80"])
def test_names_that_are_strange(sysupd: Start, name: str) -> None:
    daemon = sysupd(SLEEPER)
    daemon.call("add", name=name, cmd="sleep 1000", start=True, waiting=True)
    daemon.call("status")
    daemon.call("add", name="new", cmd=f"sleep {name}", start=True, waiting=True)
    daemon.call("set", name="good", options={"env": {"A": name}}, waiting=True)
    daemon.call("set", name="good", options={"working_dir": name}, waiting=True)
    daemon.call("set", name="good", options={"stdout_stream": {"filename": name}}, waiting=True)
    assert daemon.call("status")["status"] == "ok"
    assert "Traceback" not in daemon.log()


BAD = [
    None,
    True,
    -1,
    1e300,
    float("nan"),
    float("inf"),
    "",
    "\0",
    "\ud800",
    "x" * 9999,
    [],
    [[]],
    {},
]


def test_values_that_are_bad(sysupd: Start) -> None:
    daemon = sysupd(SLEEPER)
    for option in daemon.call("options", name="good")["options"]:
        for value in BAD:
            daemon.call("add", name="new", cmd="sleep 1000", start=True, options={option: value})
            daemon.call("rm", name="new")
    until(lambda: daemon.call("list")["watchers"] == ["good"], "all are gone")
    assert "Traceback" not in daemon.log()


def test_it_remembers_no_replies_for_who_reads_none(sysupd: Start) -> None:
    daemon = sysupd(SLEEPER)
    with Peer(daemon.runtime) as peer:
        peer.socket.rcvhwm = 1
        request = b'{"command": "version", "id": "%s"}' % (b"x" * 900_000)
        for _ in range(300):
            peer.socket.send(request)
        peer.send("version")
        daemon.call("version")
        assert resident(daemon.pid) < 100 << 20


def resident(pid: int) -> int:
    """Bytes of a process in memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()


def test_garbage_bytes_on_its_sockets(sysupd: Start) -> None:
    daemon = sysupd(SLEEPER)
    for name in ("control", "events"):
        for data in (
            b"\0" * 9999,
            b"GET / HTTP/1.0\r\n\r\n",
            b"\xff" + b"\xff" * 63,
            os.urandom(9999),
        ):
            with socket.socket(socket.AF_UNIX) as peer:
                peer.connect(f"{daemon.runtime}/{name}")
                peer.sendall(data)
    assert daemon.status("good") == "active"


def test_two_thousand_connections(sysupd: Start) -> None:
    daemon = sysupd(SLEEPER)
    before = len(os.listdir(f"/proc/{daemon.pid}/fd"))
    peers = []
    try:
        for _ in range(2000):
            peers.append(socket.socket(socket.AF_UNIX))
            peers[-1].connect(f"{daemon.runtime}/control")
        assert daemon.call("restart", waiting=True)["status"] == "ok"
    finally:
        for peer in peers:
            peer.close()
    until(lambda: len(os.listdir(f"/proc/{daemon.pid}/fd")) <= before, "all are closed")
