"""What a hostile user, client, child or machine does to it, and that nothing comes of it."""

from __future__ import annotations

import os
import random
import resource
import signal
import socket
import subprocess
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Start
from tests.e2e.harness import (
    PATIENCE,
    PROGRAMS,
    Daemon,
    Peer,
    children,
    descendants,
    open_files,
    until,
)

SLEEPER = "\n[watcher:good]\ncmd = sleep 1000\ngraceful_timeout = 5\n"
DEAF = (
    "\n[watcher:deaf]\ncmd = sh -c \"trap '' TERM; echo deaf; while :; do sleep 0.1; done\"\n"
    "graceful_timeout = {timeout}\n"
)


# ---- commands that cross ---------------------------------------------------------------------


def test_a_start_comes_after_the_stop_that_somebody_waits_for(sysupd: Start) -> None:
    daemon = sysupd(DEAF.format(timeout=0.5))
    until(lambda: "deaf" in daemon.log(), "it is deaf")
    with Peer(daemon.runtime) as peer:
        peer.send("stop", name="deaf", waiting=True)
        until(lambda: daemon.status("deaf") != "active", "it is stopping")
        assert daemon.call("start", name="deaf", waiting=True)["status"] == "ok"
        assert peer.receive()["status"] == "ok"
    assert len(daemon.pids("deaf")) == 1


def test_a_start_does_not_save_what_is_being_removed(sysupd: Start) -> None:
    daemon = sysupd(DEAF.format(timeout=0.5))
    until(lambda: "deaf" in daemon.log(), "it is deaf")
    with Peer(daemon.runtime) as peer:
        peer.send("rm", name="deaf", waiting=True)
        until(lambda: daemon.status("deaf") != "active", "it is stopping")
        assert daemon.call("start", name="deaf", waiting=True)["status"] == "error"
        assert peer.receive()["status"] == "ok"
    assert daemon.call("list")["watchers"] == []
    until(lambda: descendants(daemon.pid) == {}, "none is left")


def test_nothing_starts_once_it_was_told_to_end(sysupd: Start) -> None:
    daemon = sysupd(DEAF.format(timeout=1000) + SLEEPER)
    until(lambda: "deaf" in daemon.log(), "it is deaf")
    daemon.process.send_signal(signal.SIGTERM)
    until(lambda: daemon.status("deaf") == "stopping", "it is stopping")
    assert "ending" in daemon.call("start", name="deaf", waiting=True)["reason"]
    daemon.call("start", waiting=True)
    daemon.call("restart", name="good")
    daemon.call("add", name="new", cmd="sleep 1000", start=True)
    daemon.file.write_text(SLEEPER + "[watcher:newer]\ncmd = sleep 1000\n")
    daemon.process.send_signal(signal.SIGHUP)

    def told_again() -> bool:
        """Else it would wait for the deaf one."""
        daemon.process.send_signal(signal.SIGTERM)
        return daemon.process.poll() is not None

    until(told_again, "it ends")
    assert daemon.process.returncode == 0


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
    assert daemon.stop() == 0


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
    before = open_files(daemon.pid)
    for _ in range(5):
        daemon.call("add", name="w", cmd="sleep 1000", start=True, waiting=True)
        (pid,) = daemon.pids("w")
        daemon.call("rm", name="w", nostop=True, waiting=True)
        os.kill(pid, signal.SIGKILL)
        until(lambda: len(children(daemon.pid)) == 1, "it is reaped")
    until(lambda: open_files(daemon.pid) <= before, "nothing is left open")


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
        until(lambda: daemon.status("deaf") != "active", "it is stopping")
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
        assert daemon.wait(PATIENCE) == 0
    assert watcher["problem"] is None
    assert watcher["state"] == "active"
    assert "Traceback" not in log.read_text()


# ---- hostile clients -------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [200, 2000, 300_000])
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


def test_an_id_that_can_be_read_but_not_written(sysupd: Start) -> None:
    daemon = sysupd(SLEEPER)
    with Peer(daemon.runtime) as peer:
        for depth in range(900, 1001):
            deep = b"[" * depth + b"]" * depth
            peer.socket.send(b'{"command": "version", "id": %s}' % deep)
            assert peer.receive()["status"] == "error"


@pytest.mark.parametrize("name", ["\ud800", "a\nb", "a\0b", "", ".", "x" * 300_000])
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


BAD: list[Any] = [
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


def test_long_ids_are_not_kept(sysupd: Start) -> None:
    daemon = sysupd(SLEEPER)
    with Peer(daemon.runtime) as peer:
        request = b'{"command": "version", "id": "%s"}' % (b"x" * 900_000)
        for _ in range(300):
            peer.socket.send(request)
        peer.send("version")
        for _ in range(300):
            assert "'id'" in peer.receive()["reason"]


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
    before = open_files(daemon.pid)
    peers = []
    try:
        for _ in range(2000):
            peers.append(socket.socket(socket.AF_UNIX))
            peers[-1].connect(f"{daemon.runtime}/control")
        assert daemon.call("restart", waiting=True)["status"] == "ok"
    finally:
        for peer in peers:
            peer.close()
    until(lambda: open_files(daemon.pid) <= before, "all are closed")


# ---- everything at once ----------------------------------------------------------------------

CHAOS = """
[watcher:a]
cmd = sleep 1001
numprocesses = 3
graceful_timeout = 1
flapping.retry_in = 0.05
max_retry = -1
backoff.delay = 0.01

[watcher:b]
cmd = sh -c "trap '' TERM; setsid sleep 1003 & exec sleep 1002"
numprocesses = 2
graceful_timeout = 0.1
flapping.retry_in = 0.05
max_retry = -1
warmup_delay = 0.01

[watcher:c]
cmd = sh -c 'sleep 0.0$$; exit 1'
graceful_timeout = 1
flapping.retry_in = 0.05
backoff.delay = 0.01
max_retry = -1
"""


def disorder(runtime: Path, seed: int, commands: int, asks: float) -> None:
    """Send commands at random; wait for few of them to be read."""
    rand = random.Random(seed)
    with Peer(runtime) as peer:
        for number in range(commands):
            name = rand.choice("aabbc")
            choices: list[tuple[str, dict[str, Any]]] = [
                ("start", {}),
                ("stop", {}),
                ("restart", {}),
                ("reload", {}),
                ("reload", {"sequential": True}),
                ("incr", {"nb": rand.randint(1, 3)}),
                ("decr", {"nb": rand.randint(1, 3)}),
                ("set", {"options": {"numprocesses": rand.randint(0, 4)}}),
                ("set", {"options": {"env": {"A": str(number)}}}),
                ("set", {"options": {"flapping.scope": rand.choice(["slot", "watcher"])}}),
                ("kill", {}),
                ("signal", {"signum": rand.choice(["KILL", "TERM", "STOP", "CONT", "HUP"])}),
                ("add", {"cmd": "sleep 1004", "start": True, "name": f"new{seed}"}),
                ("rm", {"name": f"new{seed}", "nostop": rand.random() < 0.1}),
                ("reloadconfig", {}),
            ]
            command, properties = rand.choice(choices)
            peer.send(command, **{"name": name, "waiting": rand.random() < 0.2, **properties})
            if rand.random() < asks:
                peer.send("version")
                while peer.receive().get("id") != "version":
                    pass


def havoc(daemon: Daemon, seed: int) -> None:
    """Four clients at once, and a killer."""
    runtime = daemon.runtime
    clients = [
        threading.Thread(target=disorder, args=(runtime, seed + n, 60, 0.2)) for n in range(4)
    ]
    for client in clients:
        client.start()
    rand = random.Random(seed)
    while any(client.is_alive() for client in clients):
        if victims := sorted(descendants(daemon.pid)):
            with suppress(ProcessLookupError):
                os.kill(rand.choice(victims), signal.SIGKILL)
    for client in clients:
        client.join()


@pytest.mark.parametrize("seed", [100, 200, 300])
def test_after_a_storm_all_is_as_wanted(sysupd: Start, seed: int) -> None:
    daemon = sysupd(CHAOS)
    havoc(daemon, seed)

    def is_calm() -> bool:
        """What the storm added is removed; it may still be adding."""
        for name in daemon.call("list")["watchers"]:
            if name.startswith("new"):
                daemon.call("rm", name=name, waiting=True)
        daemon.call("stop", waiting=True)
        return bool(daemon.call("status")["statuses"] == dict.fromkeys("abc", "stopped"))

    until(is_calm, "the old ones alone are there, and stopped")
    assert daemon.call("numprocesses")["numprocesses"] == 0
    for name, number in (("a", 3), ("b", 2)):
        daemon.call("set", name=name, options={"numprocesses": number, "env": {}}, waiting=True)
        assert daemon.call("start", name=name, waiting=True)["status"] == "ok"

    def sleepers() -> list[str]:
        commands = [command for _, command in sorted(descendants(daemon.pid).items())]
        return sorted(command for command in commands if command != "sleep 1004")

    wanted = ["sleep 1001"] * 3 + ["sleep 1002"] * 2 + ["sleep 1003"] * 2
    until(lambda: sleepers() == wanted, "as wanted")
    assert len(daemon.pids("a")) == 3
    assert len(daemon.pids("b")) == 2
    assert "Traceback" not in daemon.log()
    assert daemon.stop() == 0


@pytest.mark.parametrize("seed", range(10))
def test_it_ends_in_the_midst_of_a_storm(sysupd: Start, seed: int) -> None:
    daemon = sysupd(CHAOS)
    storm = threading.Thread(target=disorder, args=(daemon.runtime, seed, 100, 0.0))
    enough = random.Random(seed).randint(0, 40)
    storm.start()
    for _ in range(enough):
        daemon.call("list")
    assert daemon.stop() == 0
    storm.join()
    assert "Traceback" not in daemon.log()
