"""Where descriptors, disk or trust are scarce, and that nothing is used up by and by."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.e2e.conftest import Start
from tests.e2e.harness import PATIENCE, PROGRAMS, children, descendants, open_files, resident, until

SLEEPER = "\n[watcher:good]\ncmd = sleep 1000\ngraceful_timeout = 5\n"


# ---- scarce things ---------------------------------------------------------------------------


def test_descriptors_run_out(sysupd: Start) -> None:
    """Processes that find none fail with a reason, and start once there are some again."""
    daemon = sysupd(
        "[watcher:w]\ncmd = sleep 1000\nautostart = False\nnumprocesses = 60\n"
        "backoff.delay = 0.05\nflapping.retry_in = 0.1\nmax_retry = -1\n" + SLEEPER
    )
    most = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)[1]
    resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (90, most))
    daemon.call("start", name="w", waiting=True)
    watcher = daemon.call("status", name="w")["watchers"]["w"]
    assert watcher["state"] in ("backoff", "flapping")
    assert "too many open files" in watcher["reason"].lower()
    assert daemon.status("good") == "active"
    assert daemon.call("decr", name="w", nb=55, waiting=True)["numprocesses"] == 5
    until(lambda: daemon.call("status")["watchers"]["w"]["ready"] == 5, "those that can run")
    until(lambda: len(descendants(daemon.pid)) == 6, "these alone run")
    assert daemon.call("stop", name="w", waiting=True)["status"] == "ok"
    until(lambda: len(descendants(daemon.pid)) == 1, "one alone runs")
    assert "Traceback" not in daemon.log()


@pytest.mark.parametrize("limit", [8, 16, 32, 63])
def test_too_few_descriptors_to_begin_with(tmp_path: Path, limit: int) -> None:
    file = tmp_path / "app.ini"
    file.write_text(f"[sysup]\nruntime_dir = {tmp_path}/r\n[watcher:w]\ncmd = sleep 1000\n")
    command = f"ulimit -n {limit}; exec {PROGRAMS}/sysupd {file}"
    ended = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=PATIENCE)
    assert ended.returncode == 1
    assert f"cannot run with {limit} open files" in ended.stderr


def size_of(file: Path) -> int:
    """Of one that may not be there yet."""
    return file.stat().st_size if file.exists() else 0


def test_a_disk_that_is_full(sysupd: Start, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "none", tmp_path / "disk"]
    ).returncode:
        pytest.skip("may not mount")
    try:
        stream = f"stdout_stream.filename = {tmp_path}/disk/"
        daemon = sysupd(
            f"[watcher:a]\ncmd = yes a\n{stream}a\n[watcher:b]\ncmd = yes b\n{stream}b\n"
            "[watcher:c]\ncmd = sh -c 'while :; do echo c; sleep 0.05; done'\n"
            f"stdout_stream.filename = {tmp_path}/c\n"
        )

        def problem(name: str) -> str:
            return str(daemon.call("status")["watchers"][name]["problem"])

        until(lambda: "no space" in problem("a").lower(), "a is told")
        size = size_of(tmp_path / "c")
        until(lambda: size_of(tmp_path / "c") > size, "c goes on")
        assert daemon.call("restart", waiting=True)["status"] == "ok"
        assert daemon.stop() == 0
    finally:
        subprocess.run(["umount", "-l", tmp_path / "disk"], check=True)


def test_a_log_that_was_deleted(sysupd: Start, tmp_path: Path) -> None:
    log = tmp_path / "w.log"
    daemon = sysupd(
        "[watcher:w]\ncmd = sh -c 'while :; do echo w; sleep 0.02; done'\n"
        f"stdout_stream.filename = {log}\n"
    )
    until(lambda: size_of(log), "it is written")
    log.unlink()
    daemon.process.send_signal(signal.SIGUSR1)
    until(lambda: size_of(log), "it is written anew")


# ---- leaks -----------------------------------------------------------------------------------


def test_watchers_come_and_go_without_a_trace(sysupd: Start) -> None:
    daemon = sysupd(SLEEPER)

    def cycle(number: int) -> None:
        for _ in range(number):
            daemon.call("add", name="w", cmd="sleep 1000", start=True, waiting=True)
            daemon.call("rm", name="w", waiting=True)

    cycle(30)
    files, memory = open_files(daemon.pid), resident(daemon.pid)
    cycle(200)
    until(lambda: open_files(daemon.pid) <= files, "no more is open than before")
    assert resident(daemon.pid) - memory < 1 << 20
    assert len(descendants(daemon.pid)) == 1


def test_crashes_leave_no_trace(sysupd: Start) -> None:
    daemon = sysupd(
        "[watcher:w]\ncmd = true\nflapping.active = False\nbackoff.delay = 0\n" + SLEEPER
    )

    def restarts() -> int:
        return int(daemon.call("status")["watchers"]["w"]["restarts"])

    until(lambda: restarts() > 20, "20 crashes")
    memory = resident(daemon.pid)
    until(lambda: restarts() > 320, "300 more")
    assert resident(daemon.pid) - memory < 1 << 20
    daemon.call("stop", name="w", waiting=True)
    daemon.call("rm", name="w", waiting=True)
    until(lambda: len(children(daemon.pid)) == 1, "no zombie is left")


def test_a_bomb_of_daemons(sysupd: Start, tmp_path: Path) -> None:
    (tmp_path / "bomb").write_text(
        "i=0; while [ $i -lt 25 ]; do i=$((i+1))\n"
        "setsid sleep 1000 & (setsid setsid sleep 1000 &)\n"
        "done; echo done; exec sleep 1000\n"
    )
    daemon = sysupd("[watcher:w]\ncmd = sh bomb\n")
    until(lambda: len(descendants(daemon.pid)) == 51, "all of them")
    assert daemon.call("stop", name="w", waiting=True)["status"] == "ok"
    until(lambda: descendants(daemon.pid) == {}, "none is left")


def test_hangups_to_the_last(sysupd: Start) -> None:
    daemon = sysupd(SLEEPER)
    daemon.process.send_signal(signal.SIGTERM)

    def ended() -> bool:
        daemon.process.send_signal(signal.SIGHUP)
        daemon.process.send_signal(signal.SIGUSR1)
        return daemon.process.poll() is not None

    until(ended, "it ends")
    assert daemon.process.returncode == 0
    assert "Traceback" not in daemon.log()


# ---- other users -----------------------------------------------------------------------------


def a_stranger() -> int:
    """A user that nobody is, and for whom nothing lies in /tmp."""
    return next(uid for uid in range(61_000, 65_000) if not os.path.lexists(f"/tmp/sysup-{uid}"))


def need_a_program_for(uid: int) -> None:
    """Skip where a stranger can't execute what is tested: in a clone below /root, say."""
    probe = as_user(uid, PROGRAMS / "python", "-c", "import sysup.protocol")
    if subprocess.run(probe, capture_output=True, cwd="/").returncode:
        pytest.skip(f"{PROGRAMS} is closed to other users")


def as_user(uid: int, *command: str | Path) -> list[str | Path]:
    return ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", *command]


@pytest.mark.may_skip
@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes somebody else")
@pytest.mark.parametrize("trap", ["directory", "link"])
def test_a_runtime_directory_that_a_stranger_made(tmp_path: Path, trap: str) -> None:
    uid = a_stranger()
    need_a_program_for(uid)
    base = Path(f"/tmp/sysup-{uid}")
    target = tmp_path / "target"
    target.mkdir()
    os.chown(target, uid, uid)
    with tempfile.NamedTemporaryFile("w", suffix=".ini") as file:
        os.chmod(file.name, 0o644)
        file.write(SLEEPER)
        file.flush()
        try:
            if trap == "directory":
                base.mkdir()
                base.chmod(0o777)
            else:
                base.symlink_to(target)
            os.chown(base, 12345, 12345, follow_symlinks=False)
            command = as_user(uid, PROGRAMS / "sysupd", file.name)
            env = {"PATH": os.environ["PATH"]}
            ended = subprocess.run(
                command, capture_output=True, text=True, env=env, cwd="/", timeout=PATIENCE
            )
        finally:
            base.unlink() if base.is_symlink() else shutil.rmtree(base)
    assert ended.returncode == 1
    assert str(base) in ended.stderr
    assert list(target.iterdir()) == []


@pytest.mark.may_skip
@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes somebody else")
def test_sysupctl_of_somebody_else_is_refused(sysupd: Start) -> None:
    uid = a_stranger()
    need_a_program_for(uid)
    daemon = sysupd(SLEEPER)
    os.chmod(daemon.runtime.parent, 0o755)
    endpoint = f"ipc://{daemon.runtime}/control"
    command = as_user(uid, PROGRAMS / "sysupctl", "--endpoint", endpoint, "status")
    ended = subprocess.run(command, capture_output=True, text=True, env=daemon.env, cwd="/")
    assert ended.returncode == 4
    assert "permission denied" in ended.stderr.lower()
