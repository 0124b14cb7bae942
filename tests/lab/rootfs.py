"""The Debian 12 that containers boot, made once and kept in the user's cache.

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

SUITE = "bookworm"
SUITES = (SUITE, f"{SUITE}-updates", f"{SUITE}-security")
PACKAGES = (
    *("systemd", "systemd-sysv", "dbus", "libpam-systemd", "procps", "util-linux"),
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
RECIPE = "\n".join([*SUITES, *PACKAGES, SET_UP])
PROXIES = re.compile(r'^Acquire::(?:\w+::)?Proxy\b.* "[^"]+";$', re.IGNORECASE)
APT_TIMES_OUT = "Acquire::http::Timeout 20;"
APT = Path("/etc/apt")


class CannotBuild(Exception):
    """There is no such tree, and none can be made; says why."""


def rootfs() -> Path:
    """The tree, made if it is not there as it should be. Raises CannotBuild.

    Nobody may write to it: containers put an overlay over it.
    """
    with kept("rootfs", RECIPE, _build) as tree:
        return tree


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


def _build(tree: Path) -> None:
    mmdebstrap(
        tree,
        *("--variant=apt", "--dpkgopt=force-unsafe-io"),
        *(f"--include={','.join(PACKAGES)}", f"--customize-hook={SET_UP}"),
    )


def mmdebstrap(tree: Path, *options: str) -> None:
    """Make a tree of the suite's packages. Raises CannotBuild."""
    if shutil.which("mmdebstrap") is None:
        raise CannotBuild("there is no mmdebstrap")
    command = [
        *("mmdebstrap", "--quiet", *options),
        *(f"--aptopt={option}" for option in [APT_TIMES_OUT, *proxies()]),
        *(SUITE, str(tree), *sorted(sources())),
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


def sources(directory: Path = APT) -> set[str]:
    """Lines of sources.list(5) that this machine has for the suites; none on another one."""
    found: set[str] = set()
    lists = [directory / "sources.list", *directory.glob("sources.list.d/*")]
    for path in (path for path in lists if path.is_file()):
        text = re.sub(r"(?m)^#.*\n?", "", path.read_text())
        if path.suffix == ".sources":
            found.update(_deb822(text))
        elif path.suffix == ".list":
            for uri, suite in re.findall(r"(?m)^deb\s+(?:\[.*?\]\s+)?(\S+)\s+(\S+)\s", text):
                found.update(_line(uri, suite))
    return found


def _deb822(text: str) -> Iterator[str]:
    for stanza in re.split(r"\n\s*\n", text):
        pairs = re.findall(r"(?m)^([\w-]+):\s*((?:.*)(?:\n[ \t].*)*)", stanza)
        fields = {name.lower(): value.split() for name, value in pairs}
        for uri in fields.get("uris", []):
            for suite in fields.get("suites", []):
                yield from _line(uri, suite)


def _line(uri: str, suite: str) -> Iterator[str]:
    if suite in SUITES:
        yield f"deb {uri} {suite} main"
