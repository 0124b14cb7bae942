"""Debian's package, on a machine that has nothing but Debian's own: from installation to purge.

The machine has no network. What apt would download lies in its cache, with the lists of Debian's
archive, and of what the package depends on nothing is installed. Made on this machine, be it
Debian 12, the package is for what comes after that as well.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests import packages
from tests.e2e.harness import TAKEN_OVER, until
from tests.lab import Container, Unavailable, boot
from tests.lab.archive import archive
from tests.lab.rootfs import CannotBuild
from tests.system.services import HOME, USER, App

DEPENDENCIES = ("python3-cffi-backend", "python3-click", "python3-sdnotify", "python3-zmq")
APT = ("apt-get", "--yes", "--quiet", "--no-install-recommends")
DPKG = ("dpkg", "--install")
NOT_OURS = (
    *("/proc", "/sys", "/dev", "/run", "/tmp", "/root", "/var/log", "/var/lib/dpkg/info"),
    *("/var/lib/apt", "/var/cache/apt"),
)
"""What differs for other reasons."""
COUNT = r"""#!/usr/bin/perl
# Writes numbers, and when it is to end, the last one.
$| = 1;
$SIG{TERM} = sub { $ended = 1 };
until ($ended) { print ++$i, "\n"; select(undef, undef, undef, 0.1) }
print "last $i\n";
"""
WRITERS = 100
EXAMPLES = "/usr/share/doc/sysup/examples"
REPLACE = "cd /usr/lib/*-linux-gnu; it=$(readlink libzmq.so.5); cp $it new && mv new $it"
UPGRADE = "usr/lib/sysup/sysup/upgrade.py"


@pytest.fixture(scope="session")
def package() -> Path:
    """The package, made if what it is made of has changed."""
    return packages.the_deb(packages.made("deb"))


@pytest.fixture(scope="module")
def stock() -> Iterator[Container]:
    """A machine that can install what sysup depends on, and has none of it."""
    try:
        layer = archive(DEPENDENCIES)
        with boot(layer) as machine:
            machine.run([*APT, "purge", "--autoremove", *DEPENDENCIES])
            yield machine
    except (Unavailable, CannotBuild) as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="module")
def served(package: Path) -> Iterator[Container]:
    """A machine that has the package."""
    try:
        with boot() as machine:
            install(machine, package)
            yield machine
    except Unavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture
def restarter() -> Iterator[Container]:
    """A machine that can install needrestart."""
    try:
        with boot(archive(["needrestart"])) as machine:
            yield machine
    except (Unavailable, CannotBuild) as reason:
        pytest.skip(str(reason))


@pytest.fixture
def newer() -> Iterator[Container]:
    """A machine of the Debian after that."""
    try:
        with boot(suite="trixie") as machine:
            yield machine
    except Unavailable as reason:
        pytest.skip(str(reason))


def install(machine: Container, package: Path, command: Sequence[str] = DPKG) -> str:
    """Install it over what is there; returns what was said."""
    inside = f"/root/{package.name}"
    machine.path(inside).write_bytes(package.read_bytes())
    done = machine.run([*command, inside])
    return done.stdout + done.stderr


def files(machine: Container) -> set[str]:
    """What is in the file system, but for what is not ours."""
    pruned = " -o ".join(f"-path {name}" for name in NOT_OURS)
    found = machine.run(["sh", "-c", f"find / \\( {pruned} \\) -prune -o -print"])
    return set(found.stdout.splitlines())


def units(machine: Container) -> str:
    """All that systemd knows of ours, running or not."""
    shown = machine.run(["systemctl", "list-units", "--all", "--no-legend", "sysup*"]).stdout
    # it fails if there are none
    files = machine.run(["systemctl", "list-unit-files", "--no-legend", "sysup*"], check=False)
    return shown + files.stdout


def processes(machine: Container) -> list[str]:
    """The command lines that name something of ours."""
    return machine.run(["pgrep", "-af", "[s]ysup|[p]rocess is well"], check=False).stdout.split()


# ---- the package ---------------------------------------------------------------------------


def test_lintian_finds_no_fault(package: Path) -> None:
    (changes,) = package.parents[1].glob("work/deb/*.changes")
    command = ["lintian", "--fail-on=error,warning", "--allow-root", str(changes)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not re.search("^[EW]:", done.stdout, re.M), done.stdout


def test_two_builds_make_the_same_bytes(package: Path, tmp_path: Path) -> None:
    packages.make("deb", tmp_path)
    assert packages.the_deb(tmp_path).read_bytes() == package.read_bytes()


# ---- its life ------------------------------------------------------------------------------


def test_from_installation_to_purge(stock: Container, package: Path) -> None:
    before = files(stock)
    said = install(stock, package, [*APT, "install"])
    for name in DEPENDENCIES:
        assert re.search(rf"^Setting up {name}[ :]", said, re.M)
    assert stock.run(["dpkg", "-V", "sysup"]).stdout == ""
    assert processes(stock) == []
    assert "enabled" not in re.sub("(?m)enabled *$", "", units(stock))  # that is a preset's

    stock.run(["systemctl", "start", "sysup@example"])
    until(lambda: "process 1 is well" in stock.journal("-u", "sysup@example"), "the journal has it")
    until(lambda: "process 2 is well" in stock.journal("SYSUP_WATCHER=ticker"), "by its field")
    assert "process 1 is well" in stock.run(["sysupctl", "logs"]).stdout
    member = ("setpriv", "--reuid=1000", "--regid=1000", "--groups=sysup")
    assert "ticker" in stock.run([*member, "sysupctl", "incr", "ticker"]).stdout
    nobody = ("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups")
    for user in (nobody, (*nobody, "env", "SYSUP_RUNTIME_DIR=/run/sysup")):
        refused = stock.run([*user, "sysupctl", "-a", "example", "status"], check=False)
        assert refused.returncode == 4
        assert "permission" in refused.stderr.lower() or "may not" in refused.stderr.lower()
    stock.run(["systemctl", "enable", "sysup@example"])
    stock.write("/etc/sysup/shop.ini", "[watcher:w]\ncmd = sleep 1\n")

    stock.run([*APT, "remove", "sysup"])
    assert processes(stock) == []
    assert stock.path("/etc/sysup/example.ini").exists()
    said = stock.run([*APT, "purge", "--autoremove", "sysup", *DEPENDENCIES]).stdout
    assert "apps are left in /etc/sysup" in said
    left = files(stock) - before
    # the group stays, as those of packages do, with the backups of what it was added to
    assert left <= {"/etc/sysup", "/etc/sysup/shop.ini", "/etc/group-", "/etc/gshadow-"}
    assert before <= files(stock)
    assert units(stock) == ""
    assert not stock.path("/run/sysup").exists()


def test_an_upgrade_is_not_noticed(served: Container, package: Path, tmp_path: Path) -> None:
    served.write("/root/count", COUNT)
    served.write(
        "/etc/sysup/many.ini",
        f"[watcher:w]\ncmd = /usr/bin/perl /root/count\nnumprocesses = {WRITERS}\n",
    )
    served.run(["systemctl", "start", "sysup@many"])
    daemon = main_pid(served, "many")
    until(lambda: len(served.pids("/usr/bin/perl /root/count")) == WRITERS, "all write")
    writers = served.pids("/usr/bin/perl /root/count")
    for version in ("0.9.0", "0.9.1"):
        said = install(served, packages.variant(package, version, tmp_path))
        assert f"sysup@many: sysupd {before(version)} is replaced by {version}" in said
        answer = json.loads(served.run(["sysupctl", "-a", "many", "--json", "version"]).stdout)
        assert answer == {"sysupctl": version, "sysupd": version}
        assert main_pid(served, "many") == daemon
        assert served.pids("/usr/bin/perl /root/count") == writers
    served.run(["systemctl", "stop", "sysup@many"])
    lines = written(served)
    assert len(lines) == WRITERS
    for numbers in lines.values():
        last = len(numbers) - 1
        assert numbers == [*map(str, range(1, last + 1)), f"last {last}"]
        assert last > 5


def before(version: str) -> str:
    """The one that it replaces."""
    return {"0.9.0": "0.1.0", "0.9.1": "0.9.0"}[version]


def version(app: App) -> str | None:
    """The daemon's; none while nobody is there."""
    found: str | None = json.loads(app.ctl("--json", "version").stdout).get("sysupd")
    return found


def main_pid(machine: Container, app: str) -> str:
    show = ["systemctl", "show", "--value", "--property=MainPID", f"sysup@{app}"]
    return machine.run(show).stdout.strip()


def written(machine: Container) -> dict[str, list[str]]:
    """The lines of each writer."""
    machine.run(["journalctl", "--sync"])
    fields = "--output-fields=SYSUP_WID,MESSAGE"
    select = ["-u", "sysup@many", "SYSUP_WATCHER=w", "SYSUP_STREAM=stdout"]
    shown = machine.run(["journalctl", "--output=json", fields, *select]).stdout
    lines = defaultdict(list)
    for entry in map(json.loads, shown.splitlines()):
        lines[entry["SYSUP_WID"]].append(entry["MESSAGE"])
    return lines


def test_a_downgrade_is_not_noticed_either(
    served: Container, package: Path, tmp_path: Path
) -> None:
    install(served, packages.variant(package, "0.8.0", tmp_path))
    app = App(served, "down").start()
    before, daemon = app.pids(), app.show("MainPID")
    older = packages.variant(package, "0.0.1", tmp_path)
    said = install(served, older)
    assert "sysup@down: sysupd 0.8.0 is replaced by 0.0.1" in said
    assert app.pids() == before
    assert app.show("MainPID") == daemon
    app.systemctl("stop")


def test_a_version_that_cannot_go_on_is_told_and_harms_nothing(
    served: Container, package: Path, tmp_path: Path
) -> None:
    install(served, packages.variant(package, "0.8.0", tmp_path))
    app = App(served, "kept").start()
    before, daemon = app.pids(), app.show("MainPID")
    text = "    for (name,), record in"
    refusing = {UPGRADE: (text, f'    raise SysupError("the state is of another kind")\n{text}')}
    said = install(served, packages.variant(package, "0.9.5", tmp_path, refusing))
    assert "the state is of another kind" in said
    assert "systemctl restart 'sysup@kept'" in said
    assert version(app) == "0.8.0"
    assert app.pids() == before
    assert app.show("MainPID") == daemon
    said = install(served, packages.variant(package, "0.9.6", tmp_path))
    assert "sysup@kept: sysupd 0.8.0 is replaced by 0.9.6" in said
    assert app.pids() == before
    app.systemctl("stop")


def test_a_daemon_that_is_not_where_sysupctl_looks(
    served: Container, package: Path, tmp_path: Path
) -> None:
    install(served, packages.variant(package, "0.8.0", tmp_path))
    app = App(served, "away")
    app.configure(more="[sysup]\nruntime_dir = /run/away")
    before, daemon = app.start().pids(), app.show("MainPID")
    said = install(served, packages.variant(package, "0.9.0", tmp_path))
    assert "sysup@away: asked to become the new sysupd" in said
    until(lambda: TAKEN_OVER in served.journal("-u", app.unit), "it is the new one")
    assert app.pids() == before
    assert app.show("MainPID") == daemon
    app.systemctl("stop")


def test_daemons_that_are_no_services_of_the_system(
    served: Container, package: Path, tmp_path: Path
) -> None:
    install(served, packages.variant(package, "0.8.0", tmp_path))
    of_user = App(served, "mine", user=True)
    served.run(["chown", "-R", "user:user", HOME])
    served.run(["systemctl", "start", f"user@{USER}.service"])
    by_hand = App(served, "hand")
    daemon = f"/usr/bin/python3 -I /usr/bin/sysupd --log-output=/root/hand.log {by_hand.file}"
    with served.popen(daemon.split()[2:]):
        by_hand.wait_for_processes()
        before = [of_user.start().pids(), by_hand.pids(), served.pids(daemon)]
        main_pid = of_user.show("MainPID")
        said = install(served, packages.variant(package, "0.9.0", tmp_path))
        asked = re.findall(r"sysupd, process (\d+): asked to become the new one", said)
        assert set(map(int, asked)) == {int(main_pid), *served.pids(daemon)}
        log = served.path("/root/hand.log")
        until(lambda: TAKEN_OVER in log.read_text(), "the one is new")
        until(lambda: version(of_user) == "0.9.0", "so is the other")
        assert [of_user.pids(), by_hand.pids(), served.pids(daemon)] == before
        assert of_user.show("MainPID") == main_pid
        served.run([*APT, "remove", "sysup"])
        assert of_user.pids() | by_hand.pids() == set()
        until(lambda: processes(served) == [], "the guard of the user's app has ended")
    install(served, package)


def test_needrestart_leaves_apps_alone(restarter: Container, package: Path) -> None:
    """It would restart the app, which runs with a library that was replaced."""
    restarter.run([*APT, "install", "needrestart"])
    install(restarter, package)
    app = App(restarter, "app").start()
    before, daemon = app.pids(), app.show("MainPID")
    restarter.run(["sh", "-c", REPLACE])
    said = restarter.run(["needrestart", "-r", "a"]).stdout
    assert "systemctl restart sysup@app.service" in said.partition("being deferred")[2]
    assert app.pids() == before
    assert app.show("MainPID") == daemon
    app.ctl("upgrade")
    assert "sysup@app" not in restarter.run(["needrestart", "-b"]).stdout


def test_it_is_for_debian_13_too(newer: Container, package: Path, tmp_path: Path) -> None:
    install(newer, package)
    assert newer.run(["dpkg", "-V", "sysup"]).stdout == ""
    app = App(newer, "next")
    app.drop_in(newer.path(f"{EXAMPLES}/restart-direct.conf").read_text())
    app.start()
    before, daemon = app.pids(), app.show("MainPID")
    newer.run(["systemctl", "start", "sysup@example"])
    until(lambda: "process 2 is well" in newer.journal("SYSUP_WATCHER=ticker"), "by its field")
    shown = newer.run(["sysupctl", "-a", "example", "logs", "ticker"]).stdout
    assert "ticker.2: process 2 is well" in shown
    requires = "--property=Requires=sysup@next.service"
    newer.run(["systemd-run", "--unit=dependent", requires, "sleep", "1004"])
    dependent = until(lambda: newer.pids("/usr/bin/sleep 1004"), "what requires it runs")
    newer.run(["kill", "-KILL", daemon])
    until(lambda: app.show("NRestarts") == "1", "systemd starts the next daemon")
    until(lambda: app.show("ActiveState") == "active", "which has what there was")
    assert app.pids() == before
    assert newer.pids("/usr/bin/sleep 1004") == dependent
    said = install(newer, packages.variant(package, "0.9.0", tmp_path))
    assert "sysup@next: sysupd 0.1.0 is replaced by 0.9.0" in said
    assert app.pids() == before
    newer.run([*APT, "purge", "sysup"])
    assert app.pids() == set()
    assert units(newer) == ""
