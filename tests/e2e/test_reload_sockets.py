"""A config read again: what a changed socket does to those that use it."""

from __future__ import annotations

import os
import socket
from contextlib import suppress

from tests.e2e.conftest import Start
from tests.e2e.harness import until

USER = "[watcher:web]\ncmd = sleep $(circus.sockets.s)000\nnumprocesses = 2\n"
OTHER = "[watcher:other]\ncmd = sleep 100\n"


def ini(port: int, backlog: int = 10, more: str = "") -> str:
    return f"[socket:s]\nhost = 127.0.0.1\nport = {port}\nbacklog = {backlog}\n{USER}{OTHER}{more}"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def inodes(pid: int) -> set[str]:
    """The sockets that a process has open: none once it is gone."""
    links = set()
    with suppress(FileNotFoundError, ProcessLookupError):
        for fd in os.listdir(f"/proc/{pid}/fd"):
            with suppress(FileNotFoundError):  # a library, while its program is loaded
                links.add(os.readlink(f"/proc/{pid}/fd/{fd}"))
    return {link for link in links if link.startswith("socket:")}


def test_who_uses_a_changed_socket_gets_the_new_one(sysupd: Start) -> None:
    port = free_port()
    daemon = sysupd(ini(port))
    before = until(lambda: len(daemon.pids("web")) == 2 and daemon.pids("web"), "two run")
    other = until(lambda: daemon.pids("other"), "the other runs")
    old = inodes(before[0])
    daemon.file.write_text(ini(port, backlog=20))
    assert daemon.call("reloadconfig", waiting=True)["status"] == "ok"
    (row,) = daemon.call("listsockets")["sockets"]
    assert (row["port"], row["backlog"]) == (port, 20)
    after = until(lambda: len(daemon.pids("web")) == 2 and daemon.pids("web"), "two processes")
    assert not set(before) & set(after)
    assert [len(inodes(pid)) for pid in after] == [1, 1]
    assert old != inodes(after[0]) == inodes(after[1])
    assert daemon.pids("other") == other


def test_who_is_stopped_stays_so_and_gets_the_new_one_later(sysupd: Start) -> None:
    port = free_port()
    daemon = sysupd(ini(port))
    daemon.call("stop", name="web", waiting=True)
    daemon.file.write_text(ini(port, backlog=20))
    daemon.call("reloadconfig", waiting=True)
    assert daemon.status("web") == "stopped"
    daemon.call("start", name="web", waiting=True)
    assert [len(inodes(pid)) for pid in daemon.pids("web")] == [1, 1]


def test_who_uses_all_sockets_gets_a_new_one(sysupd: Start) -> None:
    port = free_port()
    everybody = "[watcher:all]\ncmd = sleep 100\nuse_sockets = True\n"
    daemon = sysupd(ini(port, more=everybody))
    (pid,) = until(lambda: daemon.pids("all"), "it runs")
    assert len(inodes(pid)) == 1
    daemon.file.write_text(ini(port, more=f"{everybody}[socket:t]\nport = 0\n"))
    daemon.call("reloadconfig", waiting=True)
    until(lambda: [len(inodes(p)) for p in daemon.pids("all")] == [2], "a process with two sockets")


def test_a_socket_that_was_taken_is_bound_when_it_is_free(sysupd: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = int(taken.getsockname()[1])
        daemon = sysupd(ini(port))
        assert daemon.call("listsockets")["sockets"] == []
    until(lambda: daemon.call("listsockets")["sockets"], "bound")
    daemon.call("start", name="web", waiting=True)
    assert len(daemon.pids("web")) == 2
