"""What a machine without a network installs Debian's packages from: apt's lists and archives.

Made once and kept in the user's cache, a layer over the tree of `rootfs`.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.lab.rootfs import APT_TIMES_OUT, CannotBuild, proxies, rootfs
from tests.lab.store import stored


def archive(packages: Sequence[str]) -> Path:
    """A layer by which apt can install the packages, and what is there for their sake alone.

    Raises CannotBuild.
    """
    tree = rootfs()
    status = (tree / "var/lib/dpkg/status").read_bytes()
    wanted = hashlib.sha256("\n".join([*packages, status.hex()]).encode()).hexdigest()
    return stored("archive", wanted, lambda layer: _download(tree, packages, layer))


def _download(tree: Path, packages: Sequence[str], layer: Path) -> None:
    for name in ("var/lib/apt/lists/partial", "var/cache/apt/archives/partial"):
        (layer / name).mkdir(parents=True)
    settings = layer / "apt.conf"
    settings.write_text("\n".join([APT_TIMES_OUT, *proxies()]))
    apt = [
        *("env", f"APT_CONFIG={settings}", "apt-get"),
        *("--quiet", "--yes", "--no-install-recommends", f"--option=Dir={tree}"),
        f"--option=Dir::State::status={tree}/var/lib/dpkg/status",
        f"--option=Dir::State::lists={layer}/var/lib/apt/lists",
        f"--option=Dir::Cache={layer}/var/cache/apt",
        *("--option=APT::Sandbox::User=root", "--option=Debug::NoLocking=1"),
    ]
    _run([*apt, "update"])
    gone = _run([*apt, "--simulate", "purge", "--autoremove", *packages])
    missing = _run([*apt, "--simulate", "install", *packages])
    names = re.findall(r"(?m)^(?:Purg|Inst) (\S+)", gone + missing)
    _run([*apt, "--download-only", "--reinstall", "install", *names])
    for needless in [settings, *(layer / "var/cache/apt").glob("*.bin")]:
        needless.unlink()


def _run(command: Sequence[str]) -> str:
    if shutil.which("apt-get") is None:
        raise CannotBuild("there is no apt-get")
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise CannotBuild(f"apt-get failed: {done.stderr[-2000:]}")
    return done.stdout
