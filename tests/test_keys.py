"""The keys in a directory: who counts, and what is said of those who don't."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import zmq

from sysup.certificates import Certificate, render
from sysup.config import Role
from sysup.keys import Keys
from sysup.protocol import SysupError

PUBLIC, SECRET = (key.decode() for key in zmq.curve_keypair())
OTHER, _ = (key.decode() for key in zmq.curve_keypair())


class Stage:
    """A directory of keys."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.authorized = directory / "authorized"
        self.authorized.mkdir(mode=0o755)
        self.keys = Keys(str(directory), os.geteuid())

    def put(self, name: str, public: str, role: str = "read", mode: int = 0o644) -> Path:
        path = self.authorized / f"{name}.key"
        new = path.with_suffix(".new")
        new.write_text(render(Certificate(public, metadata={"role": role}), ""))
        new.chmod(mode)
        new.rename(path)
        return path

    def roles(self) -> dict[str, Role]:
        return {holder.name: holder.role for holder in self.keys.authorized().values()}


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def test_files_come_change_and_go(stage: Stage) -> None:
    assert stage.roles() == {}
    assert stage.keys.holder(PUBLIC) is None
    path = stage.put("ops", PUBLIC, "operate")
    found = stage.keys.holder(PUBLIC)
    assert found is not None
    assert (found.name, found.role) == ("ops", Role.OPERATE)
    stage.put("mon", OTHER)
    assert stage.roles() == {"mon": Role.READ, "ops": Role.OPERATE}
    stage.put("ops", PUBLIC, "read")
    found = stage.keys.holder(PUBLIC)
    assert found is not None
    assert found.role is Role.READ
    path.unlink()
    assert stage.keys.holder(PUBLIC) is None
    assert stage.roles() == {"mon": Role.READ}


def test_another_key_of_the_same_name_is_another(stage: Stage) -> None:
    stage.put("ops", PUBLIC)
    assert stage.keys.holder(PUBLIC)
    stage.put("ops", OTHER)
    assert stage.keys.holder(PUBLIC) is None
    assert stage.keys.holder(OTHER)


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("group", r"others can write it \(0664\)"),
        ("role", "its role is none of read, operate, admin"),
        ("garbage", "it has no public-key"),
        ("directory", "is a directory"),
        ("fifo", "it is no file"),
        ("link", "no such file or directory"),
    ],
)
def test_what_does_not_count_is_told_once(
    stage: Stage, what: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = stage.authorized / "bad.key"
    if what == "group":
        stage.put("bad", PUBLIC, mode=0o664)
    elif what == "role":
        stage.put("bad", PUBLIC, "owner")
    elif what == "garbage":
        path.write_bytes(os.urandom(200_000))
        path.chmod(0o644)
    elif what == "directory":
        path.mkdir(0o755)
    elif what == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to("nowhere")
    stage.put("good", OTHER)
    for _ in range(3):
        assert stage.roles() == {"good": Role.READ}
        stage.put("good", OTHER)
    (record,) = caplog.records
    assert re.search(f"^{path} does not count: {reason}", record.getMessage())


def test_a_key_twice_is_told(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    stage.put("a", PUBLIC, "read")
    stage.put("b", PUBLIC, "admin")
    assert stage.roles() == {"a": Role.READ}
    assert "b.key does not count: its key is that of" in caplog.text


@pytest.mark.parametrize("which", ["", "authorized"])
def test_a_directory_that_others_may_write_counts_not(
    stage: Stage, which: str, caplog: pytest.LogCaptureFixture
) -> None:
    stage.put("ops", PUBLIC)
    (stage.directory / which).chmod(0o777)
    assert stage.roles() == {}
    assert "others can write it (0777)" in caplog.text
    (stage.directory / which).chmod(0o755)
    assert stage.roles() == {"ops": Role.READ}


def test_what_belongs_to_others_counts_not(tmp_path: Path, stage: Stage) -> None:
    stage.put("ops", PUBLIC)
    if os.geteuid() == 0:
        os.chown(stage.authorized / "ops.key", 65534, -1)
        assert stage.roles() == {}
    (tmp_path / "server.key_secret").write_text(render(Certificate(PUBLIC, SECRET), ""))
    (tmp_path / "server.key_secret").chmod(0o600)
    if os.geteuid() == 0:
        os.chown(tmp_path / "server.key_secret", 65534, -1)
        with pytest.raises(SysupError, match="it belongs to user 65534"):
            stage.keys.server()


def test_the_daemons_own(stage: Stage) -> None:
    path = stage.directory / "server.key_secret"
    with pytest.raises(SysupError, match=f"there is no {path}; `sysupctl keygen --server --dir"):
        stage.keys.server()
    path.write_text(render(Certificate(PUBLIC, SECRET), ""))
    path.chmod(0o640)
    with pytest.raises(SysupError, match="others can read it; make its mode 0600"):
        stage.keys.server()
    path.chmod(0o600)
    assert stage.keys.server() == Certificate(PUBLIC, SECRET)
    path.write_text(render(Certificate(PUBLIC), ""))
    with pytest.raises(SysupError, match="it has no secret-key"):
        stage.keys.server()
