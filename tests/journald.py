"""A real systemd-journald that needs no booted systemd, and dies with its test.

A keeper does for journald what PID 1 does: in a mount namespace with /run and /var/log of its
own it binds the sockets, holds them over journald's starts and ends, so that datagrams wait in
them meanwhile, and keeps the connections of journald's streams in a store of descriptors. Its
network namespace only sets how many datagrams wait (net.unix.max_dgram_qlen, 512 under
systemd); programs in the mount namespace keep the network that they had.

Where the keeper's standard input ends, it kills all that is in the namespace and ends; so
nothing is left when the tests are killed. The mounts go with the last process.

    with Journald() as journald:
        journald.run(["systemd-cat", "echo", "hello"])
        journald.sync()
        assert journald.messages() == [b"hello"]
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import fcntl
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, NoReturn

ROOT = Path(__file__).parents[1]
PROGRAM = Path("/lib/systemd/systemd-journald")
DIRECTORY = Path("/run/systemd/journal")
"""Of the sockets, inside the namespace."""
RECEIVE_BUFFER = 8 << 20
"""Of the sockets, as in systemd-journald.socket."""
PATIENCE = 120.0
FIRST_LISTEN_FD = 3
PR_SET_PDEATHSIG = 1
SO_TIMESTAMP, SO_RCVBUFFORCE, SO_PASSSEC = 29, 33, 34
ENTER = """exec nsenter --mount="$0" sh -c 'cd "$0" && exec "$@"' "$(pwd -P)" "$@\""""
"""Arguments of sh(1), before the namespace and a command."""

SETTINGS = {
    "RateLimitIntervalSec": "0",
    "RateLimitBurst": "0",
    "RuntimeMaxUse": "4G",
    "RuntimeKeepFree": "1M",
    "SystemMaxUse": "4G",
    "SystemKeepFree": "1M",
    "ForwardToSyslog": "no",
    "ForwardToKMsg": "no",
    "ForwardToConsole": "no",
    "ForwardToWall": "no",
    "ReadKMsg": "no",
    "Audit": "no",
}


class Unavailable(Exception):
    """This machine cannot run a journald; says why."""


class Journald:
    """A journald in a namespace of its own; a context.

    Args:
        storage: as in journald.conf(5).
        queue: datagrams that wait in a socket, of which systemd makes 512.
        settings: more of journald.conf(5), or other values for SETTINGS.

    Attributes:
        root: what is `/` inside, seen from outside.
        directory: where the sockets are, for programs outside.
        inside: before a command and its arguments, has it run inside, with the same pid and in
            the same working directory.
        pid: of journald; 0 while there is none.

    Raises Unavailable.
    """

    def __init__(
        self,
        storage: Literal["volatile", "persistent", "none"] = "volatile",
        queue: int = 512,
        **settings: str,
    ) -> None:
        for program in (str(PROGRAM), "journalctl", "unshare", "nsenter"):
            if not shutil.which(program):
                raise Unavailable(f"cannot run a journald: there is no {program}")
        if os.geteuid() != 0:
            raise Unavailable("cannot run a journald: only root can make its namespace")
        lines = {**SETTINGS, "Storage": storage, **settings}.items()
        keeper = [sys.executable, "-m", "tests.journald", str(queue), *map("=".join, lines)]
        self._keeper: subprocess.Popen[str] = subprocess.Popen(
            ["unshare", "--mount", "--net", "--propagation", "private", *keeper],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        self.root = Path(f"/proc/{self._keeper.pid}/root")
        self.directory = self.root / DIRECTORY.relative_to("/")
        self.inside = ["sh", "-c", ENTER, f"/proc/{self._keeper.pid}/ns/mnt"]
        self.pid = 0
        self._ask("hello")

    def __enter__(self) -> Journald:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End it and all that runs inside."""
        self._keeper.communicate(timeout=PATIENCE)

    def start(self) -> None:
        """Start journald; it is ready when this returns."""
        self.pid = self._ask("start")

    def stop(self) -> None:
        """Have it end as `systemctl stop` does; clients may go on sending."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Have it end at once."""
        self._end(signal.SIGKILL)

    def _end(self, signum: int) -> None:
        self._ask(f"end {signum}")
        self.pid = 0

    def freeze(self) -> None:
        """Let it do nothing until `thaw`."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """The end of `freeze`."""
        os.kill(self.pid, signal.SIGCONT)

    def _ask(self, request: str) -> int:
        """Have the keeper do something; its answer. Raises Unavailable when it can't."""
        assert self._keeper.stdin is not None
        assert self._keeper.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._keeper.stdin.write(f"{request}\n")
        answer = self._keeper.stdout.readline()
        if not answer:
            _, errors = self._keeper.communicate(timeout=PATIENCE)
            raise Unavailable(f"cannot run a journald: {errors.strip()}")
        return int(answer)

    def run(
        self, command: Sequence[str | os.PathLike[str]], **arguments: Any
    ) -> subprocess.CompletedProcess[Any]:
        """subprocess.run inside; the command must succeed."""
        return subprocess.run([*self.inside, *command], check=True, **arguments)

    def popen(
        self, command: Sequence[str | os.PathLike[str]], **arguments: Any
    ) -> subprocess.Popen[Any]:
        """subprocess.Popen inside."""
        return subprocess.Popen([*self.inside, *command], **arguments)

    def sync(self) -> None:
        """Wait until all that was sent before is stored."""
        self.run(["journalctl", "--sync"], timeout=PATIENCE)

    def entries(self, *matches: str, fields: Sequence[str] = ()) -> Iterator[dict[str, bytes]]:
        """What is stored, in order, exact to the byte, but for journald's own words.

        Of a field that an entry has several times only the last is given.

        Args:
            matches: as those of journalctl(1): FIELD=VALUE.
            fields: only these, and those of the entry's address (__CURSOR).
        """
        command = ["journalctl", "--quiet", "--no-pager", "--all", "--output=export"]
        if fields:
            command.append(f"--output-fields=_TRANSPORT,{','.join(fields)}")
        reader = self.popen([*command, *matches], stdout=subprocess.PIPE)
        with reader:
            assert reader.stdout is not None
            for entry in parse_export(reader.stdout):
                if entry["_TRANSPORT"] != b"driver":
                    yield entry
        assert reader.returncode == 0

    def messages(self, *matches: str) -> list[bytes]:
        """The texts of what is stored, in order."""
        return [entry["MESSAGE"] for entry in self.entries(*matches, fields=("MESSAGE",))]


def parse_export(stream: IO[bytes]) -> Iterator[dict[str, bytes]]:
    """Entries in the journal's export format (systemd.io/JOURNAL_EXPORT_FORMATS)."""
    entry: dict[str, bytes] = {}
    for line in stream:
        name, equals, value = line[:-1].partition(b"=")
        if equals:
            entry[name.decode()] = value
        elif name:
            length = int.from_bytes(stream.read(8), "little")
            entry[name.decode()] = stream.read(length)
            stream.read(1)
        elif entry:
            yield entry
            entry = {}
    if entry:
        yield entry


# ---- the keeper --------------------------------------------------------------------------


class Keeper:
    """What PID 1 is to journald: its sockets, its store of descriptors, its end."""

    def __init__(self, queue: int, settings: Sequence[str]) -> None:
        for directory in ("/run", "/var/log"):
            mount_tmpfs(directory)
        file = Path("/run/systemd/journald.conf.d/test.conf")
        for parent in (file.parent, DIRECTORY, Path("/var/log/journal")):
            parent.mkdir(parents=True)
        file.write_text("\n".join(["[Journal]", *settings, ""]))
        (DIRECTORY / "flushed").touch()  # else all stays below /run until somebody asks
        Path("/proc/sys/net/unix/max_dgram_qlen").write_text(str(queue))
        self._listening = [
            bound(socket.SOCK_DGRAM, "socket"),
            bound(socket.SOCK_STREAM, "stdout"),
            bound(socket.SOCK_DGRAM, "dev-log"),
        ]
        self._notify = bound(socket.SOCK_DGRAM, "notify")
        self._store: set[int] = set()
        self._pid = 0

    def serve(self) -> None:
        """Do what is asked until nobody is there to ask."""
        poll = select.poll()
        poll.register(0, select.POLLIN)
        poll.register(self._notify, select.POLLIN)
        waiting = b""
        while True:
            for fd in self._store:
                poll.register(fd, 0)
            for fd, _ in poll.poll():
                if fd in self._store:  # its client hung up: PID 1 lets go of it as well
                    self._store.remove(fd)
                    poll.unregister(fd)
                    os.close(fd)
                elif fd == self._notify.fileno():
                    self._hear()
                elif data := os.read(0, 4096):
                    *requests, waiting = (waiting + data).split(b"\n")
                    for request in requests:
                        print(self._do(*request.decode().split()), flush=True)
                else:
                    return

    def _do(self, verb: str, *arguments: str) -> int:
        if verb == "start":
            self._start()
        elif verb == "end":
            os.kill(self._pid, int(arguments[0]))
            os.kill(self._pid, signal.SIGCONT)
            return os.waitpid(self._pid, 0)[1]
        return self._pid

    def _start(self) -> None:
        while select.select([self._notify], [], [], 0)[0]:
            self._hear()
        keeper = os.getpid()
        self._pid = os.fork()
        if not self._pid:
            self._become_journald(keeper)
        pidfd = os.pidfd_open(self._pid)
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        poll.register(self._notify, select.POLLIN)
        while self._notify.fileno() in dict(poll.poll()):
            if self._hear():
                os.close(pidfd)
                return
        sys.exit(f"journald ended: {os.waitpid(self._pid, 0)[1]:#x}")

    def _become_journald(self, keeper: int) -> NoReturn:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != keeper:
            os._exit(1)
        fds = [*(one.fileno() for one in self._listening), *self._store]
        above = FIRST_LISTEN_FD + len(fds)
        copies = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, above) for fd in fds]
        for number, fd in enumerate(copies, FIRST_LISTEN_FD):
            os.dup2(fd, number, inheritable=True)
        environment = {
            "PATH": os.environ["PATH"],
            "LISTEN_FDS": str(len(copies)),
            "LISTEN_PID": str(os.getpid()),
            "NOTIFY_SOCKET": str(DIRECTORY / "notify"),
        }
        os.execve(PROGRAM, [str(PROGRAM)], environment)

    def _hear(self) -> bool:
        """Take a message of journald to PID 1; whether it is that it is ready."""
        fds = array.array("i")
        room = socket.CMSG_SPACE(64 * fds.itemsize)
        text, ancillary, _, _ = self._notify.recvmsg(4096, room, socket.MSG_CMSG_CLOEXEC)
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds.frombytes(data)
        self._store.update(fds)
        return b"READY=1" in text.split(b"\n")


def bound(kind: socket.SocketKind, name: str) -> socket.socket:
    """A socket as systemd-journald.socket has it."""
    one = socket.socket(socket.AF_UNIX, kind)
    for option in (socket.SO_PASSCRED, SO_PASSSEC, SO_TIMESTAMP):
        one.setsockopt(socket.SOL_SOCKET, option, 1)
    one.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER)
    path = DIRECTORY / name
    one.bind(str(path))
    path.chmod(0o666)
    if kind == socket.SOCK_STREAM:
        one.listen(4096)
    return one


def mount_tmpfs(directory: str) -> None:
    """Hide a directory behind an empty one."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tmpfs", directory.encode(), b"tmpfs", 0, b"mode=755"):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), directory)


def others_here() -> Iterator[int]:
    """The other processes in this mount namespace."""
    here = os.readlink("/proc/self/ns/mnt")
    for entry in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            pid = int(entry) if entry.isdecimal() else os.getpid()
            if pid != os.getpid() and os.readlink(f"/proc/{pid}/ns/mnt") == here:
                yield pid


def end_others() -> None:
    """Kill them all, also those that are being made meanwhile."""
    while others := list(others_here()):
        for pid in others:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def main() -> None:
    """The keeper's life: a queue and settings as arguments, requests on standard input."""
    if os.getppid() in others_here():
        sys.exit("this hides /run, and ends by killing all: only in a namespace of its own")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        Keeper(int(sys.argv[1]), sys.argv[2:]).serve()
    except OSError as error:
        sys.exit(str(error))
    finally:
        end_others()


if __name__ == "__main__":
    main()
