"""A real sysupd with real processes, in a directory of its own.

Nothing here waits for a time: `call` waits for a reply, `Events.wait_for` for an event, `until`
for a condition. A time-out means that the test has failed.

This process makes itself a subreaper (prctl(2)), so whatever a daemon leaves behind becomes its
child: `descendants` finds it, though it were in a session of its own.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import zmq

from sysup import protocol

HERE = Path(__file__).parent
PROGRAMS = Path(sys.executable).parent
"""Where sysupd and sysupctl are."""
PATIENCE = 60.0
"""Seconds after which what was waited for is taken not to come: a slow machine is no error."""

PR_SET_CHILD_SUBREAPER = 36
TAKEN_OVER = "taken over from the daemon before"
"""In the log of a daemon."""


def become_subreaper() -> None:
    """Have the orphans below this process become its children."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "cannot become a subreaper")


def descendants(root: int) -> dict[int, str]:
    """Command lines, by pid, of all that lives below the process `root`."""
    parents: dict[int, int] = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal():
            try:
                stat = Path(entry.path, "stat").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue
            state, ppid = stat.rpartition(")")[2].split()[:2]
            if state not in "ZX":
                parents[int(entry.name)] = int(ppid)
    found: dict[int, str] = {}
    for pid in parents:
        ancestor = parents[pid]
        while ancestor in parents and ancestor != root:
            ancestor = parents[ancestor]
        if ancestor == root:
            found[pid] = command_line(pid)
    return found


def command_line(pid: int) -> str:
    """What a process was started as; empty once it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def is_itself(pid: int) -> bool:
    """Whether a process is over its birth; true also of one that has ended.

    Who was told of a new process may find it in the midst of execve(2), by which the parent is
    woken: without a command line, and with descriptors that are about to be closed. The command
    line is the last to come. Before all that it has its parent's.
    """
    try:
        state, ppid = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except (FileNotFoundError, ProcessLookupError):
        return True
    line = command_line(pid)
    return state in "ZX" or (line != "" and line != command_line(int(ppid)))


def until(condition: Callable[[], Any], what: str, timeout: float = PATIENCE) -> Any:
    """Ask `condition` again and again; return its first true answer.

    Raises AssertionError after `timeout` seconds, naming `what` did not come true.
    """
    deadline = time.monotonic() + timeout
    while not (answer := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout:g} s: {what}")
        time.sleep(0.005)
    return answer


def children(pid: int) -> list[int]:
    """Of a process, also those that have ended."""
    found = subprocess.run(["ps", "--ppid", str(pid), "-o", "pid="], capture_output=True, text=True)
    return [int(word) for word in found.stdout.split()]


def open_files(pid: int) -> int:
    """How many descriptors a process has open, once the number has stopped to change."""
    counts: list[int] = []

    def is_steady() -> bool:
        counts.append(len(os.listdir(f"/proc/{pid}/fd")))
        return len(set(counts[-5:])) == 1 and len(counts) >= 5

    until(is_steady, "it opens and closes nothing")
    return counts[-1]


def resident(pid: int) -> int:
    """Bytes of a process in memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()


class NoReply(AssertionError):
    """The daemon does not answer."""


class Peer:
    """A client of its own, that need not wait for replies."""

    def __init__(self, runtime: Path) -> None:
        self.socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.connect(f"ipc://{runtime}/control")

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *args: object) -> None:
        self.socket.close()

    def send(self, command: str, **properties: Any) -> None:
        self.socket.send(protocol.encode_request(protocol.Request(command, properties, command)))

    def receive(self) -> dict[str, Any]:
        if not self.socket.poll(int(PATIENCE * 1000)):
            raise NoReply
        reply: dict[str, Any] = json.loads(self.socket.recv())
        return reply


class Event(NamedTuple):
    """A published event: of which watcher, what happened, and the payload."""

    watcher: str
    name: str
    fields: dict[str, Any]


class Events:
    """All that a daemon publishes from now on, in order."""

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self.seen: list[Event] = []
        self._socket = socket
        self._next = 0

    def wait_for(self, predicate: Callable[[Event], bool], timeout: float = PATIENCE) -> Event:
        """The next event for which `predicate` holds; those before it are passed over.

        Raises AssertionError, with all that was seen, when none comes within `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        while True:
            while self._next < len(self.seen):
                event = self.seen[self._next]
                self._next += 1
                if predicate(event):
                    return event
            if not self._receive(deadline - time.monotonic()):
                seen = "\n".join(map(str, self.seen))
                raise AssertionError(f"no such event within {timeout:g} s among\n{seen}")

    def wait_for_name(self, name: str, watcher: str | None = None) -> Event:
        """The next event called `name` (of `watcher`)."""
        return self.wait_for(lambda event: event.name == name and watcher in (None, event.watcher))

    def _receive(self, seconds: float) -> bool:
        if not self._socket.poll(max(0, int(seconds * 1000))):
            return False
        topic, payload = self._socket.recv_multipart()
        self.seen.append(Event(*protocol.split_topic(topic), json.loads(payload)))
        return True


class Daemon:
    """`sysupd` running an INI text.

    Args:
        directory: where it runs, writes its log and looks for relative paths.
        runtime: for its sockets; short, as the path of a socket may have 107 bytes.
        ini: the text of its file.
        app: the stem of the file's name.
        env: what its environment has beside that of this process.
        inside: a command that becomes the one after it, without a new process (nsenter(1)).
        listen: names and sockets that it gets as systemd hands them over.
    """

    def __init__(
        self,
        directory: Path,
        runtime: Path,
        ini: str,
        app: str = "app",
        env: Mapping[str, str] | None = None,
        inside: Sequence[str] = (),
        listen: Sequence[tuple[str, socket.socket]] = (),
    ) -> None:
        self.directory = directory
        self.runtime = runtime / app
        self.app = app
        self.file = directory / f"{app}.ini"
        self.file.write_text(ini)
        self.log_file = directory / f"{app}.log"
        binaries = [str(HERE / "bin"), str(PROGRAMS), os.environ["PATH"]]
        self.env = {
            **os.environ,
            "PATH": ":".join(binaries),
            "SYSUP_RUNTIME_DIR": str(runtime),
            **(env or {}),
        }
        self._zmq = zmq.Context()
        self._sockets: list[zmq.Socket[bytes]] = []
        self._requests = self._connect(zmq.DEALER, protocol.CONTROL_SOCKET)
        if listen:
            pairs = [f"{name}={sock.fileno()}" for name, sock in listen]
            inside = [*inside, sys.executable, str(HERE / "activate.py"), *pairs, "--"]
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(
                [*inside, str(PROGRAMS / "sysupd"), str(self.file)],
                cwd=directory,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[sock.fileno() for _, sock in listen],
            )

    def __enter__(self) -> Daemon:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the daemon if it still runs; by SIGKILL, and an AssertionError, if it will not."""
        try:
            if self.process.poll() is None:
                self.stop()
        finally:
            for socket in self._sockets:
                socket.close()
            self._zmq.term()
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()

    @property
    def pid(self) -> int:
        """Of the daemon."""
        return self.process.pid

    def log(self) -> str:
        """What the daemon wrote to its standard output and error so far."""
        return self.log_file.read_text(errors="replace")

    def says(self, text: str, times: int = 1) -> None:
        """Wait until its log has a text so often: what it writes passes through its pump."""
        until(lambda: self.log().count(text) >= times, f"it says {text!r}")

    def ctl(self, *args: str, timeout: float = PATIENCE) -> subprocess.CompletedProcess[str]:
        """Run `sysupctl -a APP ARGS`, whatever its exit status."""
        return subprocess.run(
            [str(PROGRAMS / "sysupctl"), "-a", self.app, f"--timeout={timeout:g}", *args],
            env=self.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    def call(self, command: str, timeout: float = PATIENCE, **properties: Any) -> dict[str, Any]:
        """Send a request and return the reply, be it an error.

        Before the daemon listens the request waits for it, so this is also how to wait for
        a daemon. Raises AssertionError, with its log, when the daemon ends or does not answer.
        """
        number = time.monotonic_ns()
        self._requests.send(protocol.encode_request(protocol.Request(command, properties, number)))
        pidfd = os.pidfd_open(self.pid)
        try:
            poller = zmq.Poller()
            poller.register(self._requests, zmq.POLLIN)
            poller.register(pidfd, zmq.POLLIN)
            deadline = time.monotonic() + timeout
            while ready := dict(poller.poll(max(0, int((deadline - time.monotonic()) * 1000)))):
                if self._requests not in ready:
                    raise AssertionError(f"sysupd ended instead of answering\n{self.log()}")
                reply: dict[str, Any] = json.loads(self._requests.recv())
                if reply["id"] == number:
                    return reply
        finally:
            os.close(pidfd)
        raise AssertionError(f"no answer to {command} within {timeout:g} s\n{self.log()}")

    def events(self) -> Events:
        """Subscribe to all events: those after this call returns are all seen.

        ZeroMQ does not say when a subscription has reached the publisher, so a watcher is made
        to publish `updated`, by setting an option to what it is, until that is received. (An app
        without watchers cannot be asked; it has nothing to publish either.)
        """
        socket = self._connect(zmq.SUB, protocol.EVENTS_SOCKET)
        socket.subscribe(b"")
        events = Events(socket)
        watchers = self.call("list")["watchers"]
        if watchers:
            change: dict[str, Any] = {"name": watchers[0], "waiting": True}
            change["options"] = self.call("get", name=watchers[0], keys=["warmup_delay"])["options"]
            before = self.call("set", **change)["time"]
            while not socket.poll(20):
                before = self.call("set", **change)["time"]
            self.call("set", **change)
            events.wait_for(lambda event: event.name == "updated" and event.fields["time"] > before)
        return events

    def status(self, name: str) -> str:
        """The state of a watcher."""
        return str(self.call("status", name=name)["status"])

    def pids(self, name: str) -> list[int]:
        """The processes of a watcher, which execute their programs."""
        found = list(self.call("list", name=name)["pids"])
        until(lambda: all(map(is_itself, found)), f"{found} are over their births")
        return found

    def upgrade(self) -> None:
        """Have a new program take over."""
        before = self.log().count(TAKEN_OVER)
        reply = self.call("upgrade", waiting=True)
        assert reply["status"] == "ok", reply
        self.wait_for_program(before + 1)

    def wait_for_program(self, number: int) -> None:
        """Until so many new programs have taken over.

        Requests go over a new connection then: the end of the old one may be noticed late, and
        what is sent over it until then is lost.
        """
        until(lambda: self.log().count(TAKEN_OVER) >= number, "the new one runs")
        self._requests = self._connect(zmq.DEALER, protocol.CONTROL_SOCKET)

    def stop(self, signum: int = signal.SIGTERM, timeout: float = PATIENCE) -> int:
        """Send a signal that ends the daemon; returns its exit status.

        Raises AssertionError, with its log, when it has not ended within `timeout` seconds.
        """
        self.process.send_signal(signum)
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"sysupd does not end\n{self.log()}") from None

    def _connect(self, kind: int, name: str) -> zmq.Socket[bytes]:
        made: zmq.Socket[bytes] = self._zmq.socket(kind)
        made.linger = 0
        made.rcvhwm = 0
        made.reconnect_ivl = 5
        made.connect(f"ipc://{self.runtime / name}")
        self._sockets.append(made)
        return made
