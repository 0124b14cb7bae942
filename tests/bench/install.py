"""What the benchmarks need: programs of C, and the peers, all below build/bench.

Nothing is installed into the system and no service is started: packages of Debian are only
unpacked. A peer that cannot be had is left out.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from tests.bench.run import Tools

HERE = Path(__file__).parent
BUILD = HERE.parents[1] / "build" / "bench"
PYTHON = ("circus==0.19.0", "supervisor==4.3.0", "setuptools<81")
"""The last for supervisor, which may want its pkg_resources."""
NODE = ("pm2@7.0.4",)
DEBIAN = (
    *("daemontools", "runit", "s6"),
    *("libs6-2.11", "execline", "libexecline2.9", "libskarnet2.13"),
)


def compile_tools() -> Tools:
    """Build the C programs. Raises CalledProcessError when they do not compile."""
    BUILD.mkdir(parents=True, exist_ok=True)
    for name in ("child", "verify", "follow", "reference"):
        compile_c(name, BUILD)
    return Tools(BUILD / "child", BUILD / "verify", BUILD / "follow")


def compile_c(name: str, directory: Path) -> str:
    """Build a program of this directory; returns its path."""
    target = directory / name
    # Static: what a child does before its first instruction is not the supervisor's.
    options = ["-std=c17", "-D_GNU_SOURCE", "-O2", "-static"]
    subprocess.run(["gcc", *options, "-o", target, HERE / f"{name}.c"], check=True)
    return str(target)


def install_peers(ways: Iterable[str]) -> None:
    """Get the peers that come by these ways, and have their programs found by name."""
    commands = {
        "pip": [
            [sys.executable, "-m", "venv", "--clear", "."],
            ["bin/pip", "install", "-q", *PYTHON],
        ],
        "npm": [["npm", "install", "--silent", "--no-audit", "--no-fund", *NODE]],
        "apt": [
            ["apt-get", "download", "-q", *DEBIAN],
            ["sh", "-c", "for package in *.deb; do dpkg -x $package . || exit 1; done"],
        ],
    }
    for way in set(ways) & commands.keys():
        _install(BUILD / way, commands[way])
    libraries = [str(path.parent) for path in (BUILD / "apt").rglob("libs6.so.*")]
    places = [BUILD, BUILD / "pip/bin", BUILD / "npm/node_modules/.bin", BUILD / "apt/usr/bin"]
    os.environ["PATH"] = ":".join([*map(str, places), os.environ["PATH"]])
    os.environ["LD_LIBRARY_PATH"] = ":".join(libraries[:1])


def _install(directory: Path, commands: list[list[str]]) -> None:
    """Run commands in a directory of their own, once."""
    stamp = directory / ".ready"
    if stamp.exists():
        return
    directory.mkdir(exist_ok=True)
    for command in commands:
        print(*command, file=sys.stderr)
        try:
            subprocess.run(command, cwd=directory, check=True, stdout=subprocess.DEVNULL)
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"  {error}", file=sys.stderr)
            return
    stamp.touch()
