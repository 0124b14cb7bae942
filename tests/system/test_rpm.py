"""Fedora's package: what is in it, and what it does where rpm is at hand.

There is no Fedora to be had here: it is built, installed and run on Debian, whose packages have
other names, so what it depends on is not looked at.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import packages
from tests.lab import Container, Unavailable, boot
from tests.lab.archive import archive
from tests.lab.rootfs import CannotBuild
from tests.lab.store import stored
from tests.system.services import App

RPMLINT = "rpmlint==2.10.0"
SCRIPTLETS = ("preun", "postun", "postin", "posttrans")
ELSEWHERE = (("/usr/share/zsh/vendor-completions", "/usr/share/zsh/site-functions"),)
"""Places in Debian, and those in Fedora."""
OF_ITS_OWN = (
    "/usr/share/doc/",
    "/usr/share/licenses/",
    "/usr/share/python3/",
    "/usr/share/lintian/",
)
"""Where each has what the other has not, or under another name."""


@pytest.fixture(scope="session")
def package() -> Path:
    """The package, made if what it is made of has changed."""
    (found,) = packages.made("rpm").glob("dist/*.rpm")
    return found


@pytest.fixture(scope="module")
def machine() -> Iterator[Container]:
    """A machine that has rpm."""
    try:
        with boot(archive(["rpm"])) as machine:
            machine.run(["apt-get", "--yes", "--no-install-recommends", "install", "rpm"])
            yield machine
    except (Unavailable, CannotBuild) as reason:
        pytest.skip(str(reason))


def output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_rpmlint_finds_no_fault(package: Path) -> None:
    def make(there: Path) -> None:
        output("/usr/bin/python3", "-m", "venv", "--system-site-packages", str(there))
        output(f"{there}/bin/python", "-m", "pip", "install", "--quiet", RPMLINT)

    python = stored("rpmlint", RPMLINT.encode().hex()[::-1], make) / "bin/python"
    lint = "from rpmlint.cli import lint; lint()"
    config = packages.ROOT / "packaging/rpmlint.toml"
    spec = packages.ROOT / "packaging/sysup.spec"
    output(str(python), "-c", lint, "--strict", f"--config={config}", str(package), str(spec))


def test_it_has_what_the_package_of_debian_has(package: Path) -> None:
    contents = output("dpkg-deb", "--contents", str(packages.the_deb(packages.made("deb"))))
    debian = {line.split()[5].removeprefix(".") for line in contents.splitlines()}
    fedora = set(output("rpm", "-qpl", str(package)).splitlines())
    for place, other in ELSEWHERE:
        debian = {name.replace(place, other) if name.startswith(place) else name for name in debian}
    debian = {name for name in debian if not name.endswith("/")}
    directories = {str(parent) for name in fedora for parent in Path(name).parents}
    fedora = {name for name in fedora - directories if "/__pycache__" not in name}
    assert {name for name in debian ^ fedora if not name.startswith(OF_ITS_OWN)} == set()


def test_its_config_is_kept_and_its_scripts_are_right(package: Path) -> None:
    kept = ["/etc/needrestart/conf.d/sysup.conf", "/etc/sysup/example.ini"]
    assert output("rpm", "-qpc", str(package)).splitlines() == kept
    for name in SCRIPTLETS:
        query = output("rpm", "-qp", f"--queryformat=%{{{name}}}", str(package))
        output("sh", "-nc", query)
        assert "sysup" in query


def test_from_installation_to_removal(machine: Container, package: Path) -> None:
    machine.path("/root/sysup.rpm").write_bytes(package.read_bytes())
    machine.run(["rpm", "--nodeps", "--install", "/root/sysup.rpm"])
    assert machine.run(["rpm", "-V", "--nodeps", "sysup"]).stdout == ""
    assert machine.run(["systemctl", "list-units", "--no-legend", "sysup*"]).stdout == ""
    machine.run(["systemctl", "start", "sysup@example"])
    app = App(machine, "app").start()
    before, daemon = app.pids(), app.show("MainPID")
    said = machine.run(["rpm", "--nodeps", "--upgrade", "--replacepkgs", "/root/sysup.rpm"])
    assert "sysup@app: sysupd 0.1.0 is replaced by 0.1.0" in said.stdout + said.stderr
    assert json.loads(app.ctl("--json", "version").stdout)["sysupd"] == "0.1.0"
    assert app.pids() == before
    assert app.show("MainPID") == daemon
    machine.run(["rpm", "--erase", "sysup"])
    assert app.pids() == set()
    assert machine.run(["pgrep", "-f", "[s]ysupd|[p]rocess is well"], check=False).stdout == ""
    assert machine.run(["systemctl", "list-units", "--no-legend", "sysup*"]).stdout == ""
    for gone in ("/usr/lib/sysup", "/usr/bin/sysupd", "/run/sysup"):
        assert not machine.path(gone).exists()
    assert machine.path(app.file).exists()
