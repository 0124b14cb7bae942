"""Listening sockets: bound, kept, described, closed."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from sysup.config import SocketSpec
from sysup.protocol import SysupError
from sysup.sockets import Sockets


@pytest.fixture
def sockets() -> Sockets:
    return Sockets()


def test_tcp(sockets: Sockets) -> None:
    sockets.open(SocketSpec(name="web", host="127.0.0.1", port=0))
    (row,) = sockets.describe()
    assert row["name"] == "web"
    assert row["fd"] == sockets.fds()["web"]
    with socket.create_connection((row["host"], row["port"])):
        pass
    sockets.close()
    assert sockets.fds() == {}


def test_a_path_with_its_umask_goes_with_the_socket(sockets: Sockets, tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    sockets.open(SocketSpec(name="s", path=path, umask=0o077))
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o700
    sockets.close_one("s")
    assert not os.path.exists(path)


def test_a_stale_path_is_replaced_only_if_told(sockets: Sockets, tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(path)
    with pytest.raises(SysupError, match=r"cannot bind socket s to .*in use"):
        sockets.open(SocketSpec(name="s", path=path))
    assert "in use" in sockets.problems["s"]
    sockets.open(SocketSpec(name="s", path=path, replace=True))
    assert sockets.problems == {}
    sockets.close()


def test_replace_removes_nothing_but_sockets(sockets: Sockets, tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(SysupError):
        sockets.open(SocketSpec(name="s", path=str(path), replace=True))
    assert path.read_text() == "data"


@pytest.mark.parametrize(
    "spec",
    [
        SocketSpec(name="s", host="no.such.host.invalid", port=1),
        SocketSpec(name="s", host="x" * 70, port=1),
        SocketSpec(name="s", host="127.0.0.1", port=0, proto="nosuchproto"),
        SocketSpec(name="s", path="/nosuch/directory/s"),
        SocketSpec(name="s", path="/tmp/" + "x" * 200),
    ],
)
def test_what_cannot_be_bound(sockets: Sockets, spec: SocketSpec) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(SysupError, match="cannot bind socket s to"):
        sockets.open(spec)
    assert len(os.listdir("/proc/self/fd")) == before


# ---- those that systemd holds ------------------------------------------------------------


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def given(sock: socket.socket, *more: socket.socket) -> list[int]:
    """Duplicates, as they are handed over."""
    return [os.dup(each.fileno()) for each in (sock, *more)]


def test_one_that_is_given_takes_the_place_of_the_configs(listener: socket.socket) -> None:
    sockets = Sockets({"Web": given(listener)})
    assert sockets.fds().keys() == {"web"}
    assert not sockets.holds("web")
    sockets.open(SocketSpec(name="web", port=1))
    assert sockets.holds("web")
    (row,) = sockets.describe()
    assert (row["host"], row["port"]) == listener.getsockname()
    sockets.close_one("web")
    assert not sockets.holds("web")
    assert sockets.fds().keys() == {"web"}
    sockets.close()
    assert sockets.fds() == {}
    with socket.create_connection(listener.getsockname()):
        pass  # it listens as before


def test_its_path_is_left(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(tmp_path / "s"))
        unix.listen()
        sockets = Sockets({"s": given(unix)})
        sockets.open(SocketSpec(name="s", path="/elsewhere"))
        assert sockets.describe()[0]["path"] == str(tmp_path / "s")
        sockets.close()
        assert (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (SocketSpec(name="s", type="SOCK_DGRAM"), "it is of type SOCK_STREAM, not SOCK_DGRAM"),
        (SocketSpec(name="s", path="/s"), "it is of family AF_INET, and has no path"),
    ],
)
def test_one_of_another_kind(listener: socket.socket, spec: SocketSpec, reason: str) -> None:
    sockets = Sockets({"s": given(listener)})
    with pytest.raises(SysupError, match=f"cannot use socket s of systemd: {reason}"):
        sockets.open(spec)
    assert reason in sockets.problems["s"]
    sockets.close()


def test_a_port_of_both_families_is_that_of_one() -> None:
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as both:
        sockets = Sockets({"s": given(both)})
        sockets.open(SocketSpec(name="s", port=1))
        sockets.close()


def test_what_else_is_given_is_left_alone(
    listener: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    file = os.memfd_create("file")
    pair, memory = given(left, right), [file]
    sockets = Sockets({"pair": pair, "memory": memory, "web": given(listener, listener)})
    assert sockets.fds().keys() == {"web"}
    assert "several sockets web: one is used" in caplog.text
    sockets.close()
    left.close()
    right.close()
    for fd in (*pair, *memory):
        os.close(fd)  # which raises where it is closed already
