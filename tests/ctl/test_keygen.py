"""sysupctl keygen and authorize: what they write, and that they overwrite nothing."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import zmq.auth

from sysup.config import Role
from sysup.ctl.keygen import ROLES
from sysup.keys import Keys
from tests.ctl.conftest import Run


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path / "config" / "sysup"


def mode(path: Path) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


@pytest.mark.parametrize("umask", [0, 0o077])
def test_keys_of_a_daemon_and_of_a_client(ctl: Run, tmp_path: Path, home: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        keys = tmp_path / "etc" / "keys"
        made = ctl("keygen", "--server", "--dir", str(keys))
        assert made.code == 0, made.err
        mine = ctl("keygen")
        done = ctl(
            *("authorize", "ops", str(home / "client.key"), "--role", "operate"),
            *("--dir", str(keys)),
        )
        assert (done.code, done.err) == (0, "")
    finally:
        os.umask(before)
    assert "curve_dir" in made.out
    assert f"authorize NAME client.key --role operate --dir {keys}" in made.out
    assert f"{home}/servers/HOST:PORT.key" in mine.out
    assert "rm" in done.out
    assert {path.name: mode(path) for path in [*keys.iterdir(), *home.iterdir()]} == {
        "server.key_secret": 0o600,
        "server.key": 0o644,
        "authorized": 0o755,
        "client.key_secret": 0o600,
        "client.key": 0o644,
        "servers": 0o755,
    }
    read = Keys(str(keys), os.geteuid())
    assert zmq.auth.load_certificate(keys / "server.key")[0].decode() == read.server().public
    public, secret = zmq.auth.load_certificate(home / "client.key_secret")
    assert secret is not None
    assert zmq.curve_public(secret) == public
    (holder,) = read.authorized().values()
    assert (holder.name, holder.role) == ("ops", Role.OPERATE)
    assert read.holder(public.decode()) == holder


def test_nothing_is_replaced_unless_told(ctl: Run, tmp_path: Path, home: Path) -> None:
    keys = tmp_path / "keys"
    for command in (["keygen"], ["keygen", "--server", "--dir", str(keys)]):
        assert ctl(*command).code == 0
        where = keys if "--server" in command else home
        before = {path: path.read_text() for path in where.iterdir() if path.is_file()}
        done = ctl(*command)
        assert done.code == 1
        assert "is there already; --force replaces it" in done.err
        assert {path: path.read_text() for path in before} == before
        assert ctl(*command, "--force").code == 0
        assert all(path.read_text() != text for path, text in before.items())
        assert not list(where.glob("*.new"))
    authorize = ("authorize", "ops", str(home / "client.key"), "--dir", str(keys))
    assert ctl(*authorize).code == 0
    assert ctl(*authorize, "--role", "admin").code == 1
    assert ctl(*authorize, "--role", "admin", "--force").code == 0
    (holder,) = Keys(str(keys), os.geteuid()).authorized().values()
    assert holder.role is Role.ADMIN


def test_what_cannot_be_authorized(ctl: Run, tmp_path: Path, home: Path) -> None:
    (tmp_path / "x").write_text("nonsense")
    for arguments, reason in (
        (("../x", "x"), "a name is of letters, digits"),
        (("ops", str(tmp_path / "no")), "No such file"),
        (("ops", str(tmp_path / "x")), "it has no public-key"),
    ):
        done = ctl("authorize", *arguments)
        assert done.code == 1
        assert reason in done.err
    ctl("keygen")
    done = ctl("authorize", "ops", str(home / "client.key"), "--dir", str(tmp_path / "no"))
    assert f"`sysupctl keygen --server --dir {tmp_path}/no` makes it" in done.err
    (tmp_path / "keys").mkdir()
    secret = str(home / "client.key_secret")
    done = ctl("authorize", "ops", secret, "--dir", str(tmp_path / "keys"))
    assert "has the secret key, which nobody but its owner should have" in done.out


def test_where_it_cannot_be_written(ctl: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = ctl("keygen", "--dir", str(tmp_path / "file" / "x"))
    assert done.code == 1
    assert "cannot make" in done.err


def test_the_roles_are_those_of_the_config() -> None:
    assert tuple(map(str, Role)) == ROLES
