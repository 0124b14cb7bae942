"""sysupctl wait: it ends when it is so, when it can't become so, and when it is time."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.e2e.conftest import Start
from tests.e2e.harness import PATIENCE, PROGRAMS, Daemon

INI = """\
[watcher:web]
cmd = sleep 1000
numprocesses = 2
ready = uptime:0.2

[watcher:later]
cmd = sleep 1000
autostart = False

[watcher:bad]
cmd = sh -c 'exit 3'
autostart = False
flapping.retry_in = 0.05
max_retry = 1
"""


@pytest.fixture
def daemon(sysupd: Start) -> Daemon:
    return sysupd(INI)


@contextmanager
def waiting(daemon: Daemon, *args: str) -> Iterator[subprocess.Popen[str]]:
    command = [str(PROGRAMS / "sysupctl"), "-a", daemon.app, "wait", *args]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=daemon.env, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def test_what_is_wanted_becomes_ready(daemon: Daemon) -> None:
    for names in ((), ("web",)):
        with waiting(daemon, *names) as process:
            assert process.wait(PATIENCE) == 0
    assert daemon.status("web") == "active"


def test_a_start_by_somebody_else(daemon: Daemon) -> None:
    with waiting(daemon, "later", "web", "--ready") as process:
        daemon.call("start", name="later")
        assert process.wait(PATIENCE) == 0
    assert len(daemon.pids("later")) == 1


def test_until_nothing_is_left(daemon: Daemon) -> None:
    with waiting(daemon, "web", "--stopped") as process:
        daemon.call("stop", name="web")
        assert process.wait(PATIENCE) == 0
    assert daemon.status("web") == "stopped"


def test_not_in_time(daemon: Daemon) -> None:
    with waiting(daemon, "later", "--timeout", "0.1") as process:
        out, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 3
    assert out.splitlines()[1].split()[:2] == ["later", "stopped"]


def test_never(daemon: Daemon) -> None:
    with waiting(daemon, "bad") as process:
        daemon.call("start", name="bad")
        out, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert "exit code 3" in out


def test_no_such_watcher(daemon: Daemon) -> None:
    with waiting(daemon, "wbe") as process:
        _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 4
    assert "did you mean web?" in err


def test_one_that_is_removed_meanwhile(daemon: Daemon) -> None:
    with waiting(daemon, "later") as process:
        daemon.call("rm", name="later")
        assert process.wait(PATIENCE) == 4


def test_an_upgrade_is_outlived(daemon: Daemon) -> None:
    with waiting(daemon, "later", "--json") as process:
        daemon.upgrade()
        daemon.call("start", name="later")
        out, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert json.loads(out)["watchers"]["later"]["ready"] == 1
