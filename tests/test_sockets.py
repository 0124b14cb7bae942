"""Listening sockets: bound, kept, described, closed."""

from __future__ import annotations

import os
import socket
import stat
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
