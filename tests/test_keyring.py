"""Where a client finds its keys, and what it says where they are not."""

from __future__ import annotations

from pathlib import Path

import pytest
import zmq

from sysup.certificates import Certificate, render
from sysup.keyring import directory, find
from sysup.protocol import SysupError

ENDPOINT = "tcp://db1:5555"


def pair() -> Certificate:
    public, secret = (key.decode() for key in zmq.curve_keypair())
    return Certificate(public, secret)


def put(path: Path, certificate: Certificate, mode: int = 0o600) -> Certificate:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render(certificate, "a test"))
    path.chmod(mode)
    return certificate


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "sysup"


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"XDG_CONFIG_HOME": str(tmp_path)}


def test_keys_are_in_the_users_own_directory(environ: dict[str, str], home: Path) -> None:
    assert directory(environ) == str(home)
    assert directory({}).endswith("/.config/sysup")


def test_without_the_daemons_key_it_is_plain(environ: dict[str, str], home: Path) -> None:
    put(home / "client.key_secret", pair())
    assert find(ENDPOINT, environ=environ) is None
    put(home / "servers" / "other:5555.key", pair())
    assert find(ENDPOINT, environ=environ) is None


def test_only_tcp_needs_keys(environ: dict[str, str], home: Path) -> None:
    put(home / "client.key_secret", pair())
    put(home / "server.key", pair())
    assert find("ipc:///run/x", "no", "no", environ) is None


def test_the_first_place_counts(environ: dict[str, str], home: Path, tmp_path: Path) -> None:
    own, common = put(home / "client.key_secret", pair()), put(home / "server.key", pair())
    found = find(ENDPOINT, environ=environ)
    assert found is not None
    assert (found.own, found.server) == (own, common)
    named = put(home / "servers" / "db1:5555.key", pair())
    found = find(ENDPOINT, environ=environ)
    assert found is not None
    assert found.server == named
    other, daemons = put(tmp_path / "o", pair()), put(tmp_path / "d", pair())
    more = {"SYSUPCTL_KEY": str(tmp_path / "o"), "SYSUPCTL_SERVER_KEY": str(tmp_path / "d")}
    found = find(ENDPOINT, environ={**environ, **more})
    assert found is not None
    assert (found.own, found.server) == (other, daemons)
    found = find(ENDPOINT, str(home / "client.key_secret"), str(home / "server.key"), more)
    assert found is not None
    assert (found.own, found.server) == (own, common)


def test_what_is_missing_is_told(environ: dict[str, str], home: Path) -> None:
    with pytest.raises(SysupError, match=r"daemon's key is not known; .*servers/db1:5555\.key"):
        find(ENDPOINT, "mine", environ=environ)
    put(home / "server.key", pair())
    with pytest.raises(SysupError, match="there is no such file; `sysupctl keygen` makes one"):
        find(ENDPOINT, environ=environ)
    put(home / "client.key_secret", Certificate(pair().public))
    with pytest.raises(SysupError, match="it has no secret-key"):
        find(ENDPOINT, environ=environ)
    put(home / "client.key_secret", pair(), 0o644)
    with pytest.raises(SysupError, match="others can read it; make its mode 0600"):
        find(ENDPOINT, environ=environ)
    (home / "client.key_secret").write_text("nonsense")
    with pytest.raises(SysupError, match="it has no public-key"):
        find(ENDPOINT, environ=environ)
    with pytest.raises(SysupError, match="Is a directory"):
        find(ENDPOINT, str(home), environ=environ)
