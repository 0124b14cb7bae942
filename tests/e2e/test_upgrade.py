"""A daemon replaces itself by the program that is installed now, and nobody notices."""

from __future__ import annotations

import os
import signal
import socket
from functools import partial
from pathlib import Path
from typing import Any

from tests.e2e.conftest import Start
from tests.e2e.harness import children, command_line, until

SLEEPERS = "[watcher:web]\ncmd = sleep 1000\nnumprocesses = 3\n"


def test_processes_run_on(sysupd: Start) -> None:
    daemon = sysupd(SLEEPERS)
    before = daemon.pids("web")
    for _ in range(2):
        daemon.upgrade()
        assert daemon.pids("web") == before
    assert daemon.process.poll() is None, "with the same pid"


def test_sysupctl_waits_for_the_new_one(sysupd: Start) -> None:
    daemon = sysupd(SLEEPERS)
    for number in (1, 2, 3):
        done = daemon.ctl("upgrade")
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("sysupd ")
        assert daemon.call("version")["takeovers"] == number


def test_a_signal_does_it_as_well(sysupd: Start) -> None:
    daemon = sysupd(SLEEPERS)
    before = daemon.pids("web")
    os.kill(daemon.pid, signal.SIGUSR2)
    daemon.wait_for_program(1)
    assert daemon.pids("web") == before


def test_what_is_taken_over_is_watched_and_stopped(sysupd: Start) -> None:
    daemon = sysupd(SLEEPERS)
    daemon.upgrade()
    first, *others = daemon.pids("web")
    events = daemon.events()
    os.kill(first, signal.SIGKILL)
    reaped = events.wait_for_name("reap")
    assert (reaped.fields["process_pid"], reaped.fields["exit_code"]) == (first, -9)
    until(lambda: len(set(daemon.pids("web")) - {first}) == 3, "a new one runs")
    assert set(others) < set(daemon.pids("web"))
    daemon.call("stop", name="web", waiting=True)
    assert daemon.pids("web") == []
    assert not any(os.path.exists(f"/proc/{pid}") for pid in others)


def test_why_something_failed_is_still_told(sysupd: Start) -> None:
    daemon = sysupd(
        "[watcher:broken]\ncmd = sh -c 'echo no database; exit 3'\nflapping.retry_in = 0\n"
        "max_retry = 0\n"
    )

    def process() -> dict[str, Any]:
        watcher = daemon.call("show", name="broken")["watcher"]
        return dict(watcher["processes"][0])

    until(lambda: process()["state"] == "failed" and process()["last_output"], "it is given up")
    daemon.upgrade()
    assert process()["last_output"] == "no database"
    shown = daemon.ctl("show", "broken").stdout
    assert "broken.1  exit code 3, under the daemon before\n      | no database\n" in shown


def test_what_was_changed_at_run_time_stays_so(sysupd: Start) -> None:
    daemon = sysupd(SLEEPERS + "[watcher:off]\ncmd = sleep 1000\n[watcher:gone]\ncmd = sleep 9\n")
    daemon.call("incr", name="web", nb=2, waiting=True)
    daemon.call("set", name="web", options={"max_age": 5000}, waiting=True)
    daemon.call("stop", name="off", waiting=True)
    daemon.call("rm", name="gone", waiting=True)
    daemon.call("add", name="new", cmd="sleep 1000", start=True, waiting=True)
    before = daemon.pids("web"), daemon.pids("new")
    daemon.upgrade()
    assert daemon.call("list")["watchers"] == ["new", "off", "web"]
    assert (daemon.pids("web"), daemon.pids("new")) == before
    assert daemon.status("off") == "stopped"
    assert daemon.call("get", name="web", keys=["max_age"])["options"] == {"max_age": 5000}
    daemon.call("decr", name="web", nb=3, waiting=True)
    assert len(daemon.pids("web")) == 2


DEAF = """[watcher:%s]
cmd = sh -c '[ -e %s ] || trap : TERM; while :; do sleep 1000 & wait; done'
graceful_timeout = 1000
"""


def test_commands_that_wait_for_their_turns_are_carried_out(sysupd: Start, tmp_path: Path) -> None:
    """Each of them once, in order, by whichever daemon: also what is left of one that was begun."""
    names = ("plain", "stopped", "gone")
    hears = tmp_path / "hears"
    daemon = sysupd("".join(DEAF % (name, hears) for name in names))
    before = {name: daemon.pids(name)[0] for name in names}
    until(lambda: all(map(children, before.values())), "they are deaf")
    hears.touch()
    for name in names:
        assert daemon.call("restart", name=name)["status"] == "ok"
        until(lambda: daemon.status(name) == "stopping", "it waits for the old process")  # noqa: B023
        daemon.call("set", name=name, options={"numprocesses": 2, "max_age": 4000})
        daemon.call("incr", name=name, nb=2)
        daemon.call("reload", name=name)
        daemon.call("decr", name=name)
    daemon.call("stop", name="stopped")
    for _ in range(3):
        daemon.upgrade()
    assert [daemon.pids(name) for name in names] == [[pid] for pid in before.values()]
    daemon.call("rm", name="gone", nostop=True)
    for pid in before.values():
        os.kill(pid, signal.SIGKILL)
    until(lambda: len(daemon.pids("plain")) == 3, "one and two and one, and one less")
    told = daemon.call("get", name="plain", keys=["numprocesses", "max_age"])["options"]
    assert told == {"numprocesses": 3, "max_age": 4000}
    until(lambda: daemon.status("stopped") == "stopped", "a stop pre-empts what would start it")
    told = daemon.call("get", name="stopped", keys=["numprocesses", "max_age"])["options"]
    assert told == {"numprocesses": 3, "max_age": 4000}
    daemon.upgrade()
    daemon.call("set", name="plain", options={"max_age": 1}, waiting=True)
    assert daemon.call("get", name="plain", keys=["numprocesses"])["options"] == {"numprocesses": 3}
    assert daemon.call("list")["watchers"] == ["plain", "stopped"]


def test_a_start_of_all_goes_on(sysupd: Start) -> None:
    """With its pauses, in which an upgrade came."""
    names = ("a", "b", "c")
    daemon = sysupd("".join(f"[watcher:{name}]\ncmd = sleep 1000\n" for name in names))
    daemon.call("stop", waiting=True)
    daemon.file.write_text("[sysup]\nwarmup_delay = 2\n" + daemon.file.read_text())
    assert daemon.call("reloadconfig", waiting=True)["status"] == "ok"
    daemon.call("start")
    daemon.call("stop", name="c", waiting=True)
    daemon.upgrade()
    until(lambda: all(daemon.status(name) == "active" for name in "ab"), "all are started")
    assert daemon.status("c") == "stopped"


def grew(log: Path, size: int) -> bool:
    return log.stat().st_size > size


def test_what_was_told_is_not_told_again(sysupd: Start) -> None:
    daemon = sysupd(SLEEPERS + "[watcher:idle]\ncmd = sleep 2000\n")
    daemon.ctl("stop", "idle")
    until(lambda: "web: start\n" in daemon.log(), "all is told")
    daemon.upgrade()
    daemon.ctl("stop", "web")  # as far as this all events are in the log
    until(lambda: "web: stop\n" in daemon.log(), "this is told")
    told = [line.split(" info ")[-1] for line in daemon.log().splitlines()]
    assert (told.count("idle: stop"), told.count("web: start")) == (1, 1)


def test_an_old_generation_keeps_its_options(sysupd: Start) -> None:
    """What serves while the new options fail serves on, however often the daemon is replaced."""
    daemon = sysupd("[watcher:web]\ncmd = sleep 1000\nbackoff.delay = 60\n")
    assert "cannot replace web" in daemon.ctl("set", "web", "cmd", "false").stderr
    (old,) = daemon.pids("web")[:1]
    daemon.upgrade()
    os.kill(old, signal.SIGKILL)
    new = until(
        lambda: [p for p in daemon.pids("web") if command_line(p) == "sleep 1000" and p != old],
        "it is started again, by the options that it had",
    )
    daemon.ctl("set", "web", "cmd", "sleep 2000")
    until(lambda: [command_line(pid) for pid in daemon.pids("web")] == ["sleep 2000"], "new ones")
    assert new


def test_output_goes_on(sysupd: Start, tmp_path: Path) -> None:
    log = tmp_path / "web.log"
    counter = tmp_path / "count.sh"
    counter.write_text("i=0\nwhile [ -e go ]; do i=$((i+1)); echo line $i; sleep 0.001; done\n")
    go = tmp_path / "go"
    go.touch()
    daemon = sysupd(
        f"[watcher:web]\ncmd = sh {counter}\nrestart = never\n"
        f"stdout_stream.class = FileStream\nstdout_stream.filename = {log}\n"
    )
    for _ in range(3):
        until(log.exists, "it writes")
        size = log.stat().st_size
        daemon.upgrade()
        until(partial(grew, log, size + 200), "it goes on")
    go.unlink()
    until(lambda: daemon.pids("web") == [], "it has ended")
    lines = log.read_text().splitlines()
    assert lines == [f"line {number}" for number in range(1, len(lines) + 1)]


def test_input_can_be_sent_on(sysupd: Start, tmp_path: Path) -> None:
    log = tmp_path / "cat.log"
    daemon = sysupd(
        "[watcher:cat]\ncmd = cat\nstdin = pipe\nrestart = never\n"
        f"stdout_stream.class = FileStream\nstdout_stream.filename = {log}\n"
    )
    daemon.ctl("send", "cat", "one")
    daemon.upgrade()
    daemon.ctl("send", "cat", "two")
    until(lambda: log.exists() and log.read_text() == "one\ntwo\n", "both arrived")
    daemon.ctl("send", "--eof", "cat", "end")
    until(lambda: daemon.pids("cat") == [], "it met the end of its input")


def test_a_listening_socket_stays_open(sysupd: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    daemon = sysupd(
        f"[socket:s]\nhost = 127.0.0.1\nport = {port}\n"
        "[watcher:web]\ncmd = sleep $(circus.sockets.s)000\n"
    )
    with socket.create_connection(("127.0.0.1", port)):
        daemon.upgrade()
        (row,) = daemon.call("listsockets")["sockets"]
        assert row["port"] == port
        with socket.create_connection(("127.0.0.1", port)):
            pass


def test_a_crash_loop_is_counted_on(sysupd: Start) -> None:
    daemon = sysupd("[watcher:bad]\ncmd = false\nflapping.retry_in = 1000\n")
    until(lambda: "flapping" in daemon.log(), "a crash loop")
    before = daemon.call("status")["watchers"]["bad"]
    daemon.upgrade()
    after = daemon.call("status")["watchers"]["bad"]
    assert after["state"] == before["state"] == "flapping"
    assert after["retry_in"] < before["retry_in"]


def test_a_program_that_fails_its_self_test_replaces_nothing(sysupd: Start, tmp_path: Path) -> None:
    broken = tmp_path / "sysup"
    daemon = sysupd(SLEEPERS, env={"PYTHONPATH": str(tmp_path)})
    before = daemon.pids("web")
    broken.mkdir()
    (broken / "__init__.py").write_text("raise ImportError('half installed')\n")
    reply = daemon.call("upgrade", waiting=True)
    assert reply["status"] == "error"
    assert "half installed" in reply["reason"]
    assert daemon.pids("web") == before


def test_the_config_that_runs_is_that_which_was_read(sysupd: Start) -> None:
    daemon = sysupd(SLEEPERS)
    before = daemon.pids("web")
    daemon.file.write_text("[watcher:web]\nnumproceses = 1\n")
    daemon.upgrade()
    assert daemon.pids("web") == before
    daemon.file.write_text(SLEEPERS + "[watcher:new]\ncmd = sleep 1000\n")
    daemon.call("reloadconfig", waiting=True)
    assert daemon.pids("web") == before
    assert len(daemon.pids("new")) == 1


def test_a_daemon_that_was_killed_leaves_no_double(sysupd: Start) -> None:
    daemon = sysupd(SLEEPERS)
    before = daemon.pids("web")
    daemon.process.kill()
    daemon.process.wait()
    assert all(map(command_line, before))
    again = sysupd(SLEEPERS)
    assert len(again.pids("web")) == 3
    until(lambda: not any(map(command_line, before)), "the old are ended")
