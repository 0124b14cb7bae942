"""Who is refused: real users, real daemons, real sockets. docs/security.md is the table of it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from sysup.endpoints import listen
from tests.e2e.conftest import Start
from tests.e2e.harness import PATIENCE, PROGRAMS, Daemon, resident, until
from tests.e2e.test_keys import free_endpoint
from tests.zmtp import MORE, connect, frame

NOBODY, GROUP = 65534, 47110
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")

WEB = "[watcher:web]\ncmd = sleep 1000\n"


@pytest.fixture
def common() -> Iterator[Path]:
    """A directory that everybody may enter, as /run is."""
    directory = Path(tempfile.mkdtemp(prefix="sysup-test-"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


class Open(NamedTuple):
    """A daemon whose runtime directory is where everybody may look, and which is on TCP."""

    daemon: Daemon
    base: Path
    endpoint: str
    events: str


@pytest.fixture
def served(sysupd: Start, common: Path, monkeypatch: pytest.MonkeyPatch) -> Open:
    endpoint, events = free_endpoint(), free_endpoint()
    text = f"[sysup]\nendpoint = {endpoint}\npubsub_endpoint = {events}\n{WEB}"
    monkeypatch.setattr("tests.e2e.harness.Daemon.__init__", _in(common, Daemon.__init__))
    return Open(sysupd(text), common, endpoint, events)


def _in(base: Path, make: object) -> object:
    """The constructor of a daemon, with another runtime directory."""

    def init(self: Daemon, directory: Path, runtime: Path, *args: object) -> None:
        make(self, directory, base, *args)  # type: ignore[operator]

    return init


def as_user(
    base: Path, *arguments: str, uid: int = NOBODY, groups: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run sysupctl as somebody else."""
    who = [f"--reuid={uid}", f"--regid={uid}", f"--groups={groups}" if groups else "--clear-groups"]
    return subprocess.run(
        ["setpriv", *who, PROGRAMS / "sysupctl", f"--timeout={PATIENCE:g}", *arguments],
        env={**os.environ, "SYSUP_RUNTIME_DIR": str(base), "HOME": "/nonexistent"},
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE,
    )


def test_a_local_user_outside_the_group(served: Open) -> None:
    for where in ((), ("-a", "app"), ("--endpoint", f"ipc://{served.base}/app/control")):
        done = as_user(served.base, *where, "status")
        assert done.returncode == 4
        assert "permission denied" in done.stderr
        assert "use sudo" in done.stderr
    listening = as_user(
        served.base, "--endpoint", f"ipc://{served.base}/app/control", "tail", "-f", "web"
    )
    assert listening.returncode != 0


def test_the_group_may_connect_and_nobody_else(common: Path) -> None:
    path = common / "control"
    program = f"import socket; socket.socket(socket.AF_UNIX).connect({str(path)!r})"
    with listen(str(path), 0o660, GROUP):
        for groups, code in (
            (f"--groups={GROUP}", 0),
            ("--groups=47111", 1),
            ("--clear-groups", 1),
        ):
            who = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", groups]
            command = [*who, "/usr/bin/python3", "-c", program]
            done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
            assert done.returncode == code, done.stderr
            assert ("PermissionError" in done.stderr) == bool(code)


def test_plain_tcp_reads_and_no_more(served: Open) -> None:
    tcp = ("--endpoint", served.endpoint)
    assert "web" in as_user(served.base, *tcp, "status").stdout
    for command in (
        ("stop", "web"),
        ("incr", "web"),
        ("kill", "web"),
        ("set", "web", "numprocesses", "5"),
        ("set", "web", "cmd", "evil"),
        ("add", "more", "evil"),
        ("rm", "web"),
        ("reloadconfig",),
        ("quit",),
        ("tail", "web"),
    ):
        done = as_user(served.base, *tcp, *command)
        assert done.returncode == 1, command
        assert "permission denied" in done.stderr
        assert "you have 'read'" in done.stderr
    assert served.daemon.status("web") == "active"
    assert served.daemon.call("numprocesses")["numprocesses"] == 1


def is_over(peer: socket.socket) -> bool:
    """Whether the other side has ended a connection."""
    try:
        return not peer.recv(1 << 16)
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def test_messages_without_end_cost_little(served: Open) -> None:
    """Each of some peers sends what never ends, as fast as it can: all are cut."""
    before = resident(served.daemon.pid)
    peers = [connect(served.endpoint) for _ in range(4)]
    block = frame(b"x", MORE) * 50_000
    for peer in peers:
        peer.setblocking(False)
    most, left = before, dict.fromkeys(peers, b"")

    def pour() -> bool:
        nonlocal most
        for peer in [*left]:
            try:
                left[peer] = (left[peer] or block)[peer.send(left[peer] or block) :]
            except BlockingIOError:
                if is_over(peer):
                    del left[peer]
            except ConnectionError:
                del left[peer]
        most = max(most, resident(served.daemon.pid))
        return not left

    until(pour, "all are cut")
    for peer in peers:
        peer.close()
    assert most - before < 500 << 20
    assert served.daemon.status("web") == "active"


def test_thousands_of_connections(served: Open) -> None:
    before = resident(served.daemon.pid)
    web = served.daemon.pids("web")
    for endpoint in (served.endpoint, served.events):
        for _ in range(50):
            peers = [connect(endpoint, "SUB" if endpoint == served.events else "DEALER")]
            for _ in range(99):
                try:
                    peers.append(connect(endpoint))
                except ConnectionError:  # not let in, as a SUB is all that events are for
                    continue
            for peer in peers:
                peer.close()
    assert served.daemon.pids("web") == web
    assert as_user(served.base, "--endpoint", served.endpoint, "status").returncode == 0
    assert resident(served.daemon.pid) - before < 100 << 20


def test_a_hostile_child_is_no_peer_of_ours(sysupd: Start, common: Path) -> None:
    """A process of another user can't reach the socket of the daemon that started it."""
    said = common / "said"
    said.touch()
    said.chmod(0o666)
    program = common / "child.py"
    program.write_text(
        "import os, socket, sys, time\n"
        "try:\n"
        "    socket.socket(socket.AF_UNIX).connect(sys.argv[1] + '/app/control')\n"
        "    said = 'connected'\n"
        "except OSError as error:\n"
        "    said = error.strerror\n"
        "open(sys.argv[2], 'w').write(said)\n"
        "time.sleep(1000)\n"
    )
    daemon = sysupd(
        f"[watcher:child]\ncmd = /usr/bin/python3 {program} $(circus.env.SYSUP_RUNTIME_DIR) {said}"
        f"\nuid = {NOBODY}\ngid = {NOBODY}\n"
    )
    assert until(said.read_text, "it has tried") == "Permission denied"
    assert daemon.status("child") == "active"


def test_a_child_of_another_user_opens_its_own_streams_again(sysupd: Start) -> None:
    """As programs do that are told to log to /dev/stdout."""
    daemon = sysupd(
        "[watcher:child]\nstdin = pipe\n"
        "cmd = sh -c 'read line </dev/stdin; echo $line >/dev/stdout; echo also >/dev/stderr; "
        f"exec sleep 1000'\nuid = {NOBODY}\ngid = {NOBODY}\n"
    )
    assert daemon.call("send", name="child", text="heard", waiting=True)["status"] == "ok"
    daemon.says("heard\n")
    daemon.says("also\n")
