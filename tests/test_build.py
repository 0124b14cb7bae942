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
    assert "manylinux_2_" in run(sys.executable, "-m", "auditwheel", "show", str(wheel))


def test_the_wheel_installs_and_runs_without_a_compiler(dist: Path, tmp_path: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    install = ("-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", str(tmp_path))
    run(sys.executable, *install, str(wheel), CC="/bin/false", PATH="/nowhere")
    example = str(ROOT / "units" / "example.ini")
    said = run(sys.executable, "-m", "sysup", "--check", example, PYTHONPATH=str(tmp_path))
    assert "ok, 1 watcher" in said
    where = "import sysup._native; print(sysup._native.__file__)"
    assert run(sys.executable, "-c", where, PYTHONPATH=str(tmp_path)).startswith(str(tmp_path))


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
