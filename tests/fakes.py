"""The system and the pump, as a whole: they do what a test tells them, and note what is asked."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from sysup.config import StreamSpec
from sysup.process import OS, Birth, Launch, Launcher, Process, SpawnError
from sysup.protocol import SysupError
from sysup.streams import OnEof, OnLoss, OnRotated, OnState, Pump, Sink, Source, Stream

T = TypeVar("T")

DEADLY = {signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGKILL}


def whole(work: Generator[None, None, T]) -> T:
    """Do at once what is made in steps."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            result: T = end.value
            return result


class Clock(Protocol):
    """The part of the loop that the system needs."""

    now: float

    def call_soon(self, callback: Callable[..., object], *args: Any) -> Any: ...


class FakeStream(Stream):
    """A pipe that ends when it is told, or closed; `text` is all that was written to it."""

    def __init__(self, pid: int, name: str, on_eof: OnEof | None) -> None:
        self.pid, self.ended, self.text, self.closed, self.on_eof = pid, False, b"", False, on_eof
        self.name, self.is_tapped, self.tapped = name, False, 0

    @property
    def bytes_read(self) -> int:
        return len(self.text)

    def tail(self) -> bytes:
        return self.text

    def tail_at(self) -> tuple[bytes, int]:
        return self.text, len(self.text)

    def tap(self, on: bool) -> None:
        self.is_tapped = on

    def end(self) -> None:
        self.ended = True
        if self.on_eof:
            self.on_eof(self)

    def close(self) -> None:
        self.closed = True


class FakeSink(Sink):
    """Notes what became of it; fails as it is told."""

    def __init__(self, name: str, on_state: OnState | None) -> None:
        self.name, self.reason, self.closed, self.tell = name, "", False, on_state
        self.rotates, self.reopens = False, True
        self.done: list[str] = []

    @property
    def failure(self) -> str | None:
        return self.reason or None

    @property
    def can_rotate(self) -> bool:
        return self.rotates

    def rotate(self) -> None:
        self.done.append("rotate")

    def reopen(self, on_done: Callable[[], object] = lambda: None) -> None:
        self.done.append("reopen")
        if self.reopens:
            on_done()

    def fail(self, reason: str) -> None:
        self.reason = reason
        if self.tell:
            self.tell(self, reason or None)

    def close(self) -> None:
        self.closed = True


class FakePump(Pump):
    """Reads nothing; `full` is raised by the next `add`."""

    def __init__(self) -> None:
        self.event = os.eventfd(0)
        self.streams: dict[int, list[FakeStream]] = {}
        self.sinks: list[FakeSink] = []
        self.full: OSError | None = None

    def fileno(self) -> int:
        return self.event

    def stop(self, timeout: float) -> int:
        return 0

    def open_sink(
        self,
        pump: Pump,
        spec: StreamSpec | None,
        source: Source,
        on_state: OnState | None = None,
        on_loss: OnLoss | None = None,
        on_rotated: OnRotated | None = None,
    ) -> FakeSink:
        if spec is not None and spec.cls == "no.Such":
            raise SysupError("cannot load stream class no.Such")
        path = spec.options.get("filename") if spec else None
        self.sinks.append(FakeSink(str(path or source.stream), on_state))
        self.sinks[-1].rotates = path is not None
        return self.sinks[-1]

    def add(
        self,
        fd: int,
        pid: int,
        sink: Sink,
        *,
        wid: int = 0,
        name: str = "stdout",
        tail: int = 0,
        on_eof: OnEof | None = None,
        id: int | None = None,
    ) -> FakeStream:
        if self.full:
            error, self.full = self.full, None
            raise error
        os.close(fd)
        stream = FakeStream(pid, name, on_eof)
        stream.id = len(self.streams) if id is None else id
        self.streams.setdefault(pid, []).append(stream)
        return stream


def kind(ours: int, theirs: int) -> str:
    """What a descriptor is that a process gets: pipe, pts, null, or the daemon's own."""
    if ours == theirs:
        return "daemon's"
    link = f"/proc/self/fd/{ours}"
    path = os.readlink(link) if os.path.lexists(link) else "made up"
    return "pts" if path.startswith("/dev/pts/") else path.removeprefix("/dev/").split(":")[0]


class FakeBirth(Birth):
    """A process on the way to its program."""

    def __init__(self) -> None:
        self.sign = os.eventfd(0)
        self.is_over = False
        self.overdue = False
        self.signals = []
        self.reason = ""

    def end(self) -> None:
        os.close(self.sign)
        if self.overdue or self.reason:
            raise SpawnError(self.reason or "no answer", "exec", 2)


class FakeLauncher(Launcher):
    """Spawns what the system says."""

    def __init__(self, system: System, launch: Launch) -> None:
        self.system, self.launch = system, launch

    def spawn(
        self,
        *,
        argv: Sequence[str] | None = None,
        env: Mapping[str, str] | None = None,
        fds: Mapping[int, int] | None = None,
        cgroup_fd: int = -1,
    ) -> Process:
        process = self.system.spawn(list(argv or ()), dict(env or {}), self.launch)
        pairs = {**self.launch.fds, **(fds or {})}
        if 0 in (fds or {}):
            self.system.inputs[process.pid] = os.dup(pairs[0])
        self.system.kinds[process.pid] = [kind(pairs[fd], fd) for fd in range(3)]
        return process


class System(OS):
    """Processes that are only numbers. Their pidfds are eventfds, readable from the death on."""

    def __init__(self, loop: Clock, pump: FakePump) -> None:
        self.loop, self.pump = loop, pump
        self.living: dict[int, Process] = {}
        self.born: dict[int, tuple[list[str], dict[str, str], Launch]] = {}
        self.kinds: dict[int, list[str]] = {}
        """What each had for its standard descriptors."""
        self.inputs: dict[int, int] = {}
        """Their ends of what is sent to them, which stay open."""
        self.sent: list[tuple[str, int, int]] = []
        """(what was signalled, its pid, the signal)."""
        self.limits: list[tuple[int, str, int | None, int | None]] = []
        self.looks: list[set[int]] = []
        """Of each look through /proc, the dead processes that it was for."""
        self.fails: dict[str, str] = {}
        """Programs that can't be executed, and why."""
        self.dies: dict[str, int] = {}
        """Programs that end at once, and how."""
        self.slow: set[str] = set()
        """Programs that are executed only when the test says so."""
        self.deaf: set[int] = set()
        """Signals of which nothing dies."""
        self.forbidden: set[int] = set()
        """Pids that may not be touched."""
        self.left: dict[int, list[set[int]]] = {}
        self.fleeing: list[set[int]] = []
        """What each look finds of a dead process."""
        self.cost = 0.0
        """Seconds that a spawn, or a look through /proc, takes."""
        self._statuses: dict[int, int | None] = {}

    def launcher(self, launch: Launch) -> FakeLauncher:
        return FakeLauncher(self, launch)

    def spawn(self, argv: list[str], env: dict[str, str], launch: Launch) -> Process:
        self.loop.now += self.cost
        if argv[0] in self.fails:
            raise SysupError(self.fails[argv[0]])
        process = Process(101 + len(self.born), os.eventfd(0))
        self.born[process.pid] = argv, env, launch
        self.living[process.pid] = process
        if argv[0] in self.slow:
            process.birth = FakeBirth()
        if argv[0] in self.dies:
            self.loop.call_soon(self.die, process.pid, self.dies[argv[0]])
        return process

    def execute(self, pid: int) -> None:
        """Have a slow one execute its program."""
        birth = self.living[pid].birth
        assert birth
        os.eventfd_write(birth.sign, 1)

    def fail(self, pid: int, reason: str) -> None:
        """Have a slow one find that it can't."""
        birth = self.living[pid].birth
        assert isinstance(birth, FakeBirth)
        birth.reason = reason
        self.die(pid, 127)

    def die(
        self, pid: int, status: int | None = 1, output: bytes = b"", *, pipes: bool = True
    ) -> None:
        """End a process, and (`pipes`) its pipes as well."""
        self._statuses[pid] = status
        if birth := self.living[pid].birth:
            os.eventfd_write(birth.sign, 1)
        os.eventfd_write(self.living.pop(pid).pidfd, 1)
        streams = self.pump.streams.get(pid, [])
        for stream in streams:
            stream.text = output if stream is streams[0] else b""
            if pipes:
                stream.end()

    def _take(self, what: str, pid: int, signum: int) -> bool:
        if pid in self.forbidden:
            raise SysupError(f"cannot signal {what} {pid}: not permitted")
        self.sent.append((what, pid, signum))
        return pid in self.living

    def wait(self, process: Process) -> int | None:
        return self._statuses[process.pid]

    def close(self, process: Process) -> None:
        os.close(process.pidfd)
        process.pidfd = -1

    def signal(self, process: Process, signum: int) -> bool:
        if process.birth and signum != signal.SIGKILL:
            process.birth.signals.append(signum)
            return True
        return self._hit("process", process.pid, signum)

    def _hit(self, what: str, pid: int, signum: int) -> bool:
        lives = self._take(what, pid, signum)
        if lives and signum in DEADLY and signum not in self.deaf:
            self.die(pid, -signum)
        return lives

    def set_limit(self, process: Process, name: str, soft: int | None, hard: int | None) -> bool:
        if process.pid in self.forbidden:
            raise SysupError(f"cannot set rlimit_{name} of process {process.pid}")
        self.limits.append((process.pid, name, soft, hard))
        return True

    def signal_group(self, pid: int, signum: int) -> bool:
        return self._hit("group", pid, signum)

    def kill_group(self, pid: int) -> bool:
        return self._hit("group", pid, signal.SIGKILL)

    def kill(self, pid: int) -> bool:
        return self._take("stray", pid, signal.SIGKILL)

    def signal_child(self, process: Process, child_pid: int, signum: int) -> bool:
        return self._take("child", child_pid, signum)

    def signal_children(self, process: Process, signum: int, *, recursive: bool) -> int:
        self._take("descendants" if recursive else "children", process.pid, signum)
        return 1

    def leftovers(self, dead: Mapping[int, str], mains: Collection[int]) -> dict[int, set[int]]:
        self.loop.now += self.cost
        self.looks.append(set(dead))
        return {pid: (self.left.get(pid) or [set()]).pop(0) for pid in dead}

    def chase(self, dead: Mapping[int, str], mains: Collection[int]) -> set[int]:
        return dead.keys() & (self.fleeing.pop(0) if self.fleeing else set())

    def reap_strangers(self, mains: Collection[int]) -> int:
        return 0

    def kill_strangers(self) -> int:
        return 0
