"""sysup as it is installed, and machines that have it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.lab import Container, Vm, boot, resume
from tests.lab.rootfs import PROVIDES, PYTHONS, SUITE

ROOT = Path(__file__).parents[2]
SET_UP = "systemd-sysusers && systemd-tmpfiles --create sysup.conf"


def install(tree: Path) -> None:
    """Make the tree that `make install` makes, for the Python of the Debian that is booted."""
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
        env={**os.environ, "PIP_ONLY_BINARY": ":all:", "PIP_PYTHON_VERSION": PYTHONS[SUITE]},
        umask=0o022,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@contextmanager
def booted(tree: Path) -> Iterator[Container]:
    """A machine with systemd and what was installed. Raises Unavailable."""
    with boot(tree) as machine:
        machine.run(["sh", "-c", SET_UP])
        yield machine


@contextmanager
def resumed(tree: Path) -> Iterator[Vm]:
    """The same, a virtual one."""
    with resume() as machine:
        machine.lay(tree)
        machine.run(["sh", "-c", f"{SET_UP} && systemctl daemon-reload"])
        yield machine
