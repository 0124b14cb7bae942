"""Commands and events over TCP with keys: real daemons, real sysupctl, files that come and go."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from sysup.client import Client
from tests.e2e.conftest import Start
from tests.e2e.harness import PATIENCE, PROGRAMS, Daemon, until

WEB = "[watcher:web]\ncmd = sleep 1000\n"

Ctl = Callable[..., subprocess.CompletedProcess[str]]


def free_endpoint() -> str:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"tcp://127.0.0.1:{free.getsockname()[1]}"


class Place(NamedTuple):
    """A daemon on TCP, its keys, and a user who has some."""

    daemon: Daemon
    endpoint: str
    keys: Path
    home: Path
    ctl: Ctl


@pytest.fixture
def place(sysupd: Start, tmp_path: Path) -> Place:
    keys, home = tmp_path / "keys", tmp_path / "home" / "sysup"
    environ = {**os.environ, "XDG_CONFIG_HOME": str(home.parent)}

    def ctl(*arguments: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
        command = [PROGRAMS / "sysupctl", "--timeout", str(PATIENCE), *arguments]
        done = subprocess.run(
            command, env=environ, capture_output=True, text=True, timeout=2 * PATIENCE
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done

    ctl("keygen", "--server", "--dir", keys)
    ctl("keygen")
    endpoint = free_endpoint()
    daemon = sysupd(
        f"[sysup]\nendpoint = {endpoint}\npubsub_endpoint = {free_endpoint()}\n"
        f"curve_dir = {keys}\n{WEB}"
    )
    (home / "servers" / f"{endpoint.removeprefix('tcp://')}.key").write_bytes(
        (keys / "server.key").read_bytes()
    )
    return Place(daemon, endpoint, keys, home, ctl)


def test_from_no_key_to_a_role_and_back(place: Place) -> None:
    ctl, tcp = place.ctl, ("--endpoint", place.endpoint)
    denied = ctl(*tcp, "status", code=4)
    assert "client.key_secret is not authorized there; see sysupctl authorize" in denied.stderr
    ctl("authorize", "me", place.home / "client.key", "--dir", place.keys)
    assert "web" in ctl(*tcp, "status").stdout
    refused = ctl(*tcp, "stop", "web", code=1)
    assert "stop needs the role 'operate', you have 'read'" in refused.stderr
    authorize = ("authorize", "me", place.home / "client.key", "--dir", place.keys, "--force")
    ctl(*authorize, "--role", "operate")
    ctl(*tcp, "stop", "web")
    ctl(*tcp, "start", "web")
    ctl(*tcp, "set", "web", "numprocesses", "2")
    refused = ctl(*tcp, "set", "web", "cmd", "evil", code=1)
    assert "set 'cmd' needs the role 'admin', you have 'operate'" in refused.stderr
    refused = ctl(*tcp, "add", "more", "evil", code=1)
    assert "add needs the role 'admin'" in refused.stderr
    (place.keys / "authorized" / "me.key").unlink()
    ctl(*tcp, "status", code=4)
    place.daemon.says("stop web: by key me, 127.0.0.1")
    place.daemon.says("refused the key")


def test_the_wrong_daemon_and_no_keys_at_all(place: Place, tmp_path: Path) -> None:
    ctl, tcp = place.ctl, ("--endpoint", place.endpoint)
    ctl("keygen", "--server", "--dir", tmp_path / "other")
    other = tmp_path / "other" / "server.key"
    denied = ctl(*tcp, "--server-key", other, "status", code=4)
    assert f"its key is not that of {other}" in denied.stderr
    for path in (place.home / "servers").iterdir():
        path.unlink()
    denied = ctl(*tcp, "status", code=4)
    assert "it wants keys (see --key and --server-key)" in denied.stderr


def test_events_are_heard_by_who_has_a_key(place: Place) -> None:
    place.ctl("authorize", "me", place.home / "client.key", "--dir", place.keys)
    server_key = place.keys / "server.key"
    own = str(place.home / "client.key_secret")
    client = Client(place.endpoint, PATIENCE, key=own, server_key=str(server_key))
    with client, client.subscribe(["watcher.web."]) as events:

        def heard() -> str | None:
            place.daemon.call("set", name="web", options={"priority": 1})
            event = events.receive(0.0)
            return event and event[0]

        assert until(heard, "an event") == "watcher.web.updated"


def test_a_client_can_be_told_its_keys_by_the_environment(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.ctl("authorize", "me", place.home / "client.key", "--dir", place.keys)
    monkeypatch.setenv("SYSUPCTL_KEY", str(place.home / "client.key_secret"))
    monkeypatch.setenv("SYSUPCTL_SERVER_KEY", str(place.keys / "server.key"))
    with Client(place.endpoint, PATIENCE) as client:
        assert json.dumps(client.call("list")["watchers"]) == '["web"]'


def test_without_its_keys_a_daemon_serves_no_tcp(sysupd: Start, tmp_path: Path) -> None:
    endpoint = free_endpoint()
    text = f"[sysup]\nendpoint = {endpoint}\ncurve_dir = {tmp_path}/keys\n{WEB}"
    daemon = sysupd(text)
    daemon.says(f"there is no {tmp_path}/keys/server.key_secret; `sysupctl keygen")
    assert daemon.status("web") == "active"
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)))
