"""Circus's programs and client classes, from its package, at work on a sysupd that reads its file.

Each runs in a process of its own, as its users run it.
"""

from __future__ import annotations

import itertools
import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Start
from tests.e2e.harness import PATIENCE, PROGRAMS, Daemon, until

INI = """\
[circus]
check_delay = 5
endpoint = {control}
pubsub_endpoint = {events}
stats_endpoint = {stats}

[watcher:Web App]
cmd = sleep 1000
numprocesses = 2

[watcher:dotted.name]
cmd = {script}

[socket:api]
host = 127.0.0.1
port = 0
"""


class App:
    """A daemon with the endpoints that a file of Circus names, over ipc, so that they command."""

    def __init__(self, sysupd: Start, directory: Path) -> None:
        self.control, self.events, self.stats = (
            f"ipc://{directory}/{name}" for name in ("c", "e", "s")
        )
        self.script = directory / "script"
        self.script.write_text("#!/bin/sh\nexec sleep 1000\n")
        self.script.chmod(0o755)
        ini = INI.format(
            control=self.control, events=self.events, stats=self.stats, script=self.script
        )
        self.daemon: Daemon = sysupd(ini)


@pytest.fixture
def app(sysupd: Start, runtime: Path) -> App:
    return App(sysupd, runtime)


ENV = {**os.environ, "PYTHONWARNINGS": "ignore", "PYTHONUNBUFFERED": "1"}


def run(script: str) -> list[Any]:
    """The lines of JSON that a program prints which uses Circus's classes."""
    done = subprocess.run(
        [PROGRAMS / "python", "-c", script],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env=ENV,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


# ---- classes -----------------------------------------------------------------------------


def test_circus_client(app: App) -> None:
    first, second, third, failed = run(f"""
import json
from circus.client import CircusClient, CallError, make_message
client = CircusClient(endpoint={app.control!r}, timeout={PATIENCE})
for reply in (
    client.call(make_message("list")),
    client.send_message("incr", name="web app", nb=2, waiting=True),
    client.call({{"command": "stats", "properties": {{"name": "web app"}}}}),
    client.send_message("incr", name="nope"),
):
    print(json.dumps(reply))
client.stop()
""")
    assert first["watchers"] == ["dotted.name", "web app"]
    assert len(first["id"]) == 32
    assert second["numprocesses"] == 4
    assert [*third["info"]] == [str(pid) for pid in app.daemon.pids("web app")]
    assert (failed["status"], failed["errno"]) == ("error", 3)
    assert failed["reason"] == "program nope not found"


def test_async_circus_client(app: App) -> None:
    (reply,) = run(f"""
import asyncio, json
from circus.client import AsyncCircusClient
async def main():
    client = AsyncCircusClient(endpoint={app.control!r})
    print(json.dumps(await client.send_message("stop", name="web app", waiting=True)))
    client.stop()
asyncio.run(main())
""")
    assert reply["status"] == "ok"
    assert app.daemon.status("web app") == "stopped"


def test_stats_client(app: App) -> None:
    """D25 among it: it passes over topics of names with dots, so there are none."""
    pids = app.daemon.pids("web app")
    messages = run(f"""
import json
from circus.stats.client import StatsClient
wanted = {{("web_app", "{pids[0]}"), ("web_app", "{pids[1]}"), ("web_app", None),
    ("dotted-name", None), ("circus", "{app.daemon.pid}"), ("circus", None), ("sockets", None)}}
for watcher, subtopic, stat in StatsClient(endpoint={app.stats!r}):
    if (watcher, subtopic) in wanted:
        wanted.remove((watcher, subtopic))
        print(json.dumps([watcher, subtopic, stat]))
    if not wanted:
        break
""")
    told = {(watcher, subtopic): stat for watcher, subtopic, stat in messages}
    one = told["web_app", str(pids[0])]
    assert one.keys() - {"watcher", "wid"} == {
        *("mem_info1", "mem_info2", "cpu", "mem", "ctime", "pid", "username", "nice"),
        *("create_time", "age", "cmdline", "children", "subtopic", "name"),
    }
    assert (one["pid"], one["subtopic"], one["name"]) == (pids[0], pids[0], None)
    assert (one["cmdline"], one["children"]) == ("sleep", [])
    together = told["web_app", None]
    assert together.keys() - {"watcher"} == {"pid", "cpu", "mem", "age"}
    assert sorted(together["pid"]) == sorted(pids)
    assert told["circus", str(app.daemon.pid)]["name"] == "circusd"
    assert told["sockets", None].keys() == {"addresses", "reads"}


# ---- circus-top --------------------------------------------------------------------------


def test_circus_top_paints_the_processes(app: App) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ.update(ENV, TERM="xterm", LINES="40", COLUMNS="120")
        os.execv(PROGRAMS / "circus-top", ["circus-top", "--endpoint", app.stats])
    seen = b""
    try:
        wanted = [str(p).encode() for p in app.daemon.pids("web app")]
        wanted += [b"web_app", b"dotted.name", b"circusd"]
        deadline = time.monotonic() + PATIENCE
        while not all(word in seen for word in wanted):
            assert time.monotonic() < deadline, seen
            if select.select([terminal], [], [], 0.2)[0]:
                seen += os.read(terminal, 65536)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(terminal)


# ---- plugins -----------------------------------------------------------------------------


@contextmanager
def plugin(app: App, name: str, **config: object) -> Iterator[None]:
    """A plugin as circusd starts it: by its command line."""
    command: list[str | Path] = [PROGRAMS / "circus-plugin", "--endpoint", app.control]
    command += ["--pubsub", app.events]
    if config:
        command += ["--config", ":::".join(f"{key}:{value}" for key, value in config.items())]
    with (app.daemon.directory / "plugin.log").open("wb") as log:
        process = subprocess.Popen([*command, name], stdout=log, stderr=log, env=ENV)
    try:
        yield
        assert process.poll() is None, (app.daemon.directory / "plugin.log").read_text()
    finally:
        process.kill()
        process.wait()


class Statsd:
    """A server of statsd, which hears what plugins count."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]

    def hears(self, pattern: bytes, timeout: float) -> bool:
        """Whether it comes, before nothing comes for so many seconds."""
        self._socket.settimeout(timeout)
        with suppress(TimeoutError):
            while not re.search(pattern, self._socket.recv(65536)):
                pass
            return True
        return False

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def statsd() -> Iterator[Statsd]:
    server = Statsd()
    yield server
    server.close()


def test_command_reloader_restarts_what_was_changed(app: App) -> None:
    app.daemon.call("rm", name="web app", waiting=True)  # D28: its command has arguments
    before = app.daemon.pids("dotted.name")
    with plugin(app, "circus.plugins.command_reloader.CommandReloader", loop_rate=1):
        stamps = itertools.count(1)

        def is_restarted() -> bool:
            """The first change may be before its first look."""
            os.utime(app.script, (stamp := next(stamps), stamp))
            return app.daemon.pids("dotted.name") not in ([], before)

        until(is_restarted, "the watcher is restarted")
    assert app.daemon.status("dotted.name") == "active"


def test_resource_watcher_restarts_what_is_too_large(app: App, statsd: Statsd) -> None:
    events = app.daemon.events()
    limits = {"watcher": "Web App", "loop_rate": 0.05, "max_mem": "1K", "max_count": 1}
    with plugin(app, "circus.plugins.resource_watcher.ResourceWatcher", port=statsd.port, **limits):
        bucket = rb"^circus\.app\.watcher\._resource_watcher\.Web App\."
        assert statsd.hears(bucket + rb"over_memory:1\|c$", PATIENCE)
        assert statsd.hears(bucket + rb"restarting:1\|c$", PATIENCE)
        events.wait_for_name("reap", "web_app")


def test_statsd_counts_events(app: App, statsd: Statsd) -> None:
    name, options = "circus.plugins.statsd.StatsdEmitter", {"warmup_delay": 0}
    with plugin(app, name, application_name="shop", port=statsd.port):

        def is_counted() -> bool:
            """Its subscription may come late."""
            app.daemon.call("set", name="Web App", options=options, waiting=True)
            return statsd.hears(rb"^circus\.shop\.watcher\.web_app\.updated:1\|c$", 0.1)

        until(is_counted, "an event is counted")


def test_full_stats_measures_all(app: App, statsd: Statsd) -> None:
    with plugin(app, "circus.plugins.statsd.FullStats", loop_rate=0.1, port=statsd.port):
        for gauge in (rb"watchers_num:2", rb"cpu_sum:[\d.]+", rb"mem_max:\d+"):
            bucket = rb"^circus\.app\.watcher\._stats\.Web App\."
            assert statsd.hears(bucket + gauge + rb"\|g$", PATIENCE)
