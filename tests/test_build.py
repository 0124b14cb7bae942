"""The distributions for PyPI: built from a clean checkout, installed where there is no compiler."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from sysup import __version__
from tests.packages import sources

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both, the wheel of what is in the source distribution."""
    checkout = tmp_path_factory.mktemp("checkout")
    for path in sources():
        there = checkout / path.relative_to(ROOT)
        there.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, there)
    run(sys.executable, "-m", "build", "--no-isolation", str(checkout))
    return checkout / "dist"


def run(*command: str, **env: str) -> str:
    done = subprocess.run(
        command,
        env={**os.environ, **env},
        cwd="/",
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_source_distribution_has_what_building_and_packaging_takes(dist: Path) -> None:
    (archive,) = dist.glob("sysup-*.tar.gz")
    with tarfile.open(archive) as tree:
        names = {name.partition("/")[2] for name in tree.getnames()}
    assert names >= {str(path.relative_to(ROOT)) for path in sources()}
    assert not [name for name in names if name.endswith((".so", ".pyc", "_native.c"))]


def test_the_wheel_is_for_every_python_from_the_oldest_on(dist: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    assert wheel.name.startswith("sysup-0.1.0-cp311-abi3-linux_")
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "sysup").rglob("*.py")}
    with zipfile.ZipFile(wheel) as inside:
        assert set(inside.namelist()) >= {*modules, "sysup/_native.abi3.so", "sysup/py.typed"}


def test_the_wheel_is_found_fit_for_all_distributions_and_needs_no_compiler(
    dist: Path, tmp_path: Path
) -> None:
    """In an environment of its own, with all that it depends on."""
    (made,) = dist.glob("*.whl")
    audit = (sys.executable, "-m", "auditwheel")
    assert "manylinux_2_" in run(*audit, "show", str(made))
    tools = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    run(*audit, "repair", f"--wheel-dir={tmp_path}", str(made), PATH=tools)
    (wheel,) = tmp_path.glob("sysup-0.1.0-cp311-abi3-manylinux_2_*.whl")
    run(sys.executable, "-m", "venv", str(tmp_path / "venv"))
    programs = tmp_path / "venv/bin"
    install = ("pip", "install", "--quiet", str(wheel))
    run(str(programs / "python"), "-m", *install, CC="/bin/false", PATH="/nowhere")
    for name in ("sysupd", "sysupctl"):
        assert __version__ in run(str(programs / name), "--version")
    example = str(ROOT / "units" / "example.ini")
    assert "ok, 1 watcher" in run(str(programs / "sysupd"), "--check", example)


def test_all_name_the_same_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    debian = (ROOT / "packaging/debian/changelog").read_text().split()[1].strip("()")
    spec = (ROOT / "packaging/sysup.spec").read_text()
    fedora = re.findall(r"(?m)^\* .* - (\S+)$", spec)[0]
    assert __version__ == project["version"]
    assert debian == fedora == f"{__version__}-1"
    assert f"version_of_sysup {__version__}}}" in spec
    pinned = (ROOT / "packaging/cysystemd.txt").read_text()
    (cysystemd,) = re.findall(r"(?m)^cysystemd==(\S+)", pinned)
    assert f"version_of_cysystemd {cysystemd}}}" in spec
