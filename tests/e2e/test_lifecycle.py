"""Processes die, flap, are stopped, scaled and replaced."""

from __future__ import annotations

import os
import re
import resource
import signal
from pathlib import Path

import pytest

from tests.e2e.conftest import Start
from tests.e2e.harness import PATIENCE, command_line, descendants, until

SLEEPERS = """
[watcher:web]
cmd = sleep 1000
numprocesses = {number}
graceful_timeout = 5
"""

CRASHING = """
[watcher:broken]
cmd = sh -c 'echo cannot find the database; exit 3'
autostart = False
flapping.retry_in = 0.05
max_retry = 2
"""


def alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def test_a_killed_process_is_replaced_at_once_in_its_place(sysupd: Start) -> None:
    daemon = sysupd(SLEEPERS.format(number=3))
    events = daemon.events()
    before = daemon.pids("web")
    os.kill(before[1], signal.SIGKILL)
    reap = events.wait_for_name("reap", "web")
    spawn = events.wait_for_name("spawn", "web")
    assert reap.fields["exit_code"] == -9
    assert reap.fields["process_pid"] == before[1]
    assert spawn.fields["wid"] == reap.fields["wid"]
    assert not {"backoff", "flapping"} & {event.name for event in events.seen}, "without delay"
    after = daemon.pids("web")
    assert after == [before[0], spawn.fields["process_pid"], before[2]]


@pytest.mark.parametrize("head", ["[sysup]\n", "[circus]\nendpoint =\npubsub_endpoint =\n"])
def test_a_program_is_found_in_the_path_of_its_process(
    sysupd: Start, tmp_path: Path, head: str
) -> None:
    package = tmp_path / "venv/lib/python3.11/site-packages"
    package.mkdir(parents=True)
    for directory, name in (("venv/bin", "in-venv"), ("other", "in-path")):
        program = tmp_path / directory / name
        program.parent.mkdir(exist_ok=True)
        program.symlink_to("/bin/sleep")
    daemon = sysupd(
        f"{head}[watcher:a]\ncmd = in-venv 1000\ncopy_env = yes\nvirtualenv = {tmp_path}/venv\n"
        f"[watcher:b]\ncmd = in-path 1000\n[env:b]\nPATH = {tmp_path}/other:$PATH\n"
    )
    for name in "ab":
        (pid,) = daemon.pids(name)
        assert command_line(pid).split()[1] == "1000"


def test_a_command_that_dies_at_once_is_told_of_and_given_up(sysupd: Start) -> None:
    daemon = sysupd(CRASHING)
    events = daemon.events()
    daemon.call("start", name="broken")
    for tries in (1, 2):
        flapping = events.wait_for_name("flapping", "broken").fields
        assert flapping["exit_code"] == 3
        assert flapping["tries"] == tries
        assert flapping["retry_in"] > 0
        assert flapping["last_output"] == "cannot find the database"
    gave_up = events.wait_for_name("gave_up", "broken").fields
    assert gave_up["reason"] == "exit code 3"
    assert gave_up["last_output"] == "cannot find the database"
    shown = daemon.call("status", name="broken", processes=True)
    assert shown["status"] == "stopped"
    watcher = shown["watchers"]["broken"]
    assert watcher["state"] == "failed"
    assert watcher["processes"][0]["last_output"] == "cannot find the database"
    status = daemon.ctl("status")
    assert status.returncode == 3
    assert "failed" in status.stdout
    assert "exit code 3" in status.stdout
    assert "cannot find the database" in status.stdout


def test_flapping_with_the_defaults_waits_and_costs_nothing(sysupd: Start) -> None:
    daemon = sysupd("[watcher:broken]\ncmd = false\nautostart = False\n")
    events = daemon.events()
    daemon.call("start", name="broken")
    flapping = events.wait_for_name("flapping", "broken").fields
    assert 6.3 <= flapping["retry_in"] <= 7.7
    assert flapping["reason"] == "exit code 1"
    assert sum(event.name == "spawn" for event in events.seen) == 2


def test_a_start_by_command_ends_the_waiting(sysupd: Start) -> None:
    daemon = sysupd(
        "[watcher:broken]\ncmd = sh -c 'test -e ok && exec sleep 1000'\nflapping.retry_in = 1000\n"
    )
    until(
        lambda: daemon.call("status", name="broken")["watchers"]["broken"]["state"] == "flapping",
        "it waits",
    )
    events = daemon.events()
    (daemon.directory / "ok").touch()
    daemon.call("start", name="broken", waiting=True)
    events.wait_for_name("spawn", "broken")
    assert len(daemon.pids("broken")) == 1


def test_give_up_may_end_the_daemon_with_the_code(sysupd: Start) -> None:
    daemon = sysupd(
        CRASHING.replace("autostart = False", "on_give_up = exit"),
        wait=False,
    )
    assert daemon.process.wait(PATIENCE) == 3


def test_scaling_leaves_survivors_alone(sysupd: Start) -> None:
    daemon = sysupd(SLEEPERS.format(number=3))
    first = daemon.pids("web")
    assert daemon.call("incr", name="web", nb=2, waiting=True)["numprocesses"] == 5
    assert daemon.pids("web")[:3] == first
    assert daemon.call("decr", name="web", nb=4, waiting=True)["numprocesses"] == 1
    until(lambda: daemon.pids("web") == first[:1], "one is left")
    assert daemon.call("decr", name="web", nb=9, waiting=True)["numprocesses"] == 0


def test_a_reload_replaces_every_process_and_alternates_places(sysupd: Start) -> None:
    daemon = sysupd(SLEEPERS.format(number=2))
    first = daemon.pids("web")
    info = daemon.call("reload", name="web", waiting=True)["info"]
    assert sorted(info["stopped"]) == sorted(first)
    assert len(info["started"]) == 2
    web = daemon.call("status", processes=True)["watchers"]["web"]
    assert [process["wid"] for process in web["processes"]] == [3, 4]
    daemon.call("reload", name="web", sequential=True, waiting=True)
    assert len(daemon.pids("web")) == 2


def test_a_new_generation_that_fails_leaves_the_old_running(sysupd: Start) -> None:
    daemon = sysupd(SLEEPERS.format(number=2))
    first = daemon.pids("web")
    daemon.call("set", name="web", options={"cmd": "false"}, waiting=True)
    reply = daemon.call("reload", name="web", waiting=True)
    assert reply["status"] == "error"
    assert "the old processes run on" in reply["reason"]
    assert all(alive(pid) for pid in first)
    daemon.call("set", name="web", options={"cmd": "sleep 2000"}, waiting=True)
    until(lambda: not any(alive(pid) for pid in first), "the old ones are gone")
    until(lambda: len(daemon.pids("web")) == 2, "two processes")
    assert {command_line(pid) for pid in daemon.pids("web")} == {"sleep 2000"}


def test_a_limit_is_changed_on_the_running_process(sysupd: Start) -> None:
    daemon = sysupd(SLEEPERS.format(number=1))
    (pid,) = daemon.pids("web")
    changed = daemon.ctl("set", "web", "rlimit_nofile", "500")
    assert changed.returncode == 0, changed.stderr
    assert resource.prlimit(pid, resource.RLIMIT_NOFILE)[0] == 500
    assert daemon.pids("web") == [pid]


def test_a_limit_that_cannot_be_changed_changes_nothing(sysupd: Start) -> None:
    daemon = sysupd(SLEEPERS.format(number=1))
    above = resource.getrlimit(resource.RLIMIT_NOFILE)[1] + 1_000_000_000
    changed = daemon.ctl("set", "web", "rlimit_nofile", str(above))
    assert changed.returncode == 1
    assert "rlimit_nofile" in changed.stderr
    assert daemon.call("get", name="web", keys=["rlimit_nofile"])["options"] == {
        "rlimit_nofile": None
    }


def test_a_signal_by_command_is_no_crash(sysupd: Start) -> None:
    daemon = sysupd(SLEEPERS.format(number=1))
    events = daemon.events()
    for _ in range(5):
        daemon.call("signal", name="web", signum="KILL")
        events.wait_for_name("spawn", "web")
    assert daemon.call("status")["watchers"]["web"]["state"] == "active"


def test_kill_by_command_starts_afresh(sysupd: Start) -> None:
    daemon = sysupd(SLEEPERS.format(number=2))
    first = daemon.pids("web")
    daemon.call("kill", name="web", pid=first[0], waiting=True)
    after = daemon.pids("web")
    assert first[1] in after
    assert first[0] not in after
    assert len(after) == 2


def test_max_age(sysupd: Start) -> None:
    daemon = sysupd(
        "[sysup]\ncheck_delay = 0.1\n"
        + SLEEPERS.format(number=1)
        + "max_age = 1\nmax_age_variance = 0\n"
    )
    first = until(lambda: daemon.pids("web"), "a process")
    until(lambda: daemon.pids("web") not in (first, []), "a younger process")
    assert daemon.call("status")["watchers"]["web"]["state"] == "active"


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_all_in_the_midst_of_a_start(sysupd: Start, signum: int) -> None:
    daemon = sysupd(SLEEPERS.format(number=300), wait=False)
    until(lambda: len(descendants(daemon.pid)) > 10, "some have been started")
    assert daemon.stop(signum) == 0


def test_a_signal_stops_all_in_the_midst_of_a_stubborn_stop(sysupd: Start) -> None:
    daemon = sysupd(
        "[watcher:deaf]\ncmd = sh -c \"trap '' TERM; echo deaf; while :; do sleep 0.1; done\"\n"
        "graceful_timeout = 0.5\n"
    )
    until(lambda: "deaf" in daemon.log(), "it is deaf")
    daemon.call("stop", name="deaf")
    assert daemon.stop() == 0


def test_told_twice_it_does_not_wait(sysupd: Start) -> None:
    daemon = sysupd(
        "[watcher:deaf]\ncmd = sh -c \"trap '' TERM; echo deaf; while :; do sleep 0.1; done\"\n"
        "graceful_timeout = 300\n"
    )
    until(lambda: "deaf" in daemon.log(), "it is deaf")

    def told_again() -> bool:
        daemon.process.send_signal(signal.SIGINT)
        return daemon.process.poll() is not None

    until(told_again, "it ends without waiting")
    assert daemon.process.returncode == 0


def test_stop_takes_the_whole_tree(sysupd: Start, tmp_path: Path) -> None:
    """Children in the group, in a session of their own, and daemons that fled long ago."""
    (tmp_path / "tree").write_text(
        "sleep 1001 & setsid sleep 1002 & (setsid setsid sleep 1003 &)\n"
        "setsid sh -c 'sleep 1004 & sleep 1005' & exec sleep 1006\n"
    )
    daemon = sysupd("[watcher:tree]\ncmd = sh tree\n")

    def sleeping() -> set[str]:
        return set(re.findall(r"sleep 100\d", " ".join(descendants(daemon.pid).values())))

    until(lambda: len(sleeping()) == 6, "all six sleep")
    daemon.call("stop", name="tree", waiting=True)
    until(lambda: sleeping() == set(), "none is left")
    assert daemon.status("tree") == "stopped"


def test_a_crash_takes_what_it_left_with_it(sysupd: Start) -> None:
    daemon = sysupd("[watcher:tree]\ncmd = sh -c 'setsid sleep 1001 & exec sleep 1002'\n")
    until(lambda: "sleep 1001" in descendants(daemon.pid).values(), "it has a child")
    (main,) = daemon.pids("tree")
    (child,) = [p for p, c in descendants(daemon.pid).items() if c == "sleep 1001"]
    os.kill(main, signal.SIGKILL)
    until(lambda: not alive(child), "the child is gone")
    until(lambda: daemon.pids("tree") not in ([], [main]), "a new one runs")


def test_strangers_are_reaped(sysupd: Start) -> None:
    daemon = sysupd("[watcher:w]\ncmd = sh -c '(setsid sleep 0.05 &); exec sleep 1000'\n")

    def zombies() -> list[str]:
        return [
            entry
            for entry in os.listdir("/proc")
            if entry.isdecimal() and ppid_and_state(int(entry)) == (daemon.pid, "Z")
        ]

    until(lambda: "sleep 0.05" not in descendants(daemon.pid).values(), "it has ended")
    until(lambda: not zombies(), "nobody is left unburied")


def ppid_and_state(pid: int) -> tuple[int, str]:
    try:
        state, ppid = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except (FileNotFoundError, ProcessLookupError):
        return 0, "X"
    return int(ppid), state


def test_hangup_reloads_the_config_and_touches_only_what_differs(sysupd: Start) -> None:
    daemon = sysupd(SLEEPERS.format(number=1) + "[watcher:old]\ncmd = sleep 1000\n")
    kept = daemon.pids("web")
    daemon.file.write_text(SLEEPERS.format(number=2) + "[watcher:new]\ncmd = sleep 1000\n")
    os.kill(daemon.pid, signal.SIGHUP)
    until(lambda: daemon.call("list")["watchers"] == ["new", "web"], "new came, old went")
    until(lambda: len(daemon.pids("web")) == 2, "web grew")
    assert daemon.pids("web")[:1] == kept


def test_a_bad_config_changes_nothing(sysupd: Start) -> None:
    daemon = sysupd(SLEEPERS.format(number=1))
    kept = daemon.pids("web")
    daemon.file.write_text("[watcher:web]\ncmd = sleep 1000\nnumproceses = 2\n")
    reply = daemon.call("reloadconfig", waiting=True)
    assert reply["status"] == "error"
    assert "numprocesses" in reply["reason"]
    assert daemon.pids("web") == kept


def test_a_bad_watcher_keeps_its_config_and_the_rest_follows(sysupd: Start) -> None:
    """Also over an upgrade; and who asks is told by all that tells."""
    daemon = sysupd(SLEEPERS.format(number=1) + "[watcher:old]\ncmd = sleep 1000\n")
    kept = daemon.pids("web")
    events = daemon.events()
    bad = "[watcher:web]\ncmd = sleep 2000\nnumproceses = 2\n"
    daemon.file.write_text(bad + "[watcher:new]\ncmd = sleep 1000\n")
    why = (
        f"{daemon.file}:3: [watcher:web] numproceses: unknown option (did you mean 'numprocesses'?)"
    )
    dry = daemon.ctl("reloadconfig", "--dry-run")
    done = daemon.ctl("reloadconfig")
    assert (done.returncode, done.stdout, done.stderr) == (dry.returncode, dry.stdout, dry.stderr)
    assert done.returncode == 1
    assert [line.split()[:2] for line in done.stdout.splitlines()] == [
        ["add", "new"],
        ["remove", "old"],
        ["keep", "watcher:web"],
    ]
    assert f"watcher web stays as it is: {why}\n" in done.stderr
    event = events.wait_for_name("config_error")
    assert (event.watcher, event.fields["reason"]) == ("web", why)
    daemon.says(f"web: config error, {why}")
    for _ in range(2):
        assert daemon.call("list")["watchers"] == ["new", "web"]
        assert daemon.pids("web") == kept
        assert f"keeps its old config: {why}" in daemon.ctl("status").stdout
        assert f"keeps its old config: {why}" in daemon.ctl("show", "web").stdout
        assert daemon.call("get", name="web", keys=["cmd"])["options"] == {"cmd": "sleep 1000"}
        daemon.upgrade()
    daemon.file.write_text(bad.replace("ceses", "cesses") + "[watcher:new]\ncmd = sleep 1000\n")
    reply = daemon.call("reloadconfig", waiting=True)
    assert (reply["status"], reply["changed"]) == (
        "ok",
        {"web": ["cmd", "graceful_timeout", "numprocesses"]},
    )
    assert "old config" not in daemon.ctl("status").stdout
    until(lambda: len(daemon.pids("web")) == 2, "it follows")


def test_commands_to_one_watcher_queue_and_none_is_refused(sysupd: Start) -> None:
    daemon = sysupd(SLEEPERS.format(number=2))
    for command in ("restart", "reload", "incr", "restart", "decr", "stop", "start", "incr"):
        assert daemon.call(command, name="web")["status"] == "ok"
    until(lambda: len(daemon.pids("web")) == 3, "three processes at last")
    assert daemon.call("stop", name="web", waiting=True)["status"] == "ok"
    assert daemon.pids("web") == []


def test_sockets_are_bound_once_and_shared(sysupd: Start) -> None:
    program = (
        "import socket,sys; s=socket.socket(fileno=int(sys.argv[1])); "
        'print(s.getsockname()[0], flush=True); c,_=s.accept(); c.send(b"hi"); c.close(); '
        "s.accept()"
    )
    daemon = sysupd(
        "[socket:web]\nhost = 127.0.0.1\nport = 0\n"
        "[watcher:web]\nuse_sockets = True\nnumprocesses = 2\n"
        f"cmd = python3 -c '{program}' $(circus.sockets.web)\n"
    )
    (listening,) = daemon.call("listsockets")["sockets"]
    import socket

    with socket.create_connection((listening["host"], listening["port"])) as client:
        assert client.recv(2) == b"hi"


def test_removed_without_a_stop_the_processes_run_on(sysupd: Start) -> None:
    daemon = sysupd(SLEEPERS.format(number=2))
    pids = daemon.pids("web")
    assert daemon.ctl("rm", "--nostop", "web").returncode == 0
    assert daemon.call("list")["watchers"] == []
    assert all(alive(pid) for pid in pids)
    os.kill(pids[0], signal.SIGKILL)
    until(lambda: not os.path.exists(f"/proc/{pids[0]}"), "the dead one is buried")
    assert daemon.stop() == 0
    until(lambda: not alive(pids[1]), "the other was killed")


def test_a_reload_of_what_is_stopped_says_so(sysupd: Start) -> None:
    daemon = sysupd(SLEEPERS.format(number=1))
    daemon.call("stop", name="web", waiting=True)
    assert daemon.call("reload", name="web", waiting=True)["reason"] == "web is stopped"
    assert daemon.status("web") == "stopped"


def test_one_watcher_does_not_wait_for_another(sysupd: Start) -> None:
    """All are told to start by one request: of three, the first might be through too early."""
    daemon = sysupd(SLEEPERS.format(number=1))
    events = daemon.events()
    daemon.file.write_text(
        SLEEPERS.format(number=1) + "[watcher:many]\ncmd = sleep 1000\nnumprocesses = 400\n"
        "[watcher:one]\ncmd = sleep 1000\n[watcher:two]\ncmd = sleep 1000\n"
    )
    assert daemon.call("reloadconfig")["status"] == "ok"
    events.wait_for_name("spawn", "two")
    before = sum(event.name == "spawn" for event in events.seen)
    assert before < 200


@pytest.mark.parametrize("flood", [signal.SIGCHLD, signal.SIGUSR1, signal.SIGHUP])
def test_no_flood_of_signals_loses_the_one_that_ends(sysupd: Start, flood: int) -> None:
    daemon = sysupd(SLEEPERS.format(number=20))
    daemon.call("restart", name="web")
    for _ in range(20_000):
        daemon.process.send_signal(flood)
    assert daemon.stop() == 0


def test_the_end_takes_the_sockets_with_it(sysupd: Start) -> None:
    daemon = sysupd(SLEEPERS.format(number=1))
    assert {"control", "events"} <= set(os.listdir(daemon.runtime))
    assert daemon.stop() == 0
    assert os.listdir(daemon.runtime) == ["lock"]


def test_what_is_saved_survives_the_daemon(sysupd: Start, tmp_path: Path) -> None:
    daemon = sysupd("[watcher:web]\ncmd = sleep 1000\n")
    done = daemon.ctl("set", "web", "numprocesses", "3", "env", '{"A": "b c"}', "--save")
    path = tmp_path / "app.d" / "90-saved.ini"
    assert done.stdout.endswith(f"saved in {path}\n")
    assert daemon.ctl("add", "--start", "--save", "job", "sleep", "2000").returncode == 0
    assert daemon.ctl("incr", "job", "--save").returncode == 0
    daemon.ctl("set", "web", "priority", "5")
    assert "web  " in daemon.ctl("diff").stdout
    before = sorted([*daemon.pids("web"), *daemon.pids("job")])
    daemon.upgrade()
    assert sorted([*daemon.pids("web"), *daemon.pids("job")]) == before
    assert daemon.ctl("reloadconfig", "--dry-run").stdout.startswith("nothing differs")
    daemon.stop()
    daemon = sysupd("[watcher:web]\ncmd = sleep 1000\n")
    assert (len(daemon.pids("web")), len(daemon.pids("job"))) == (3, 2)
    env = daemon.call("get", name="web", keys=["env", "priority"])["options"]
    assert env == {"env": {"A": "b c"}, "priority": 0}
    path.unlink()
    assert f"hint: {path} changed" in daemon.ctl("status").stderr
    done = daemon.ctl("reloadconfig", "--dry-run")
    assert done.stdout.splitlines()[0].split()[:2] == ["remove", "job"]
    assert daemon.pids("job"), "only told"
    daemon.ctl("reloadconfig")
    assert daemon.call("list")["watchers"] == ["web"]
    until(lambda: len(daemon.pids("web")) == 1, "the others are stopped")
    assert daemon.ctl("status").stderr == ""


def test_what_a_killed_daemon_left_is_ended_and_told_in_a_line(sysupd: Start) -> None:
    text = SLEEPERS.format(number=12)
    first = sysupd(text)
    left = first.pids("web")
    os.kill(first.pid, signal.SIGKILL)
    first.process.wait(PATIENCE)
    second = sysupd(text)
    until(lambda: not any(map(alive, left)), "what was left is ended")
    (line,) = [line for line in second.log().splitlines() if "daemon before left" in line]
    assert "ending 12 processes that the daemon before left: " in line
    assert line.endswith(", ...")
