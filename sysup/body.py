"""What a process is made of, and how it is made.

A `Body` is a process with its pipes; a `Mould` makes them for one watcher. How they are cleared
away is in remains.py.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import signal
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from sysup import config
from sysup.config import StreamSpec, WatcherSpec
from sysup.estate import Estate
from sysup.process import (
    MARKER,
    OS,
    Cgroup,
    Cgroups,
    Launch,
    Process,
    identity,
    open_terminal,
    own_directory,
)
from sysup.protocol import SysupError
from sysup.stdin import Input
from sysup.streams import Direct, Losses, Pump, Sink, Source, Stream, StreamName, open_sink
from sysup.taps import Taps

log = logging.getLogger("sysup.body")

TAIL = 4096
"""Bytes of the newest output that are remembered of each stream, at most."""
OUTPUT_LINES = 10
FIRST_FD = 3
"""The first descriptor of those that are listened on, sd_listen_fds(3)."""
FD = {"stdout": 1, "stderr": 2}

OnLoss = Callable[[Mapping[str, int | str]], None]
"""Told what of the output of a stream was left out: `stream`, `dropped_lines`, `dropped_bytes`,
`suppressed_lines`, `suppressed_bytes`, and `wid` where it is of one process."""


class Death(NamedTuple):
    """How a process ended: its status, what that means, and when (of the loop's clock)."""

    exit_code: int | None
    reason: str
    time: float


@dataclass
class Body:
    """A process, its pipes, and the marker that its children carry in their environment.

    `stdin` is there if texts can be sent to it.
    """

    serial: int
    process: Process
    marker: str
    streams: list[Stream]
    wid: int = 0
    stdin: Input | None = None
    cgroup: Cgroup | None = None
    dead: bool = False
    tree_empty: bool = False
    abandoned: bool = False
    """Whether nobody waits for its pipes and its tree any more."""
    failure: str = ""
    """Why it could not execute its program."""
    is_limited: bool = False
    """Whether its limits were changed before it did, so that they have to be once more."""
    on_output: list[Callable[[str], None]] = field(default_factory=list)
    on_released: Callable[[int], None] | None = None
    on_buried: Callable[[], None] = lambda: None
    output: str = ""
    """The newest lines that it wrote, once they were told."""
    death: Death | None = None

    @property
    def read_out(self) -> bool:
        """Whether every pipe was read to its end."""
        return all(stream.ended for stream in self.streams)

    def tell_output(self) -> None:
        """Give the newest lines that it wrote to those who wait for them, once."""
        if not self.on_output:
            return
        tails = [stream.tail().decode("utf-8", "replace").splitlines() for stream in self.streams]
        share = OUTPUT_LINES // max(1, sum(1 for tail in tails if tail))
        output = "\n".join(line for tail in tails for line in tail[-share:])
        self.output = output
        waiting, self.on_output = self.on_output, []
        for tell in waiting:
            tell(output)


class Inherited(NamedTuple):
    """A process of another daemon: what is recorded of it, and its descriptors, ours to close."""

    serial: int
    record: Mapping[str, Any]
    pidfd: int
    pipes: dict[str, int]

    def give_up(self, system: OS) -> None:
        """Kill it, as nobody can go on with it, and close what is of it."""
        try:
            system.signal(Process(self.record["pid"], self.pidfd), signal.SIGKILL)
        except SysupError as error:
            log.error("%s", error)
        for fd in (self.pidfd, *self.pipes.values()):
            os.close(fd)


@dataclass
class Setting:
    """What all moulds share: the loop, the system, the pump, what the daemon hands to children."""

    loop: asyncio.AbstractEventLoop
    os: OS
    pump: Pump
    app: str = ""
    taps: Taps = field(default_factory=Taps)
    circus: bool = False
    to_journal: bool = False
    """Whether output that the config says nothing of goes to the journal."""
    import_path: tuple[str, ...] = ()
    """Where classes of one's own are looked for, beside the places of other modules."""
    estate: Estate | None = None
    """What the next daemon gets; None: it gets nothing."""
    serials: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    """Numbers of bodies, none twice, also over the end of a daemon."""
    cgroups: Cgroups | None = None
    sockets: Mapping[str, int] = field(default_factory=dict)
    socket_problems: Mapping[str, str] = field(default_factory=dict)
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    directory: str = field(default_factory=lambda: own_directory(os.environ))
    null: int = field(default_factory=lambda: os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))


class Mould:
    """Makes the bodies of one watcher by one set of options.

    What is the same for every process (identity, environment, limits, sinks) is worked out
    once, here, and anew by the next mould. Raises SysupError for what can't be had: an
    unknown user, a stream class that can't be loaded.

    Args:
        on_read_out: told of a body when one of its pipes was read to the end.
        on_sink: told why output can't be written, and None when it can again.
        on_loss: told how many lines of a stream ("stdout", "stderr") were left out.
        on_rotated: told the path of a file that was rotated.
    """

    _nonce = os.urandom(8).hex()

    def __init__(
        self,
        setting: Setting,
        spec: WatcherSpec,
        on_read_out: Callable[[Body], None],
        on_sink: Callable[[str | None], None],
        on_loss: Callable[[StreamName, Losses], None],
        on_rotated: Callable[[str], None],
    ) -> None:
        self._setting = setting
        self._spec = spec
        self._on_read_out = on_read_out
        self._on_sink = on_sink
        self._on_loss = on_loss
        self._on_rotated = on_rotated
        self._sinks: dict[StreamName, Sink | Direct] = {}
        self._who = identity(spec.uid, spec.gid, spec.groups)
        self._seats = seats(spec, setting.sockets)
        self._launcher = setting.os.launcher(self._launch())
        try:
            self._open_sinks()
        except SysupError:
            self.close()
            raise

    @property
    def problem(self) -> str:
        """Why output can't be written at present; empty if it can."""
        return "; ".join(sink.failure for sink in self._sinks.values() if sink.failure)

    @property
    def sinks(self) -> Mapping[StreamName, Sink | Direct]:
        """Where each stream goes."""
        return self._sinks

    def close(self) -> None:
        """Let go of the sinks; what is still being read into them is read to its end."""
        for sink in self._sinks.values():
            sink.close()
        self._sinks.clear()

    def make(self, wid: int, generation: int = 1) -> Body:
        """Start a process with its pipes; raises SysupError with the reason when it can't be."""
        serial = next(self._setting.serials)
        marker = f"{self._nonce}.{serial}"
        ours: dict[str, int] = {}
        theirs: dict[int, int] = {}
        group = self._group(wid, serial)
        try:
            self._connect(ours, theirs)
            process = self._spawn(wid, marker, theirs, group)
            buried = partial(self._forget, serial)
            body = Body(serial, process, marker, [], wid, cgroup=group, on_buried=buried)
            self._park(body, ours)
            self._attach(body, ours)
            self._record(body, generation)
        except (OSError, SysupError) as error:
            self._forget(serial)
            if group:
                group.remove()
            if isinstance(error, SysupError):
                raise
            raise SysupError(f"cannot make its pipes: {error.strerror}") from None
        finally:
            for fd in {*ours.values(), *theirs.values()}:
                os.close(fd)
        return body

    def adopt(self, inherited: Inherited) -> Body:
        """Take a process over that another daemon made.

        Raises SysupError when its pipes can't be; then it was killed.
        """
        record, pipes = inherited.record, inherited.pipes
        group, cgroups = record["cgroup"], self._setting.cgroups
        body = Body(
            inherited.serial,
            Process(record["pid"], inherited.pidfd),
            record["marker"],
            [],
            record["wid"],
            cgroup=cgroups.at(group) if cgroups and group else None,
            on_buried=partial(self._forget, inherited.serial),
        )
        try:
            self._attach(body, pipes, record["streams"])
        except OSError as error:
            raise SysupError(f"cannot take its pipes over: {error.strerror}") from None
        finally:
            for fd in pipes.values():  # those that nobody took
                os.close(fd)
        return body

    def _park(self, body: Body, ours: Mapping[str, int]) -> None:
        """Keep the descriptors for the next daemon."""
        estate = self._setting.estate
        if estate:
            outputs = [name for name in ours if name != "stdin"]
            fds = [body.process.pidfd, *(ours[name] for name in outputs)]
            estate.park(["body", body.serial, *outputs], fds)
            if "stdin" in ours:
                estate.park(["stdin", body.serial], [ours["stdin"]])

    def _record(self, body: Body, generation: int) -> None:
        """Have the next daemon know it."""
        estate = self._setting.estate
        if estate is None:
            return
        estate.ledger.put(
            ("body", body.serial),
            {
                "watcher": self._spec.name,
                "wid": body.wid,
                "generation": generation,
                "pid": body.process.pid,
                "start": self._setting.os.start_time(body.process.pid),
                "marker": body.marker,
                "streams": {stream.name: stream.id for stream in body.streams},
                "cgroup": body.cgroup.path if body.cgroup else None,
            },
        )

    def _forget(self, serial: int) -> None:
        """The next daemon need not know it any more."""
        if estate := self._setting.estate:
            estate.ledger.drop(("body", serial))
            estate.unpark("body", serial)
            estate.unpark("stdin", serial)

    def _group(self, wid: int, serial: int) -> Cgroup | None:
        """A cgroup to be born in, where cgroups are ours to make."""
        if self._setting.cgroups is None:
            return None
        try:
            return self._setting.cgroups.make(self._spec.name, wid, serial)
        except OSError as error:
            raise SysupError(f"cannot make its cgroup: {error.strerror}") from None

    def _spawn(
        self, wid: int, marker: str, fds: Mapping[int, int], group: Cgroup | None
    ) -> Process:
        place = -1 if group is None else group.open()
        try:
            return self._launcher.spawn(
                argv=config.command(self._spec, wid, self._seats, self._setting.directory),
                env={MARKER: marker},
                fds=fds,
                cgroup_fd=place,
            )
        finally:
            if place >= 0:
                os.close(place)

    def _connect(self, ours: dict[str, int], theirs: dict[int, int]) -> None:
        """Make pipes, and a terminal: our ends by name, its ends by its descriptors."""
        spec = self._spec
        if spec.pty:
            try:
                ours["stdout"], theirs[1] = open_terminal(self._who.uid)
            except OSError as error:
                raise SysupError(f"cannot open a terminal: {error.strerror}") from None
            if spec.one_terminal:
                theirs[2] = theirs[1]
        for name, sink in self._sinks.items():
            if isinstance(sink, Direct):
                theirs[FD[name]] = sink.connect()
            elif name not in ours:
                ours[name], theirs[FD[name]] = self._pipe()
        if spec.stdin == "pipe" and spec.pty:
            ours["stdin"], theirs[0] = os.dup(ours["stdout"]), theirs[1]
        elif spec.stdin == "pipe":
            theirs[0], ours["stdin"] = self._pipe()

    def _pipe(self) -> tuple[int, int]:
        """Its two ends; of the process's user, so that it can open /dev/stdout again."""
        reading, writing = os.pipe2(os.O_CLOEXEC)
        if self._who.uid is not None:
            with suppress(OSError):  # it need not be allowed, and writes all the same
                os.fchown(reading, self._who.uid, -1)
        return reading, writing

    def _attach(
        self, body: Body, ours: dict[str, int], ids: Mapping[str, int] | None = None
    ) -> None:
        """Hand our ends to who reads and writes them. Where that can't be, there is to be no
        process: it becomes a stranger, which the daemon reaps. Raises OSError."""
        process, setting = body.process, self._setting
        try:
            for name, sink in self._sinks.items():
                if isinstance(sink, Direct) or name not in ours:
                    continue
                stream = setting.pump.add(
                    ours[name],
                    process.pid,
                    sink,
                    wid=body.wid,
                    name=name,
                    tail=TAIL,
                    on_eof=partial(self._on_eof, body, name),
                    id=(ids or {}).get(name),
                )
                del ours[name]
                body.streams.append(stream)
                self._setting.taps.enter(stream, self._spec.name, body.wid)
            if "stdin" in ours:
                slot = f"{self._spec.name}.{body.wid}"
                body.stdin = Input(
                    setting.loop,
                    ours["stdin"],
                    slot,
                    terminal=self._spec.pty,
                    on_close=partial(self._input_closed, body),
                )
                del ours["stdin"]
        except OSError:
            setting.os.give_up(process)
            raise

    def _input_closed(self, body: Body) -> None:
        """The process is to see the end of its input: nobody else may hold it open."""
        if self._setting.estate:
            self._setting.estate.unpark("stdin", body.serial, soon=body.process.pidfd >= 0)

    def _on_eof(self, body: Body, name: StreamName, stream: Stream) -> None:
        """A pipe was read to its end; the end of a terminal's output is that of its input."""
        if body.stdin and self._spec.pty and name == "stdout":
            body.stdin.close()
        self._setting.taps.leave(stream)
        self._on_read_out(body)

    def _launch(self) -> Launch:
        """All that does not differ from process to process."""
        spec, setting, who = self._spec, self._setting, self._who
        env = config.environment(
            spec,
            circus=setting.circus,
            environ=setting.environ,
            identity=config.Identity(who.name, who.home, who.shell),
            extra=listen_variables(spec.listen_fds),
            sys_path=[*sys.path, *setting.import_path],
        )
        return Launch(
            argv=[],
            file=spec.executable,
            env=env,
            search=config.search_path(env, setting.environ),
            cwd=spec.working_dir,
            fds=self._descriptors(),
            uid=who.uid,
            gid=who.gid,
            groups=who.groups,
            rlimits=tuple((r.name, r.soft, r.hard) for r in spec.rlimits),
            umask=spec.umask,
            nice=spec.nice,
            oom_score_adj=spec.oom_score_adj,
            cpus=spec.cpu_affinity,
            no_new_privs=spec.no_new_privileges,
            capabilities=spec.capabilities,
            listen_pid=bool(spec.listen_fds),
        )

    def _descriptors(self) -> dict[int, int]:
        """What a child has open, but for its pipes: descriptor there, descriptor here."""
        spec, setting = self._spec, self._setting
        for name in used_sockets(spec, {*setting.sockets, *setting.socket_problems}):
            if name in setting.socket_problems:
                raise SysupError(setting.socket_problems[name])
        for name in sorted(config.named_sockets(spec) - setting.sockets.keys()):
            if not setting.circus or name == spec.stdin_socket:  # Circus leaves the text
                raise SysupError(f"there is no socket '{name[:100]}'")
        fds = {seat: setting.sockets[name] for name, seat in self._seats.items()}
        for seat, name in enumerate(spec.listen_fds, FIRST_FD):
            fds[seat] = setting.sockets[name.lower()]
        closed = {0: spec.close_child_stdin, 1: spec.close_child_stdout, 2: spec.close_child_stderr}
        fds |= {fd: setting.null if shut else fd for fd, shut in closed.items()}
        if spec.stdin == "null":
            fds[0] = setting.null
        if spec.stdin_socket:
            fds[0] = setting.sockets[spec.stdin_socket]
        return fds

    def _open_sinks(self) -> None:
        spec, setting = self._spec, self._setting
        outputs: tuple[tuple[StreamName, StreamSpec | None, bool], ...] = (
            ("stdout", spec.stdout_stream, spec.close_child_stdout),
            ("stderr", spec.stderr_stream, spec.close_child_stderr or spec.one_terminal),
        )
        own = (path for path in spec.env.get("PYTHONPATH", "").split(":") if path)
        places = (*setting.import_path, *own)
        for name, stream, closed in outputs:
            if not closed:
                source = Source(name, spec.name, setting.app, setting.to_journal, places)
                self._sinks[name] = open_sink(
                    setting.pump,
                    stream,
                    source,
                    lambda sink, reason: self._on_sink(reason),
                    partial(self._lost, name),
                    lambda sink: self._on_rotated(sink.name),
                )

    def _lost(self, name: StreamName, sink: Sink, losses: Losses) -> None:
        self._on_loss(name, losses)


def seats(spec: WatcherSpec, sockets: Mapping[str, int]) -> dict[str, int]:
    """The descriptor that each socket is in a child, by name: its own number, unless that is of
    those which `listen_fds` needs."""
    listened = [name.lower() for name in spec.listen_fds]
    found = {name: FIRST_FD + listened.index(name) for name in listened if name in sockets}
    taken = {*range(FIRST_FD + len(listened)), *sockets.values()}
    free = (fd for fd in itertools.count(FIRST_FD) if fd not in taken)
    for name in used_sockets(spec, sockets):
        if name not in found and name != spec.stdin_socket:
            own = sockets[name]
            found[name] = own if own >= FIRST_FD + len(listened) else next(free)
    return found


def listen_variables(names: Sequence[str]) -> dict[str, str]:
    """What tells a child of its sockets, but for its pid, which is not known before it is."""
    return {"LISTEN_FDS": str(len(names)), "LISTEN_FDNAMES": ":".join(names)} if names else {}


def used_sockets(spec: WatcherSpec, names: Collection[str]) -> list[str]:
    """Which of the sockets the watcher's processes are to have."""
    if spec.use_sockets:
        return list(names)
    args = spec.args if isinstance(spec.args, str) else " ".join(spec.args)
    text = f"{spec.cmd} {args} {spec.shell_args or ''}".lower()
    named = {spec.stdin_socket, *(name.lower() for name in spec.listen_fds)}
    return [n for n in names if f".sockets.{n})" in text or n in named]
