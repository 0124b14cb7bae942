"""What is said to systemd, byte for byte, and what is taken from it."""

from __future__ import annotations

import array
import fcntl
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sysup.protocol import SysupError
from sysup.systemd import Notifier, listen_fds, watchdog_interval


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The service manager's end, which NOTIFY_SOCKET names."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(str(tmp_path / "notify"))
        end.settimeout(60)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield end


@pytest.fixture
def notifier(manager: socket.socket) -> Iterator[Notifier]:
    made = Notifier()
    yield made
    made.close()


def test_what_is_said(notifier: Notifier, manager: socket.socket) -> None:
    for told, message in (
        (notifier.ready(), b"READY=1"),
        (notifier.stopping(), b"STOPPING=1"),
        (notifier.watchdog(), b"WATCHDOG=1"),
        (notifier.extend(1.5), b"EXTEND_TIMEOUT_USEC=1500000"),
        (notifier.forget("lot"), b"FDSTOREREMOVE=1\nFDNAME=lot"),
    ):
        assert told
        assert manager.recv(1000) == message


def test_a_reload_tells_when_it_began(notifier: Notifier, manager: socket.socket) -> None:
    assert notifier.reloading()
    first, second = manager.recv(1000).decode().split("\n")
    assert first == "RELOADING=1"
    assert int(second.removeprefix("MONOTONIC_USEC=")) > 0


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("1 flapping: wéb ✓", "1 flapping: wéb ✓"),
        ("two\nREADY=1\r\nlines\x00", "two READY=1 lines?"),
        ("\udcff\x1b", "??"),
        ("x" * 1000, "x" * 512),
    ],
)
def test_a_status_is_one_line_of_utf8(
    notifier: Notifier, manager: socket.socket, text: str, line: str
) -> None:
    assert notifier.status(text)
    assert manager.recv(5000).decode() == f"STATUS={line}"


def test_an_abstract_address(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"sysup-notify-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(f"\0{name}")
        end.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
        notifier = Notifier()
        assert notifier.ready()
        assert end.recv(100) == b"READY=1"
        notifier.close()


def test_without_a_manager_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notifier = Notifier()
    assert not notifier.connected
    assert not notifier.ready()
    with pytest.raises(SysupError, match="cannot store lot: there is no service manager"):
        notifier.store("lot", 0)


def test_a_full_queue_loses_the_message_and_nothing_waits(notifier: Notifier) -> None:
    while notifier.watchdog():
        pass
    assert not notifier.status("lost")
    with pytest.raises(SysupError, match="cannot store lot: resource temporarily unavailable"):
        notifier.store("lot", 0)


def test_a_manager_that_is_gone(notifier: Notifier, manager: socket.socket) -> None:
    manager.close()
    assert not notifier.ready()
    with pytest.raises(SysupError, match="cannot store lot: transport endpoint is not"):
        notifier.store("lot", 0)


def test_descriptors_are_stored(notifier: Notifier, manager: socket.socket) -> None:
    reader, writer = os.pipe()
    notifier.store("lot", reader, writer)
    message, ancillary, _, _ = manager.recvmsg(1000, socket.CMSG_SPACE(8))
    assert message == b"FDSTORE=1\nFDPOLL=0\nFDNAME=lot"
    ((_, kind, data),) = ancillary
    assert kind == socket.SCM_RIGHTS
    got = array.array("i", data)
    os.write(got[1], b"through")
    assert os.read(reader, 100) == b"through"
    for fd in (reader, writer, *got):
        os.close(fd)


@pytest.mark.parametrize("name", ["", "a:b", "a\nREADY=1", "é", "x" * 256])
def test_names_that_systemd_would_not_take(notifier: Notifier, name: str) -> None:
    for use in (notifier.forget, lambda name: notifier.store(name, 0)):
        with pytest.raises(SysupError, match="it is no name for a descriptor"):
            use(name)


def test_the_environment_is_for_us_alone(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {
        "NOTIFY_SOCKET": os.environ["NOTIFY_SOCKET"],
        **{"WATCHDOG_USEC": "5", "WATCHDOG_PID": "7", "LISTEN_PID": "8", "LISTEN_FDS": "2"},
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    notifier = Notifier()
    assert not given.keys() & os.environ.keys()
    assert notifier.environ() == given
    assert notifier.connected
    notifier.close()


# ---- what is given -----------------------------------------------------------------------

ME = str(os.getpid())


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "2500000"}, 2.5),
        ({"WATCHDOG_USEC": "2500000", "WATCHDOG_PID": ME}, 2.5),
        ({"WATCHDOG_USEC": "2500000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "2500000", "WATCHDOG_PID": "?"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "-1"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_watchdogs_interval(environ: dict[str, str], seconds: float | None) -> None:
    assert watchdog_interval(environ) == seconds


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"LISTEN_FDS": "1"},
        {"LISTEN_FDS": "1", "LISTEN_PID": "1"},
        {"LISTEN_FDS": "1", "LISTEN_PID": "me"},
        {"LISTEN_FDS": "many", "LISTEN_PID": ME},
        {"LISTEN_FDS": "0", "LISTEN_PID": ME},
        {"LISTEN_PID": ME},
    ],
)
def test_descriptors_that_are_not_for_us(environ: dict[str, str]) -> None:
    assert listen_fds(environ) == {}


LISTENER = """
import os, sys
from sysup.systemd import Notifier, listen_fds
os.environ["LISTEN_PID"] = str(os.getpid())
found = listen_fds(Notifier().environ())
print(found, [os.get_inheritable(fd) for fds in found.values() for fd in fds])
"""


def listening(*fds: int, **environ: str) -> str:
    """What a process makes of descriptors that are handed to it from 3 on."""

    def hand_over() -> None:
        copies = [fcntl.fcntl(fd, fcntl.F_DUPFD, 100) for fd in fds]
        for place, fd in enumerate(copies):
            os.dup2(fd, 3 + place)

    done = subprocess.run(
        [sys.executable, "-c", LISTENER],
        env={**os.environ, **environ},
        preexec_fn=hand_over,
        close_fds=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.stdout.strip() or done.stderr.splitlines()[-1]


def test_descriptors_by_name() -> None:
    null = os.open(os.devnull, os.O_RDWR)
    got = listening(null, null, null, null, LISTEN_FDS="4", LISTEN_FDNAMES="web:control:web:")
    os.close(null)
    expected = "{'web': [3, 5], 'control': [4], 'unknown': [6]} [False, False, False, False]"
    assert got == expected


def test_descriptors_without_names() -> None:
    null = os.open(os.devnull, os.O_RDWR)
    assert listening(null, LISTEN_FDS="1").startswith("{'unknown': [3]}")
    os.close(null)


def test_descriptors_that_are_not_open() -> None:
    got = listening(LISTEN_FDS="1000")
    assert "cannot take descriptor" in got
    assert got.endswith("over from systemd: bad file descriptor")
