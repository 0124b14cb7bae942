"""Whatever is wrong is told clearly, and nothing else stops."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
import zmq

from tests.e2e.conftest import Start
from tests.e2e.harness import PATIENCE, PROGRAMS, Daemon, until

GOOD = "\n[watcher:good]\ncmd = sleep 1000\n"


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run sysupd to its end."""
    command = [PROGRAMS / "sysupd", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)


def trouble(daemon: Daemon, name: str) -> dict[str, Any]:
    """The watcher once it has come to grief."""

    def looping() -> dict[str, Any] | None:
        watcher: dict[str, Any] = daemon.call("status", name=name)["watchers"][name]
        return watcher if watcher["state"] in ("flapping", "failed", "backoff") else None

    found: dict[str, Any] = until(looping, f"{name} is in trouble")
    return found


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("cmd = nosuchprogram", ["nosuchprogram", "no such file"]),
        ("cmd = /etc/passwd", ["/etc/passwd", "permission denied"]),
        ("cmd = /tmp", ["/tmp", "permission denied"]),
        ("cmd = sleep 1000\nuid = nosuchuser", ["nosuchuser"]),
        ("cmd = sleep 1000\ngid = nosuchgroup", ["nosuchgroup"]),
        ("cmd = sleep 1000\nworking_dir = /nosuch", ["/nosuch", "no such file"]),
        ("cmd = sleep 1000\nstdout_stream.class = nosuch.Stream", ["nosuch.Stream"]),
        ("cmd = sleep 1000\nstdout_stream.class = os.path.nosuch", ["os.path.nosuch"]),
    ],
)
def test_what_cannot_run_says_why(sysupd: Start, options: str, words: list[str]) -> None:
    daemon = sysupd(f"[watcher:bad]\n{options}\n{GOOD}")
    reason = trouble(daemon, "bad")["reason"]
    assert all(word.lower() in reason.lower() for word in words), reason
    assert daemon.status("good") == "active"
    daemon.says(reason)


@pytest.mark.parametrize(
    ("ini", "words"),
    [
        ("[watcher:bad]\ncmd = true\nnumproceses = 2\n", [":3:", "numproceses", "numprocesses"]),
        ("[watcher:bad]\ncmd = true\nnumprocesses = two\n", [":3:", "numprocesses", "two"]),
        ("[watcher:bad]\ncmd = true\nrlimit_nofiles = 2\n", [":3:", "nofile"]),
        ("[watcher:bad]\nargs = 1\n", ["cmd"]),
        ("[wacher:bad]\ncmd = true\n", ["wacher"]),
        ("[sysup]\ninclude = /nosuch/file.ini\n", [":2:", "/nosuch/file.ini"]),
        ("[sysup]\nendpoint = tcp://0.0.0.0:5555\n", ["loopback", "tcp_plain_role"]),
        ("[watcher:bad]\ncmd = true\nready = notify\n", ["not supported yet"]),
    ],
)
def test_a_wrong_config_is_refused_whole(tmp_path: Path, ini: str, words: list[str]) -> None:
    file = tmp_path / "app.ini"
    file.write_text(ini + GOOD)
    for arguments in (("--check", file), (file,)):
        ended = run(*arguments)
        assert ended.returncode == 78
        assert all(word in ended.stderr for word in words), ended.stderr
        assert str(file) in ended.stderr


def test_all_errors_are_told_at_once(tmp_path: Path) -> None:
    file = tmp_path / "app.ini"
    file.write_text("[watcher:a]\ncmd = true\nnumprocesses = x\npriority = y\n[watcher:b]\n")
    ended = run("--check", file)
    assert len(ended.stderr.splitlines()) == 3


def test_a_good_config_is_told_to_be_good(tmp_path: Path) -> None:
    file = tmp_path / "app.ini"
    file.write_text(GOOD)
    ended = run("--check", file)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_an_include_that_may_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "more.ini").mkdir()
    file = tmp_path / "app.ini"
    file.write_text("[sysup]\ninclude = more.ini\n" + GOOD)
    ended = run("--check", file)
    assert ended.returncode == 78
    assert "more.ini" in ended.stderr


def test_no_such_file(tmp_path: Path) -> None:
    ended = run(tmp_path / "no.ini")
    assert ended.returncode == 78
    assert "no.ini" in ended.stderr


def test_a_port_that_is_taken_costs_only_the_port(sysupd: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        daemon = sysupd(f"[sysup]\nendpoint = tcp://127.0.0.1:{port}\n{GOOD}")
        daemon.says(f"cannot bind tcp://127.0.0.1:{port}: address already in use")
        assert daemon.status("good") == "active"


def test_who_lacked_a_socket_starts_as_soon_as_it_is_there(sysupd: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        daemon = sysupd(
            f"[socket:s]\nport = {port}\nhost = 127.0.0.1\n[watcher:web]\ncmd = sleep 1000\n"
            "use_sockets = yes\nflapping.retry_in = 1h\nflapping.retry_max = 1h\n"
        )
        daemon.says("address already in use")
        events = daemon.events()
    events.wait_for_name("spawn", "web")
    assert daemon.status("web") == "active"


def test_a_socket_that_is_taken_costs_only_its_watcher(sysupd: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        daemon = sysupd(
            f"[socket:s]\nhost = 127.0.0.1\nport = {port}\n"
            f"[watcher:bad]\ncmd = sleep $(circus.sockets.s)\nuse_sockets = True\n{GOOD}"
        )
        assert "in use" in trouble(daemon, "bad")["reason"]
        assert daemon.status("good") == "active"


def test_a_second_daemon_for_the_app_is_refused(sysupd: Start) -> None:
    daemon = sysupd(GOOD)
    second = sysupd(GOOD, wait=False)
    assert second.process.wait(PATIENCE) == 1
    assert f"running already (pid {daemon.pid})" in second.log()
    assert daemon.status("good") == "active"


def test_a_log_directory_that_is_missing_holds_the_output_back(
    sysupd: Start, tmp_path: Path
) -> None:
    daemon = sysupd(
        "[watcher:w]\ncmd = sh -c 'echo first; exec sleep 1000'\n"
        f"stdout_stream.filename = {tmp_path}/no/dir/w.log\n{GOOD}"
    )
    problem = until(
        lambda: daemon.call("status", name="w")["watchers"]["w"]["problem"], "the problem is told"
    )
    assert "no/dir/w.log" in problem
    assert "no such file" in problem.lower()
    assert daemon.status("w") == daemon.status("good") == "active"
    (tmp_path / "no" / "dir").mkdir(parents=True)
    log = tmp_path / "no" / "dir" / "w.log"
    until(lambda: log.exists() and log.read_text() == "first\n", "what was held back")
    until(lambda: not daemon.call("status", name="w")["watchers"]["w"]["problem"], "it is over")


def test_a_child_that_closes_its_output_runs_on(sysupd: Start) -> None:
    daemon = sysupd("[watcher:w]\ncmd = sh -c 'echo bye; exec sleep 1000 >&- 2>&-'\n" + GOOD)
    until(lambda: "bye" in daemon.log(), "its last words")
    (pid,) = daemon.pids("w")
    assert daemon.call("stop", name="w", waiting=True)["status"] == "ok"
    assert not os.path.exists(f"/proc/{pid}")


def test_ten_megabytes_without_a_newline(sysupd: Start, tmp_path: Path) -> None:
    log = tmp_path / "w.log"
    program = (
        'import sys,time; sys.stdout.write("x"*10_000_000); sys.stdout.flush(); time.sleep(1000)'
    )
    daemon = sysupd(
        f"[watcher:w]\ncmd = python3 -c '{program}'\n"
        f"stdout_stream.class = FileStream\nstdout_stream.filename = {log}\n{GOOD}"
    )
    daemon.call("stop", name="w", waiting=True) if until(
        lambda: log.exists() and log.stat().st_size >= 9_900_000, "nearly all"
    ) else None
    assert log.read_bytes() == b"x" * 10_000_000


def test_a_class_of_ones_own_beside_the_config(sysupd: Start, tmp_path: Path) -> None:
    (tmp_path / "mymodule.py").write_text(
        "class MyStream:\n"
        "    def __init__(self, filename, prefix=''):\n"
        "        self.file, self.prefix = open(filename, 'wb', 0), prefix.encode()\n"
        "    def __call__(self, data):\n"
        "        self.file.write(self.prefix + b'%d ' % data['pid'] + data['data'])\n"
        "    def close(self):\n"
        "        self.file.close()\n"
    )
    daemon = sysupd(
        "[watcher:w]\ncmd = sh -c 'echo one; exec sleep 1000'\n"
        "stdout_stream.class = mymodule.MyStream\n"
        f"stdout_stream.filename = {tmp_path}/my.log\nstdout_stream.prefix = >\n{GOOD}"
    )
    (pid,) = daemon.pids("w")
    log = tmp_path / "my.log"
    until(lambda: log.exists() and log.read_text() == f">{pid} one\n", "what the class wrote")


def test_binary_output_is_kept_to_the_byte(sysupd: Start, tmp_path: Path) -> None:
    data = bytes(range(256)) * 4000
    (tmp_path / "data").write_bytes(data)
    log = tmp_path / "w.log"
    daemon = sysupd(
        "[watcher:w]\ncmd = cat data\nrespawn = False\n"
        f"stdout_stream.class = FileStream\nstdout_stream.filename = {log}\n{GOOD}"
    )
    until(lambda: daemon.status("w") == "stopped", "it is done")
    until(lambda: log.exists() and log.stat().st_size >= len(data), "all is written")
    assert log.read_bytes() == data


@pytest.mark.parametrize("scope", ["tree", "main"])
def test_a_daemon_that_keeps_the_pipe_open(sysupd: Start, scope: str) -> None:
    daemon = sysupd(
        f"[watcher:w]\ncmd = sh -c 'setsid sleep 3 & echo up; exec sleep 1000'\n"
        f"stop_scope = {scope}\n{GOOD}"
    )
    until(lambda: "up" in daemon.log(), "it is up")
    reply = daemon.call("stop", name="w", waiting=True)
    assert reply["status"] == "ok"
    assert daemon.status("w") == "stopped"
    assert daemon.status("good") == "active"


def test_garbage_on_the_control_socket(sysupd: Start) -> None:
    daemon = sysupd(GOOD)
    patience = int(PATIENCE * 1000)
    peer: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
    peer.linger = 0
    peer.connect(f"ipc://{daemon.runtime}/control")
    for frames in (
        [b""],
        [b"[]"],
        [b"{}"],
        [b'{"id": 1}'],
        [b"\xff\xfe"],
        [b"[" * 100_000],
        [b'{"command": "status", "properties": []}'],
        [b'{"command": 7}'],
        [b"{}", b"{}", b"{}"],
    ):
        peer.send_multipart(frames)
        assert peer.poll(patience), frames
        assert b'"error"' in peer.recv()
    peer.send(b'{"command": "numwatchers", "id": 5}')
    assert peer.poll(patience)
    assert b'"id": 5' in peer.recv()
    peer.close()
    assert daemon.status("good") == "active"


@pytest.mark.parametrize(
    ("request_", "errno", "words"),
    [
        (("nosuch", {}), 2, "unknown command"),
        (("status", {"name": "nosuch"}), 3, "program nosuch not found"),
        (("get", {"name": "good"}), 3, "'keys' is missing"),
        (("incr", {"name": "good", "nb": "3"}), 3, "nb"),
        (("set", {"name": "good", "options": {"nosuch": 1}}), 3, "nosuch"),
        (("set", {"name": "good", "options": {"numprocesses": "3"}}), 3, "numprocesses"),
        (("signal", {"name": "good", "signum": "NOSUCH"}), 3, "signum"),
        (("add", {"name": "good", "cmd": "true"}), 3, "already exist"),
        (("start", {"name": "(", "match": "regex"}), 3, "pattern"),
        (("listen", {}), 3, "pub/sub"),
    ],
)
def test_wrong_requests(
    sysupd: Start, request_: tuple[str, dict[str, Any]], errno: int, words: str
) -> None:
    daemon = sysupd(GOOD)
    reply = daemon.call(request_[0], **request_[1])
    assert (reply["status"], reply["errno"]) == ("error", errno)
    assert words in reply["reason"]


def test_a_standard_error_that_nobody_reads_does_not_hold_the_daemon_up(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    runtime = tmp_path_factory.mktemp("run")
    file = tmp_path / "app.ini"
    file.write_text(GOOD)
    reading, writing = os.pipe()
    daemon = subprocess.Popen(
        [PROGRAMS / "sysupd", "--log-level", "debug", file],
        stderr=writing,
        env={**os.environ, "SYSUP_RUNTIME_DIR": str(runtime)},
    )
    os.close(writing)
    try:
        ask_often(f"ipc://{runtime}/app/control")
        daemon.terminate()
        assert daemon.wait(PATIENCE) == 0
    finally:
        daemon.kill()
        os.close(reading)


def ask_often(endpoint: str) -> None:
    """Make the daemon log some 250 KB, more than two pipes hold."""
    request = b'{"command": "set", "properties": {"name": "good", "options": {"priority": 1}}}'
    with zmq.Context() as context, context.socket(zmq.DEALER) as peer:
        peer.linger = 0
        peer.connect(endpoint)
        for _ in range(8000):
            peer.send(request)
            assert peer.poll(int(PATIENCE * 1000))
            peer.recv()
