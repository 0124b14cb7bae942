"""The Debian that machines boot, made once and kept in the user's cache: 12, or another one.

    SYSUP_LAB_SUITE=trixie make test TESTS=tests/system      all of them on Debian 13

Packages come from where this machine's own apt gets them; on another distribution, from where
mmdebstrap does by itself.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

PYTHONS = {"bookworm": "3.11", "trixie": "3.13"}
"""Of the suites that there are."""
SUITE = os.environ.get("SYSUP_LAB_SUITE") or "bookworm"
PACKAGES = (
    *("systemd", "systemd-sysv", "dbus", "libpam-systemd", "procps", "util-linux", "passwd"),
    *("python3", "python3-cffi-backend", "python3-click", "python3-psutil"),
    *("python3-sdnotify", "python3-zmq"),
)
PROVIDES = frozenset({"cffi", "click", "psutil", "pyzmq", "sdnotify"})
"""What is in the packages of that which sysup depends on."""
MASKED = (
    *("apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "fstrim.timer"),
    *("e2scrub_all.timer", "e2scrub_reap.service", "getty.target", "console-getty.service"),
)
"""What a machine that lives for a minute need not run."""
SET_UP = f"""set -e
cd "$1"
echo lab >etc/hostname
printf '127.0.0.1 localhost lab\\n::1 localhost\\n' >etc/hosts
rm -f etc/resolv.conf var/lib/dbus/machine-id
: >etc/machine-id
for unit in {" ".join(MASKED)}; do ln -sf /dev/null etc/systemd/system/$unit; done
chroot . useradd --create-home --uid 1000 --shell /bin/sh user
"""
PROXIES = re.compile(r'^Acquire::(?:\w+::)?Proxy\b.* "[^"]+";$', re.IGNORECASE)
APT_TIMES_OUT = "Acquire::http::Timeout 20;"
APT = Path("/etc/apt")


class CannotBuild(Exception):
    """There is no such tree, and none can be made; says why."""


def rootfs(suite: str = SUITE) -> Path:
    """The tree, made if it is not there as it should be. Raises CannotBuild.

    Nobody may write to it: containers put an overlay over it.
    """
    with kept(f"rootfs-{suite}", recipe(suite), lambda tree: _build(tree, suite)) as tree:
        return tree


def recipe(suite: str = SUITE) -> str:
    """All that the tree depends on."""
    return "\n".join([*suites(suite), *PACKAGES, SET_UP])


def suites(suite: str) -> list[str]:
    """It, and what mends it."""
    return [suite, f"{suite}-updates", f"{suite}-security"]


@contextmanager
def kept(name: str, recipe: str, build: Callable[[Path], None]) -> Iterator[Path]:
    """What is made by a recipe and kept, a directory: made when the recipe is another one.

    While the context lasts nobody makes it anew. Raises what `build` does.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sysup-lab"
    made, stamp = cache / name, cache / f"{name}.stamp"
    wanted = hashlib.sha256(recipe.encode()).hexdigest()

    def is_made() -> bool:
        return stamp.exists() and stamp.read_text() == wanted

    cache.mkdir(parents=True, exist_ok=True)
    with open(cache / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        while not is_made():
            fcntl.flock(lock, fcntl.LOCK_EX)  # which is not had at once: another may make it
            if not is_made():
                stamp.unlink(missing_ok=True)
                shutil.rmtree(made, ignore_errors=True)
                try:
                    build(made)
                except BaseException:
                    shutil.rmtree(made, ignore_errors=True)
                    raise
                stamp.write_text(wanted)
            fcntl.flock(lock, fcntl.LOCK_SH)
        yield made


def _build(tree: Path, suite: str) -> None:
    mmdebstrap(
        tree,
        suite,
        *("--variant=apt", "--dpkgopt=force-unsafe-io"),
        *(f"--include={','.join(PACKAGES)}", f"--customize-hook={SET_UP}"),
    )


def mmdebstrap(tree: Path, suite: str, *options: str) -> None:
    """Make a tree of a suite's packages. Raises CannotBuild."""
    if shutil.which("mmdebstrap") is None:
        raise CannotBuild("there is no mmdebstrap")
    command = [
        *("mmdebstrap", "--quiet", *options),
        *(f"--aptopt={option}" for option in [APT_TIMES_OUT, *proxies()]),
        *(suite, str(tree), *sorted(sources(suite))),
    ]
    try:
        subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True
        )
    except subprocess.CalledProcessError as error:
        raise CannotBuild(f"mmdebstrap failed: {error.stderr[-2000:]}") from None


def proxies() -> Iterator[str]:
    """The options of apt by which this machine reaches the archive."""
    if shutil.which("apt-config"):
        dump = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=True)
        yield from filter(PROXIES.match, dump.stdout.splitlines())


def sources(suite: str = SUITE, directory: Path = APT) -> set[str]:
    """Lines of sources.list(5) for a suite, from where this machine has Debian; else none.

    Who has one of the suites has all of them.
    """
    found: set[str] = set()
    lists = [directory / "sources.list", *directory.glob("sources.list.d/*")]
    for path in (path for path in lists if path.is_file()):
        text = re.sub(r"(?m)^#.*\n?", "", path.read_text())
        if path.suffix == ".sources":
            found.update(_deb822(text, suite))
        elif path.suffix == ".list":
            for uri, named in re.findall(r"(?m)^deb\s+(?:\[.*?\]\s+)?(\S+)\s+(\S+)\s", text):
                found.update(_line(uri, named, suite))
    return found


def _deb822(text: str, suite: str) -> Iterator[str]:
    for stanza in re.split(r"\n\s*\n", text):
        pairs = re.findall(r"(?m)^([\w-]+):\s*((?:.*)(?:\n[ \t].*)*)", stanza)
        fields = {name.lower(): value.split() for name, value in pairs}
        for uri in fields.get("uris", []):
            for named in fields.get("suites", []):
                yield from _line(uri, named, suite)


def _line(uri: str, named: str, suite: str) -> Iterator[str]:
    release, dash, rest = named.partition("-")
    if release in PYTHONS and rest in ("", "updates", "security"):
        yield f"deb {uri} {suite}{dash}{rest} main"
