"""Circus's own client, from its package, commands a sysupd."""

from __future__ import annotations

import os
import re
import select
import socket
import subprocess

import pytest

from tests.e2e.conftest import Start
from tests.e2e.harness import PATIENCE, PROGRAMS, Daemon, command_line, until

INI = """\
[circus]
check_delay = 5
endpoint = tcp://127.0.0.1:{port}
pubsub_endpoint = tcp://127.0.0.1:{pubsub}

[watcher:web]
cmd = sleep 1000
numprocesses = 2

[env:web]
PASSWORD = secret
"""


def free_ports() -> tuple[int, int]:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("", 0)) as two:
        return one.getsockname()[1], two.getsockname()[1]


@pytest.fixture
def ports() -> tuple[int, int]:
    return free_ports()


@pytest.fixture
def daemon(sysupd: Start, ports: tuple[int, int]) -> Daemon:
    return sysupd(INI.format(port=ports[0], pubsub=ports[1]))


def circusctl(endpoint: str, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PROGRAMS / "circusctl", "--endpoint", endpoint, *args],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )


def commands() -> set[str]:
    """All 25, as its help has them."""
    text = subprocess.run([PROGRAMS / "circusctl", "--help"], capture_output=True, text=True).stdout
    found = set(re.findall(r"^  ([a-z]+)  +[A-Z]", text.partition("Commands:")[2], re.M))
    assert len(found) == 25
    return found


def test_over_ipc_it_commands(daemon: Daemon) -> None:
    asked = {"listen"}  # which has a test of its own

    def ask(*args: str) -> str:
        asked.add(args[0])
        done = circusctl(f"ipc://{daemon.runtime}/control", *args)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    assert ask("status") == "web: active"
    assert ask("status", "web") == "active"
    assert ask("list") == "web"
    assert ask("list", "web") == ",".join(map(str, daemon.pids("web")))
    assert ask("numwatchers") == "1"
    assert ask("incr", "web", "--waiting") == "3"
    assert ask("decr", "web", "2", "--waiting") == "1"
    assert re.search(r"^\d+: \d+  sleep root 0 ", ask("stats", "web"), re.M)
    assert "Main Process" in ask("dstats")
    assert "PASSWORD" in ask("get", "web", "env")
    assert "secret" in ask("get", "web", "env")
    assert ask("set", "web", "graceful_timeout", "3") == "ok"
    assert ask("get", "web", "graceful_timeout") == "graceful_timeout: 3.0"
    assert ask("signal", "web", "HUP") == "ok"
    assert ask("stop", "web", "--waiting") == "ok"
    assert ask("status", "web") == "stopped"
    assert ask("start", "web", "--waiting") == "ok"
    assert ask("reload", "web", "--waiting") == "ok"
    assert ask("restart", "web", "--waiting") == "ok"
    assert ask("add", "--start", "other", "sleep", "99") == "ok"
    assert ask("rm", "other") == "ok"
    assert ask("reloadconfig", "--waiting") == "ok"
    assert ask("options", "web").startswith("cmd: sleep 1000")
    assert "stats_endpoint: " in ask("globaloptions")
    assert ask("listsockets") == ""
    assert ask("numprocesses") == ask("numprocesses", "web") == "1"
    (pid,) = daemon.pids("web")
    assert ask("kill", "web", str(pid), "--signum", "9") == "ok"
    until(lambda: daemon.pids("web") not in ([], [pid]), "there is another")
    assert "Could not start" in ask("ipython")
    assert ask("quit") == "ok"
    assert asked == commands()
    assert daemon.process.wait(PATIENCE) == 0


def test_over_plain_tcp_it_reads_and_is_refused_the_rest(
    daemon: Daemon, ports: tuple[int, int]
) -> None:
    endpoint = f"tcp://127.0.0.1:{ports[0]}"
    for command in ("status", "list", "stats", "dstats", "options web", "numprocesses web"):
        done = circusctl(endpoint, *command.split())
        assert done.returncode == 0, done.stderr
        assert "secret" not in done.stdout
    before = daemon.pids("web")
    for command in ("stop web", "incr web", "set web cmd ls", "add x ls", "rm web", "quit"):
        done = circusctl(endpoint, *command.split())
        assert done.returncode == 3
        assert "permission denied" in done.stderr
        assert "ipc" in done.stderr
    assert daemon.pids("web") == before


def test_an_unknown_watcher_reads_as_in_circus(daemon: Daemon) -> None:
    done = circusctl(f"ipc://{daemon.runtime}/control", "incr", "nope")
    assert done.returncode == 3
    assert "error: program nope not found" in done.stderr


def test_it_says_of_a_singleton_what_is_so(sysupd: Start) -> None:
    daemon = sysupd("[watcher:one]\ncmd = sleep 1000\nsingleton = True\n")
    before = daemon.pids("one")
    for command in (["incr", "one"], ["decr", "one"], ["decr", "one", "--waiting"]):
        done = circusctl(f"ipc://{daemon.runtime}/control", *command)
        assert "not changing the number of processes" in done.stdout
    assert daemon.pids("one") == before


def test_a_reload_of_the_config_that_it_waits_for_is_done(sysupd: Start) -> None:
    daemon = sysupd("[watcher:web]\ncmd = sleep 1000\n")
    before = daemon.pids("web")
    endpoint = f"ipc://{daemon.runtime}/control"
    daemon.file.write_text("[watcher:web]\ncmd = sleep 2000\n")
    assert circusctl(endpoint, "reloadconfig", "--waiting").returncode == 0
    (pid,) = daemon.pids("web")
    assert pid not in before
    assert command_line(pid) == "sleep 2000"
    daemon.file.write_text("[watcher:web]\ncmd = /no/such\n")
    done = circusctl(endpoint, "reloadconfig", "--waiting")
    assert done.returncode == 3
    assert "error: cannot replace web: cannot execute /no/such" in done.stderr
    assert daemon.pids("web") == [pid]


def test_it_listens(daemon: Daemon, ports: tuple[int, int]) -> None:
    command = [str(PROGRAMS / "circusctl"), "--endpoint", f"tcp://127.0.0.1:{ports[1]}", "listen"]
    env = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=env) as listener:
        assert listener.stdout is not None
        hear(daemon, listener.stdout.fileno())
        listener.kill()


def hear(daemon: Daemon, fd: int) -> None:
    """Have something happen until a listener tells it."""
    heard = b""
    while b"watcher.web.updated" not in heard:
        daemon.call("set", name="web", options={"warmup_delay": 0}, waiting=True)
        if select.select([fd], [], [], 0.05)[0]:
            heard += os.read(fd, 4096)


def test_its_consumer_hears_the_events(daemon: Daemon, ports: tuple[int, int]) -> None:
    script = (
        "from circus.consumer import CircusConsumer as C\n"
        f"c = C(['watcher.'], endpoint='tcp://127.0.0.1:{ports[1]}')\n"
        "print('ready', flush=True)\n"
        "for topic, message in c:\n"
        "    print(topic, message, flush=True)\n"
    )
    listener = subprocess.Popen(
        [PROGRAMS / "python", "-W", "ignore", "-c", script], stdout=subprocess.PIPE
    )
    with listener:
        assert listener.stdout is not None
        assert listener.stdout.readline() == b"ready\n"
        hear(daemon, listener.stdout.fileno())
        listener.kill()
