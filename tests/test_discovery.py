"""Where daemons are: found by their sockets, and told from those that are not there."""

from __future__ import annotations

import grp
import os
import pwd
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sysup import protocol
from sysup.client import Client
from sysup.discovery import ENDPOINT_VARIABLES, Unreachable, apps, find_endpoint, probe
from sysup.protocol import Errno

from .canned import CannedDaemon

DAEMON, NOBODY = 1, 65534


def stale_socket(path: Path) -> str:
    """A socket file that a process left behind when it was killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
    return f"ipc://{path}"


@contextmanager
def powerless() -> Iterator[None]:
    """As a user whom file modes mean: root is not."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


# ---- nobody there ------------------------------------------------------------------------


def test_no_socket(tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match=f"cannot reach ipc://{tmp_path}/no: there is no such"):
        Client(f"ipc://{tmp_path}/no")


def test_a_stale_socket(tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match="connection refused"):
        Client(stale_socket(tmp_path / "control"))


def test_nobody_at_a_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        probe(f"tcp://127.0.0.1:{port}")
    with pytest.raises(Unreachable, match="connection refused"):
        probe(f"tcp://127.0.0.1:{port}")


@pytest.mark.parametrize(
    ("endpoint", "reason"),
    [
        ("shop", "not an endpoint; write ipc://PATH"),
        ("ipc://", "not an endpoint"),
        ("tcp://localhost", "invalid literal"),
        ("ipc://" + "x" * 200, "path too long"),
    ],
)
def test_what_is_no_endpoint(endpoint: str, reason: str) -> None:
    with pytest.raises(Unreachable, match=reason):
        probe(endpoint)


def test_a_daemon_too_busy_to_accept_is_there(tmp_path: Path) -> None:
    path = str(tmp_path / "control")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(0)
        waiting = []
        try:
            while True:  # until the queue is full
                one = socket.socket(socket.AF_UNIX)
                waiting.append(one)
                one.setblocking(False)
                one.connect(path)
        except BlockingIOError:
            probe(f"ipc://{path}")
        finally:
            for one in waiting:
                one.close()


def test_an_abstract_socket() -> None:
    name = f"sysup-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"\0{name}")
        listener.listen()
        probe(f"ipc://@{name}")


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that others can reach, as pytest's own can't be."""
    with tempfile.TemporaryDirectory(dir="/tmp") as made:
        os.chmod(made, 0o755)
        yield Path(made)


def test_a_socket_of_others(open_directory: Path) -> None:
    path = open_directory / "shop" / "control"
    with CannedDaemon(path.parent):
        if os.geteuid() == 0:
            os.chown(path, 0, DAEMON)  # a group that every Linux has
        os.chmod(path, 0o060)
        found = os.stat(path)
        with powerless(), pytest.raises(Unreachable) as caught:
            find_endpoint(environ=at(open_directory))
    owner, group = pwd.getpwuid(found.st_uid).pw_name, grp.getgrgid(found.st_gid).gr_name
    assert str(caught.value) == (
        f"permission denied: {path} is {owner}:{group} 0060; join group {group} or use sudo"
    )
    assert caught.value.errno is Errno.ACCESS_DENIED


def test_a_directory_of_others(open_directory: Path) -> None:
    with CannedDaemon(open_directory / "shop") as daemon:
        os.chmod(open_directory / "shop", 0o000)
        with powerless(), pytest.raises(Unreachable) as caught:
            probe(daemon.endpoint)
        os.chmod(open_directory / "shop", 0o700)
    assert f"permission denied: {open_directory}/shop is " in str(caught.value)
    assert str(caught.value).endswith("0000; use sudo")


# ---- finding the app ---------------------------------------------------------------------


def at(base: Path, **more: str) -> dict[str, str]:
    return {"SYSUP_RUNTIME_DIR": str(base), **more}


def test_the_only_app_is_found(base: Path, daemon: CannedDaemon) -> None:
    stale_socket(base / "dead" / "control")
    (base / "empty").mkdir()
    (base / "odd" / "control").mkdir(parents=True)
    assert find_endpoint(environ=at(base)) == daemon.endpoint
    assert apps(at(base)) == ["dead", "shop"]


def test_one_of_several_is_named(base: Path, daemon: CannedDaemon) -> None:
    with CannedDaemon(base / "blog") as blog:
        assert find_endpoint("blog", at(base)) == blog.endpoint
        assert find_endpoint("shop", at(base)) == daemon.endpoint
        with pytest.raises(Unreachable, match="several apps are running: blog, shop; name one"):
            find_endpoint(environ=at(base))


@contextmanager
def held(path: Path) -> Iterator[socket.socket]:
    """A control socket that systemd holds for an app that does not run."""
    path.parent.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        listener.setblocking(False)
        yield listener


def was_asked(listener: socket.socket) -> bool:
    """Whether somebody connected, which would start the app."""
    try:
        listener.accept()[0].close()
    except BlockingIOError:
        return False
    return True


def test_apps_that_wait_to_be_started_are_not_started_by_looking(base: Path) -> None:
    with held(base / "one" / "control") as one:
        assert find_endpoint(environ=at(base)) == f"ipc://{base}/one/control"
        with held(base / "two" / "control") as two:
            with pytest.raises(Unreachable, match="several apps wait to be started: one, two;"):
                find_endpoint(environ=at(base))
            with CannedDaemon(base / "shop") as daemon:
                assert find_endpoint(environ=at(base)) == daemon.endpoint
            assert not was_asked(two)
        assert not was_asked(one)


def test_no_app_runs(base: Path) -> None:
    with pytest.raises(Unreachable, match=f"no sysupd is running .looked in {base}"):
        find_endpoint(environ=at(base))


def test_the_app_is_not_there(base: Path, daemon: CannedDaemon) -> None:
    with pytest.raises(Unreachable, match=r"blog is not running \(.*; there is shop\)"):
        find_endpoint("blog", at(base))


def test_a_name_is_no_path(base: Path, daemon: CannedDaemon) -> None:
    with pytest.raises(Unreachable, match="is not running"):
        find_endpoint("../run/shop", at(base))


@pytest.mark.parametrize("variable", ["SYSUPCTL_ENDPOINT", "CIRCUSCTL_ENDPOINT"])
def test_the_environment_names_an_endpoint(variable: str, base: Path, daemon: CannedDaemon) -> None:
    environ = at(base, **{variable: "tcp://127.0.0.1:5555"})
    assert find_endpoint(environ=environ) == "tcp://127.0.0.1:5555"
    assert find_endpoint("shop", environ) == daemon.endpoint


def test_a_user_sees_his_own_apps_and_the_systems(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(protocol, "SYSTEM_BASE", str(tmp_path / "system"))
    environ = {"XDG_RUNTIME_DIR": str(tmp_path)}
    with CannedDaemon(tmp_path / "system" / "shop") as system:
        assert find_endpoint(environ=environ, uid=os.getuid() or 1000) == system.endpoint
        with CannedDaemon(tmp_path / "sysup" / "shop") as own:
            assert find_endpoint("shop", environ, os.getuid() or 1000) == own.endpoint
            assert find_endpoint("shop", environ, 0) == system.endpoint


def test_sockets_that_a_stranger_made_are_not_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(protocol, "SYSTEM_BASE", str(tmp_path / "none"))
    environ = {"XDG_RUNTIME_DIR": str(tmp_path)}
    me = os.geteuid()
    with CannedDaemon(tmp_path / "sysup" / "shop") as daemon:
        assert find_endpoint(environ=environ, uid=me or 1000) == daemon.endpoint
        if me == 0:
            os.chown(tmp_path / "sysup", NOBODY, -1)
        with pytest.raises(Unreachable, match="no sysupd is running"):
            find_endpoint(environ=environ, uid=me + 1000)


def test_a_client_finds_the_app_by_itself(
    monkeypatch: pytest.MonkeyPatch, base: Path, daemon: CannedDaemon
) -> None:
    monkeypatch.setenv("SYSUP_RUNTIME_DIR", str(base))
    for variable in ENDPOINT_VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    for target in (None, "shop"):
        with Client(target) as connected:
            assert connected.endpoint == daemon.endpoint


@pytest.mark.parametrize(
    ("uid", "environ", "directory"),
    [
        (0, {}, "/run/sysup"),
        (0, {"XDG_RUNTIME_DIR": "/run/user/0"}, "/run/sysup"),
        (1000, {"XDG_RUNTIME_DIR": "/run/user/1000"}, "/run/user/1000/sysup"),
        (1000, {}, "/tmp/sysup-1000"),
        (1000, {"SYSUP_RUNTIME_DIR": "/srv", "XDG_RUNTIME_DIR": "/run/user/1000"}, "/srv"),
        (0, {"SYSUP_RUNTIME_DIR": ""}, "/run/sysup"),
    ],
)
def test_runtime_base(uid: int, environ: dict[str, str], directory: str) -> None:
    assert protocol.runtime_base(uid, environ) == directory
