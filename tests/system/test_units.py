"""What `make install` puts where, and what systemd makes of it."""

from __future__ import annotations

import re
import stat
import subprocess
from pathlib import Path

import pytest

from tests.lab import Container
from tests.system.conftest import ROOT

UNITS = "/usr/local/lib/systemd"
EXAMPLES = "/usr/local/share/doc/sysup/examples"
PRIVATE = "/usr/local/lib/sysup"
SYSUP = f"{PRIVATE}/sysup"
PROGRAMS = (f"{PRIVATE}/stop-post", f"{PRIVATE}/running")
UNIT_FILES = ("sysup@.service", "sysup-guard@.service", "sysup@.socket", "sysup.target")
FILES = {
    *("/etc/sysup/example.ini", "/usr/local/bin/sysupctl", "/usr/local/bin/sysupd"),
    "/etc/needrestart/conf.d/sysup.conf",
    *(f"{UNITS}/system/{name}" for name in UNIT_FILES),
    *(f"{UNITS}/user/{name}" for name in UNIT_FILES),
    *("/usr/local/lib/sysusers.d/sysup.conf", "/usr/local/lib/tmpfiles.d/sysup.conf"),
    *(f"{EXAMPLES}/{name}" for name in ("example.ini", "hardening.conf", "restart-direct.conf")),
    f"{EXAMPLES}/sysup-web@.socket",
    "/usr/local/share/bash-completion/completions/sysupctl",
    "/usr/local/share/zsh/site-functions/_sysupctl",
    "/usr/local/share/fish/vendor_completions.d/sysupctl.fish",
    *(f"/usr/local/share/man/{name}" for name in ("man1/sysupctl.1", "man5/sysup.ini.5")),
    *(f"/usr/local/share/man/man8/{name}" for name in ("sysupd.8", "sysup@.service.8")),
}
EXPOSED, HARDENED = 9.0, 4.0
"""What docs/systemd.md says of the exposure level, out of ten: it is below that."""


def files(tree: Path) -> dict[str, Path]:
    return {f"/{path.relative_to(tree)}": path for path in tree.rglob("*") if path.is_file()}


def test_install_puts_everything_in_its_place(installed: Path) -> None:
    found = files(installed)
    outside = {
        name
        for name in found
        if not name.startswith(("/usr/local/lib/sysup/", "/usr/local/share/doc/sysup/"))
    }
    assert outside == {name for name in FILES if not name.startswith(EXAMPLES)}
    assert found.keys() >= FILES
    assert f"{SYSUP}/_native.abi3.so" in found
    assert "/usr/local/share/doc/sysup/systemd.md" in found
    sources = {str(path.relative_to(ROOT / "sysup")) for path in (ROOT / "sysup").rglob("*.py")}
    assert {name.removeprefix(f"{SYSUP}/") for name in found if name.endswith(".py")} >= sources


def test_what_is_installed_cannot_be_written_by_others(installed: Path) -> None:
    for name, path in files(installed).items():
        mode = stat.S_IMODE(path.stat().st_mode)
        is_program = name.startswith("/usr/local/bin/") or name in PROGRAMS
        is_program |= name.startswith(f"{PRIVATE}/vendor/") and ".so" in path.suffixes
        wanted = 0o755 if is_program else 0o644
        assert mode == wanted, name


def test_nothing_is_left_to_be_filled_in(installed: Path) -> None:
    for name, path in files(installed).items():
        if "/systemd/" in name or name.startswith("/usr/local/bin/"):
            text = path.read_text()
            assert not re.search(r"@\w+@", text), name
            assert str(installed) not in text, name


def test_uninstall_leaves_what_was_configured(installed: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    subprocess.run(["cp", "-a", str(installed), str(tree)], check=True)
    subprocess.run(["make", "uninstall", f"DESTDIR={tree}"], cwd=ROOT, check=True)
    assert files(tree).keys() == {"/etc/sysup/example.ini"}


@pytest.mark.parametrize("scope", ["system", "user"])
def test_systemd_finds_no_fault_in_the_units(machine: Container, scope: str) -> None:
    command = (
        f"export XDG_RUNTIME_DIR=/run; cp {EXAMPLES}/sysup-web@.socket /etc/systemd/system &&"
        f" systemd-analyze verify --man=no --{scope} --recursive-errors=yes {UNITS}/{scope}/sysup*"
        " $(find /etc/systemd/$0 -name 'sysup*')"
    )
    done = machine.run(["sh", "-c", command, scope], check=False)
    assert done.stdout + done.stderr == ""
    assert done.returncode == 0


def exposure(machine: Container, unit: str) -> float:
    shown = machine.run(["systemd-analyze", "security", "--offline=true", "--no-pager", unit])
    found = re.search(r"exposure level for \S+: ([\d.]+)", shown.stdout)
    assert found, shown.stdout
    return float(found[1])


def test_exposure_is_what_the_documentation_says(machine: Container) -> None:
    assert exposure(machine, f"{UNITS}/system/sysup@.service") < EXPOSED
    unit = machine.path(f"{UNITS}/system/sysup@.service").read_text()
    drop_in = machine.path(f"{EXAMPLES}/hardening.conf").read_text()
    machine.write("/root/sysup-hardened@.service", unit + "\n" + drop_in)
    assert exposure(machine, "/root/sysup-hardened@.service") < HARDENED


def test_the_group_may_enter_the_directory_of_apps(machine: Container) -> None:
    assert machine.run(["getent", "group", "sysup"]).stdout.startswith("sysup:")
    assert machine.run(["stat", "-c", "%U:%G %a", "/run/sysup"]).stdout == "root:root 755\n"


@pytest.mark.parametrize("program", ["sysupd", "sysupctl"])
def test_the_programs_take_no_modules_from_elsewhere(machine: Container, program: str) -> None:
    machine.write("/root/elsewhere/click.py", "raise SystemExit('taken from elsewhere')")
    machine.write("/root/elsewhere/sysup/__init__.py", "raise SystemExit('taken from elsewhere')")
    command = f"cd /root/elsewhere && PYTHONPATH=. {program} --version"
    assert machine.run(["sh", "-c", command]).stdout.startswith(program)


def test_the_example_is_well(machine: Container) -> None:
    done = machine.run(["sysupd", "--check", "/etc/sysup/example.ini"])
    assert done.stdout == "/etc/sysup/example.ini: ok, 1 watcher\n"
