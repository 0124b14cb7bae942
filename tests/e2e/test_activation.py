"""Sockets that somebody else holds, as systemd does: they are served, and stay when we end."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import zmq

from sysup import protocol
from tests.e2e.conftest import Start
from tests.e2e.harness import PATIENCE, Daemon, until

SERVER = """
import os, socket, sys
listener = socket.socket(fileno=int(sys.argv[1]))
listener.setblocking(True)
while True:
    client, _ = listener.accept()
    client.sendall(str(os.getpid()).encode())
    client.close()
"""
MILLISECONDS = round(PATIENCE * 1000)


class Held:
    """Sockets, held as long as the test lasts."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.all = ExitStack()

    def control(self) -> socket.socket:
        (self.directory / "app").mkdir(mode=0o700)
        return self.unix(self.directory / "app" / "control")

    def unix(self, path: Path, kind: int = socket.SOCK_STREAM) -> socket.socket:
        sock = self.all.enter_context(socket.socket(socket.AF_UNIX, kind))
        sock.bind(str(path))
        if kind == socket.SOCK_STREAM:
            sock.listen()
        return sock

    def tcp(self) -> socket.socket:
        return self.all.enter_context(socket.create_server(("127.0.0.1", 0)))


@pytest.fixture
def held(runtime: Path) -> Iterator[Held]:
    """In the runtime directory of the `sysupd` fixture."""
    made = Held(runtime)
    with made.all:
        yield made


@pytest.fixture
def server(tmp_path: Path) -> str:
    """The beginning of a command that tells each client its pid; a descriptor follows."""
    (tmp_path / "server.py").write_text(SERVER)
    return f"{sys.executable} {tmp_path}/server.py"


def ask(path: Path) -> zmq.Socket[bytes]:
    client: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
    client.setsockopt(zmq.LINGER, 0)
    client.connect(f"ipc://{path}")
    client.send(protocol.encode_request(protocol.Request("version", {}, "early")))
    return client


def is_answered(client: zmq.Socket[bytes]) -> bool:
    with client:
        assert client.poll(MILLISECONDS), "no answer"
        return bool(json.loads(client.recv())["id"] == "early")


def talk(address: object) -> int:
    """The pid of who serves there."""
    family = socket.AF_INET if isinstance(address, tuple) else socket.AF_UNIX
    with socket.socket(family) as client:
        client.settimeout(PATIENCE)
        client.connect(address)  # type: ignore[arg-type]
        return int(client.recv(100))


def serving(daemon: Daemon, address: object, name: str = "web") -> bool:
    return talk(address) in daemon.pids(name)


# ---- the control socket ------------------------------------------------------------------

WEB = "[watcher:web]\ncmd = sleep 1000\n"


def test_the_request_that_started_it_is_answered(sysupd: Start, held: Held) -> None:
    control = held.control()
    path = held.directory / "app" / "control"
    inode = path.stat().st_ino
    for _ in range(2):
        client = ask(path)
        daemon = sysupd(WEB, listen=[("control", control)], wait=False)
        assert is_answered(client)
        assert daemon.ctl("status").returncode == 0
        assert daemon.stop() == 0
        assert path.stat().st_ino == inode, "it is still there, for the next request"
        assert sorted(os.listdir(path.parent)) == ["control", "lock"]


def test_a_control_socket_elsewhere_is_one_more(sysupd: Start, held: Held) -> None:
    elsewhere = held.directory / "elsewhere"
    daemon = sysupd(WEB, listen=[("control", held.unix(elsewhere))])
    assert is_answered(ask(elsewhere))
    assert daemon.status("web") == "active"


def test_a_control_socket_that_nobody_can_reach_is_replaced(sysupd: Start, held: Held) -> None:
    control = held.control()
    path = held.directory / "app" / "control"
    path.unlink()
    daemon = sysupd(WEB, listen=[("control", control)])
    daemon.says(f"cannot serve the control socket of systemd: {path} is not there")
    daemon.stop()
    assert not path.exists(), "this one is the daemon's own"


def test_what_is_no_control_socket(sysupd: Start, held: Held) -> None:
    tcp = held.tcp()
    datagrams = held.unix(held.directory / "datagrams", socket.SOCK_DGRAM)
    daemon = sysupd(WEB, listen=[("control", tcp), ("control", datagrams)])
    daemon.says("it is not a stream socket of the file system", times=2)


# ---- sockets of the app ------------------------------------------------------------------


def test_sockets_by_name(sysupd: Start, held: Held, server: str) -> None:
    """One takes the place of the config's, one the config does not know."""
    tcp, unix = held.tcp(), held.unix(held.directory / "other.sock")
    ini = (
        f"[socket:Web]\nport = 1\n[watcher:web]\ncmd = {server} $(circus.sockets.web)\n"
        f"[watcher:other]\ncmd = {server} $(sysup.sockets.Other)\n"
    )
    daemon = sysupd(ini, listen=[("web", tcp), ("Other", unix)])
    assert serving(daemon, tcp.getsockname())
    assert serving(daemon, unix.getsockname(), "other")
    rows = {row["name"]: row for row in daemon.call("listsockets")["sockets"]}
    assert rows["web"]["port"] == tcp.getsockname()[1]
    assert rows["other"]["path"] == unix.getsockname()
    daemon.stop()
    assert os.path.exists(unix.getsockname())
    with socket.create_connection(tcp.getsockname()):
        pass


def test_a_reload_leaves_them_open(sysupd: Start, held: Held, server: str) -> None:
    tcp = held.tcp()
    watcher = f"[watcher:web]\ncmd = {server} $(circus.sockets.web)\n"
    daemon = sysupd(f"[socket:web]\nport = 1\n{watcher}", listen=[("web", tcp)])
    assert serving(daemon, tcp.getsockname())
    for text in (f"[socket:web]\nport = 2\n{watcher}", watcher):
        daemon.file.write_text(text)
        assert daemon.call("reloadconfig", waiting=True)["status"] == "ok"
        assert serving(daemon, tcp.getsockname())


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ("port = 1\ntype = SOCK_DGRAM", "it is of type SOCK_STREAM, not SOCK_DGRAM"),
        ("path = /nosuch", "it is of family AF_INET, and has no path"),
    ],
)
def test_one_of_another_kind_is_not_used(
    sysupd: Start, held: Held, server: str, config: str, reason: str
) -> None:
    ini = f"[socket:web]\n{config}\n[watcher:web]\ncmd = {server} $(circus.sockets.web)\n"
    daemon = sysupd(ini, listen=[("web", held.tcp())])
    found = daemon.call("status")["watchers"]["web"]
    assert found["reason"] == f"cannot use socket web of systemd: {reason}"


def test_an_upgrade_takes_them_along(sysupd: Start, held: Held, server: str) -> None:
    control, tcp, unix = held.control(), held.tcp(), held.unix(held.directory / "other.sock")
    ini = f"[socket:web]\n[watcher:web]\ncmd = {server} $(circus.sockets.web)\n"
    listen = [("web", tcp), ("control", control), ("other", unix)]
    daemon = sysupd(ini, listen=listen)
    assert serving(daemon, tcp.getsockname())
    before = daemon.pids("web")
    for _ in range(2):
        daemon.upgrade()
        assert serving(daemon, tcp.getsockname())
        assert daemon.pids("web") == before
        names = [row["name"] for row in daemon.call("listsockets")["sockets"]]
        assert sorted(names) == ["other", "web"]
    os.kill(before[0], signal.SIGKILL)
    until(lambda: daemon.pids("web") not in ([], before), "a new one")
    assert serving(daemon, tcp.getsockname())


ACTIVATED = """
import os, socket
assert int(os.environ["LISTEN_PID"]) == os.getpid()
names = os.environ["LISTEN_FDNAMES"].split(":")
for fd, name in enumerate(names, 3):
    with socket.socket(fileno=os.dup(fd)) as sock:
        print(name, sock.getsockname()[1], flush=True)
print(os.environ["LISTEN_FDS"], sorted(map(int, os.listdir("/proc/self/fd")))[-2], flush=True)
"""


def complete(path: Path, number: int) -> list[str]:
    """The lines of a file, when it has so many."""
    text = path.read_text() if path.exists() else ""
    return text.splitlines() if text.count("\n") == number else []


def test_a_program_for_socket_activation(sysupd: Start, held: Held, tmp_path: Path) -> None:
    """As systemd would: descriptors from 3 on, whatever else the program gets."""
    (tmp_path / "activated.py").write_text(ACTIVATED)
    mine, ours = held.tcp(), held.tcp()
    daemon = sysupd(
        "[socket:own]\nport = 0\n[watcher:web]\nrestart = never\nlisten_fds = own, Given\n"
        f"cmd = {sys.executable} {tmp_path}/activated.py $(sysup.sockets.other)\n"
        f"stdout_stream.class = FileStream\nstdout_stream.filename = {tmp_path}/out\n",
        listen=[("given", mine), ("other", ours)],
    )
    lines = until(lambda: complete(tmp_path / "out", 3), "the program tells what it has")
    (own,) = [s for s in daemon.call("listsockets")["sockets"] if s["name"] == "own"]
    assert lines[:2] == [f"own {own['port']}", f"Given {mine.getsockname()[1]}"]
    assert lines[2].split()[0] == "2"
