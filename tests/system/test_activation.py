"""Sockets that systemd holds for an app: the first request starts it, no client is refused."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator

import pytest

from tests.e2e.harness import PATIENCE, until
from tests.lab import Container
from tests.system.services import App, as_user
from tests.system.test_restore import daemon_of

pytestmark = pytest.mark.usefixtures("nothing_is_left")

EXAMPLES = "/usr/local/share/doc/sysup/examples"
AT_ONCE = 50.0
"""Seconds, on a loaded machine; who waits for a daemon that can't be reached waits twice that."""
SERVER = """
import os, socket
listener = socket.socket(fileno=3)
assert (os.environ["LISTEN_FDNAMES"], os.environ["LISTEN_PID"]) == ("web", str(os.getpid()))
listener.setblocking(True)
while True:
    client, _ = listener.accept()
    client.sendall(str(os.getpid()).encode())
    client.close()
"""


@pytest.fixture
def waiting(machine: Container, request: pytest.FixtureRequest) -> Iterator[App]:
    """An app that nobody has started, whose control socket systemd holds."""
    app = App(machine, request.node.name.removeprefix("test_")[:16].strip("_"))
    machine.run(["systemctl", "start", f"sysup@{app.name}.socket"])
    yield app
    machine.run(["systemctl", "stop", f"sysup@{app.name}.socket", app.unit])


def test_a_command_starts_the_app_and_is_answered(waiting: App) -> None:
    assert waiting.show("ActiveState") == "inactive"
    assert waiting.ctl("list").stdout.split() == ["w"]
    assert waiting.show("ActiveState") in ("activating", "active")
    until(lambda: len(waiting.pids()) == 2, "its processes run")
    first = waiting.show("MainPID")
    waiting.systemctl("stop")
    assert waiting.pids() == set()
    assert waiting.ctl("list").stdout.split() == ["w"], "as often as it is asked"
    assert waiting.show("MainPID") not in (first, "0")


def test_a_member_of_the_group_may(waiting: App) -> None:
    command = ["sysupctl", "-a", waiting.name, "--timeout=100", "list"]
    done = waiting.machine.run([*as_user("sysup"), *command])
    assert done.stdout.split() == ["w"]


def test_nobody_else_may_and_is_told_at_once(waiting: App) -> None:
    begun = time.monotonic()
    command = ["sysupctl", "-a", waiting.name, "--timeout=100", "status"]
    done = waiting.machine.run([*as_user(), *command], check=False)
    assert done.returncode != 0
    assert "permission" in done.stderr.lower()
    assert time.monotonic() - begun < AT_ONCE
    assert waiting.show("ActiveState") == "inactive", "who may not command starts nothing"


@pytest.fixture
def web(machine: Container) -> Iterator[App]:
    """An app that serves on a socket of systemd, by the example unit."""
    app = App(machine, "served")
    unit = machine.path(f"{EXAMPLES}/sysup-web@.socket").read_text()
    machine.write("/etc/systemd/system/sysup-web@.socket", unit)
    machine.write("/root/server.py", SERVER)
    app.configure(1, "[watcher:web]\ncmd = python3 -S /root/server.py\nlisten_fds = web")
    machine.run(["systemctl", "daemon-reload"])
    machine.run(["systemctl", "start", f"sysup-web@{app.name}.socket"])
    yield app
    machine.run(["systemctl", "stop", f"sysup-web@{app.name}.socket", app.unit])
    machine.path("/etc/systemd/system/sysup-web@.socket").unlink()
    machine.run(["systemctl", "daemon-reload"])


def served(app: App) -> int:
    """The pid, in the machine, of who answers a client; who comes is never refused."""
    path = app.path(f"/run/sysup-web-{app.name}.sock")
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(PATIENCE)
        client.connect(str(path))
        return int(client.recv(100))


def test_clients_wait_for_who_is_started_by_them(web: App) -> None:
    assert web.show("ActiveState") == "inactive"
    first = served(web)
    assert web.show("ActiveState") in ("activating", "active")
    os.kill(daemon_of(web), signal.SIGKILL)
    assert served(web) == first, "it serves on while there is no daemon"
    until(lambda: web.show("ActiveState") == "active", "there is one again")
    web.ctl("restart", "web")
    second = served(web)
    assert second != first
    web.systemctl("restart")
    assert served(web) not in (first, second)
    web.systemctl("stop")
    assert served(web) > 0, "and it is started once more"
