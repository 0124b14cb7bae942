"""The packages that `make deb` and `make rpm` make, and others that differ in their version."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.lab.store import stored

ROOT = Path(__file__).parents[1]
SOURCES = (
    *("sysup", "_native", "units", "docs", "packaging", "Makefile", "pyproject.toml", "setup.py"),
    *("README.md", "CHANGELOG.md", "LICENSE", ".ci"),
)
MADE = re.compile(r"__pycache__|\.so$|/_native\.c$")
Edits = Mapping[str, tuple[str, str]]
"""By the path of a file in a package: a text in it, and what takes its place."""


def made(kind: str) -> Path:
    """The directory with all that `make deb` or `make rpm` makes of the sources as they are now."""
    digest = hashlib.sha256()
    for path in sources():
        digest.update(f"{path.relative_to(ROOT)}\0{path.stat().st_mode}\0".encode())
        digest.update(path.read_bytes() + b"\0")
    return stored(kind, digest.hexdigest(), lambda there: make(kind, there))


def sources() -> Iterator[Path]:
    """All files that packages are made of."""
    for name in SOURCES:
        found = [ROOT / name] if (ROOT / name).is_file() else sorted((ROOT / name).rglob("*"))
        yield from (path for path in found if path.is_file() and not MADE.search(str(path)))


def make(target: str, there: Path) -> None:
    """Make packages, with the sources of them, in a directory."""
    done = subprocess.run(
        [
            *("make", "--no-print-directory", "--old-file=.venv/.built", target),
            *(f"BIN={Path(sys.executable).parent}", f"DIST={there}/dist", f"WORK={there}/work"),
        ],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def the_deb(there: Path) -> Path:
    """The package itself, of what was made in a directory."""
    (found,) = there.glob("dist/sysup_*.deb")
    return found


def variant(package: Path, version: str, tmp: Path, edits: Edits | None = None) -> Path:
    """The same package with another version, in which the programs believe, and other texts."""
    tree = tmp / version
    _run("dpkg-deb", "-R", str(package), str(tree))
    module = "usr/lib/sysup/sysup/__init__.py"
    (now,) = re.findall(r'__version__ = "(.*)"', (tree / module).read_text())
    changes = {"DEBIAN/control": (f"Version: {now}-1", f"Version: {version}-1")}
    for name, (old, new) in {**changes, module: (now, version), **(edits or {})}.items():
        text = (tree / name).read_text()
        assert old in text, f"{name} has no {old}"
        (tree / name).write_text(text.replace(old, new))
    sums = [line.split("  ") for line in (tree / "DEBIAN/md5sums").read_text().splitlines()]
    (tree / "DEBIAN/md5sums").write_text(
        "".join(f"{hashlib.md5((tree / n).read_bytes()).hexdigest()}  {n}\n" for _, n in sums)
    )
    changed = tmp / f"sysup_{version}-1.deb"
    _run("dpkg-deb", "--root-owner-group", "-Znone", "-b", str(tree), str(changed))
    shutil.rmtree(tree)
    return changed


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
