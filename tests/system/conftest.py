"""What the tests of a whole system take from others, and the machines that they run on."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import runtime, sysupd
from tests.lab import Container, Unavailable, boot
from tests.lab.rootfs import PROVIDES
from tests.system.services import HOME, USER, App

__all__ = ["runtime", "sysupd"]

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree that `make install` makes, for the Python of Debian 12."""
    tree = tmp_path_factory.mktemp("installed")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lacking = [
        item.replace(" ", "")
        for item in project["dependencies"]
        if re.split(r"[^\w-]", item)[0] not in PROVIDES
    ]
    done = subprocess.run(
        [
            *("make", "--no-print-directory", "--old-file=.venv/.built", "install"),
            *(f"BIN={Path(sys.executable).parent}", "PYTHON=/usr/bin/python3"),
            *(f"DESTDIR={tree}", "VENDOR=" + " ".join(f"'{item}'" for item in lacking)),
        ],
        cwd=ROOT,
        env={**os.environ, "PIP_ONLY_BINARY": ":all:", "PIP_PYTHON_VERSION": "3.11"},
        umask=0o022,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return tree


@pytest.fixture(scope="module")
def machine(installed: Path) -> Iterator[Container]:
    """A machine with systemd and sysup, shared by the tests of a module."""
    try:
        booted = boot(installed)
    except Unavailable as reason:
        pytest.skip(str(reason))
    with booted:
        booted.run(["sh", "-c", "systemd-sysusers && systemd-tmpfiles --create sysup.conf"])
        yield booted


@pytest.fixture
def nothing_is_left(machine: Container) -> Iterator[None]:
    """What a test started ends with it."""
    yield
    machine.run(["systemctl", "stop", "sysup@*.socket", "sysup@*.service", "sysup-*.socket"])
    machine.run(["systemctl", "reset-failed"])


@pytest.fixture
def of_user(machine: Container) -> Iterator[App]:
    """An app of a user whose service manager runs."""
    app = App(machine, "mine", user=True)
    machine.run(["chown", "-R", "user:user", HOME])
    machine.run(["systemctl", "start", f"user@{USER}.service"])
    yield app
    machine.run(["systemctl", "stop", f"user@{USER}.service"])
