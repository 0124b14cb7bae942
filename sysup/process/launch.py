"""A process from nothing: what it is to be, put into C's form, and why it could not be."""

from __future__ import annotations

import atexit
import errno
import os
import resource
import signal
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, TypeAlias

from sysup import config
from sysup._native import ffi, lib
from sysup.protocol import Errno, SysupError

CData: TypeAlias = Any
"""Memory that C can be given; freed with its last reference."""
Limits: TypeAlias = tuple[int | None, int | None]
"""Soft and hard; None is infinity."""

RLIMITS: Mapping[str, int] = {
    **{
        name.removeprefix("RLIMIT_").lower(): getattr(resource, name)
        for name in dir(resource)
        if name.startswith("RLIMIT_")
    },
    "locks": 10,  # not in the resource module; the number of every architecture
}
"""Numbers of the resources of getrlimit(2), by name in lower case without RLIMIT_."""

CAPABILITIES: Mapping[str, int] = {name: bit for bit, name in enumerate(config.CAPABILITIES)}
"""Numbers of capabilities(7)."""

KEEP = -(1 << 31)
"""In the C struct: leave it as the daemon has it."""
MAX_CPUS = 8192
"""As many as a kernel can be built for (CONFIG_NR_CPUS)."""
LISTEN_PID = b"LISTEN_PID="
LONGEST_SHOWN = 100
"""Characters of what can't be said to the system."""
PID_ROOM = 11
"""Bytes of a pid in decimal with its NUL."""


class SpawnError(SysupError):
    """A process could not be started.

    Args:
        message: what could not be done, with what, and why.
        step: the step that failed, as the C code names it: "exec", "cwd", "uid", ...
        code: the system's errno; ETIME: it did not answer.
    """

    errno = Errno.OS_ERROR

    def __init__(self, message: str, step: str, code: int) -> None:
        super().__init__(message)
        self.step = step
        self.code = code


class Launch(NamedTuple):
    """What a process is to be. None leaves a thing as the daemon has it.

    Attributes:
        argv: the arguments; argv[0] need not be the program.
        env: the whole environment.
        file: the program; None: argv[0], whichever `spawn` is given.
        search: directories to look for `file` in when it has no "/", ":" between them.
        cwd: its directory.
        fds: its descriptors, by number, and ours that each comes from; all others are closed.
        rlimits: (name, soft, hard), names as in RLIMITS.
        cpus: the CPUs it may run on.
        capabilities: all that it may have; names as in CAPABILITIES.
        listen_pid: whether to add LISTEN_PID, its own pid, to the environment.
    """

    argv: Sequence[str]
    env: Mapping[str, str] = MappingProxyType({})
    file: str | None = None
    search: str | None = None
    cwd: str | None = None
    fds: Mapping[int, int] = MappingProxyType({0: 0, 1: 1, 2: 2})
    rlimits: tuple[tuple[str, int | None, int | None], ...] = ()
    uid: int | None = None
    gid: int | None = None
    groups: tuple[int, ...] | None = None
    umask: int | None = None
    nice: int | None = None
    oom_score_adj: int | None = None
    cpus: Collection[int] | None = None
    no_new_privs: bool = False
    capabilities: Collection[str] | None = None
    listen_pid: bool = False
    new_session: bool = True


class Birth:
    """A process on the way to its program, which is yet to prepare itself.

    Args:
        launcher: whose process it is.
        child: the C code's part of it.
        sign: a descriptor, readable once the process has executed its program or ended without.
        is_over: whether that is readable already.
        pid: the process.
        file: the program.
        fds: its descriptors, as (there, here).
        kept: what the process reads in our memory until then.
    """

    _all: ClassVar[set[Birth]] = set()
    """All that are under way; what is in here is in use by a process."""

    def __init__(
        self,
        launcher: Launcher,
        child: CData,
        sign: int,
        is_over: bool,
        pid: int,
        file: str,
        fds: Sequence[tuple[int, int]],
        kept: tuple[Any, ...],
    ) -> None:
        self.sign = sign
        self.is_over = is_over
        self.overdue = False
        """Whether it is killed because it took too long."""
        self.signals: list[int] = []
        """What was sent to it meanwhile."""
        self._launcher = launcher
        self._child = child
        self._pid = pid
        self._file = file
        self._fds = fds
        self._kept = kept
        self._begun = time.monotonic()
        self._all.add(self)

    def end(self) -> None:
        """Be done, once: `sign` is readable, or the process has ended.

        Raises SpawnError when it could not execute its program; then it ends, and is to be
        reaped as any other. Raises BlockingIOError, with nothing done, when it is too early.
        """
        result = ffi.new("struct spawn_result *")
        rc = lib.spawn_end(self._child, result)
        if rc == -errno.EAGAIN:
            raise BlockingIOError(errno.EAGAIN, "it is on its way yet")
        self._all.discard(self)
        if rc == 0 and self.overdue:
            rc = -errno.ETIME
        if rc < 0:
            waited = time.monotonic() - self._begun
            raise self._launcher.explain(-rc, result, self._file, self._fds, waited)

    @classmethod
    def end_all(cls) -> None:
        """Kill all that are under way yet: the interpreter ends, and takes their memory with it."""
        for birth in list(cls._all):
            try:
                birth.end()
            except BlockingIOError:
                os.kill(birth._pid, signal.SIGKILL)  # not reaped, so nobody else has the pid
            except SpawnError:
                pass  # it has ended


atexit.register(Birth.end_all)


@dataclass(slots=True)
class Process:
    """A process that was started here, held by its pidfd until `OS.close`.

    `birth` is to be ended; None: it executes its program.
    """

    pid: int
    pidfd: int
    birth: Birth | None = None


class Launcher:
    """Starts any number of processes that are alike but for what `spawn` is given.

    What they share is put into C's form once. Not for two threads at a time.

    Args:
        launch: what they are to be.
        nofile: soft and hard limit of descriptors where `launch` has none; None: ours.

    Raises SysupError when `launch` holds what can't be said to the system: a NUL byte, an
    unknown limit or capability, a number out of range.
    """

    def __init__(self, launch: Launch, nofile: Limits | None = None) -> None:
        self._launch = launch
        self._rlimits = effective_limits(launch.rlimits, nofile)
        self._env = {name: _variable(name, value) for name, value in launch.env.items()}
        self._argv = [_string(argument, "an argument") for argument in launch.argv]
        self._result = ffi.new("struct spawn_result *")
        self._spec = ffi.new("struct spawn_spec *")
        self._kept: list[CData] = []
        try:
            self._fill()
        except OverflowError as error:
            raise SysupError(f"cannot prepare a process: {error}") from None

    def spawn(
        self,
        *,
        argv: Sequence[str] | None = None,
        env: Mapping[str, str] | None = None,
        fds: Mapping[int, int] | None = None,
        cgroup_fd: int = -1,
    ) -> Process:
        """Start one, which may be on the way to its program yet when this returns.

        Args:
            argv: instead of the launch's.
            env: variables beside the launch's, or instead of some.
            fds: descriptors beside the launch's, or instead of some.
            cgroup_fd: directory of the cgroup to be born into; -1: the daemon's.

        Raises SpawnError when there can be no process.
        """
        spec = self._spec
        arguments, file = self._argv, self._launch.file
        if argv is not None:
            arguments = [_string(argument, "an argument") for argument in argv]
        if file is None:
            if not arguments:
                raise SysupError("cannot execute: there is no program")
            file, spec.file = ffi.string(arguments[0]).decode(errors="replace"), arguments[0]
        pairs = {**self._launch.fds, **(fds or {})}
        variables = dict(self._env)
        for name, value in (env or {}).items():
            variables[name] = _variable(name, value)
        if self._launch.listen_pid:
            variables["LISTEN_PID"] = ffi.new("char[]", len(LISTEN_PID) + PID_ROOM)
            ffi.memmove(variables["LISTEN_PID"], LISTEN_PID, len(LISTEN_PID))
            spec.listen_pid = variables["LISTEN_PID"] + len(LISTEN_PID)
        c_argv = ffi.new("char *[]", [*arguments, ffi.NULL])
        c_envp = ffi.new("char *[]", [*variables.values(), ffi.NULL])
        c_fds = ffi.new("struct spawn_fd[]", [(ours, theirs) for theirs, ours in pairs.items()])
        spec.argv, spec.envp, spec.fds, spec.n_fds = c_argv, c_envp, c_fds, len(pairs)
        spec.cgroup_fd = cgroup_fd
        result, child = self._result, ffi.new("struct child **")
        rc = lib.spawn_begin(spec, result, child)
        if rc < 0:
            raise self.explain(-rc, result, file)
        kept = (arguments, variables, c_argv, c_envp, c_fds)
        there_here = tuple(pairs.items())
        birth = Birth(self, child[0], result.sign, result.left, result.pid, file, there_here, kept)
        return Process(result.pid, result.pidfd, birth)

    def _keep(self, cdata: CData) -> CData:
        """Memory that cffi gives is free again when Python forgets it."""
        self._kept.append(cdata)
        return cdata

    def _fill(self) -> None:
        launch, spec = self._launch, self._spec
        if launch.file is not None:
            spec.file = self._keep(_string(launch.file, "the program's name"))
        if launch.search is not None:
            spec.search = self._keep(_string(launch.search, "the search path"))
        if launch.cwd is not None:
            spec.cwd = self._keep(_string(launch.cwd, "the directory"))
        limits = [(RLIMITS[name], _limit(soft), _limit(hard)) for name, soft, hard in self._rlimits]
        spec.rlimits = self._keep(ffi.new("struct spawn_rlimit[]", limits))
        spec.n_rlimits = len(limits)
        spec.n_groups = -1
        if launch.groups is not None and set(launch.groups) != set(os.getgroups()):
            # What is so already needs no privilege: a daemon without it may say its own uid.
            spec.groups = self._keep(ffi.new("uint32_t[]", launch.groups))
            spec.n_groups = len(launch.groups)
        spec.uid = _unsigned("user", launch.uid)
        spec.gid = _unsigned("group", launch.gid)
        spec.umask = _unsigned("umask", launch.umask)
        spec.nice = KEEP if launch.nice is None else launch.nice
        spec.oom_score_adj = KEEP if launch.oom_score_adj is None else launch.oom_score_adj
        if launch.cpus is not None:
            if not all(0 <= cpu < MAX_CPUS for cpu in launch.cpus):
                raise SysupError(f"cannot set cpu affinity to {_listed(launch.cpus)}: out of range")
            words = [0] * (max(launch.cpus, default=0) // 64 + 1)
            for cpu in launch.cpus:
                words[cpu // 64] |= 1 << cpu % 64
            spec.cpus = self._keep(ffi.new("uint64_t[]", words))
            spec.n_cpus = len(words)
        spec.capabilities = sum({1 << _capability(name) for name in launch.capabilities or ()})
        spec.flags = (
            lib.SPAWN_NEW_SESSION * launch.new_session
            | lib.SPAWN_NO_NEW_PRIVS * launch.no_new_privs
            | lib.SPAWN_CAPABILITIES * (launch.capabilities is not None)
        )

    def explain(
        self,
        code: int,
        result: CData,
        file: str,
        fds: Sequence[tuple[int, int]] = (),
        waited: float = 0.0,
    ) -> SpawnError:
        """Which step failed, on what, and why, in words.

        Args:
            code: the errno.
            result: of the C code.
            file: the program.
            fds: descriptors, as (there, here).
            waited: seconds that it took.
        """
        launch = self._launch
        step = ffi.string(lib.spawn_step_name(result.step)).decode()
        reason = os.strerror(code)
        what = {
            "clone": "create a process",
            "signals": "reset its signals",
            "session": "start a session",
            "cgroup": "join its cgroup",
            "nice": f"set nice to {launch.nice}",
            "oom_score_adj": f"set oom_score_adj to {launch.oom_score_adj}",
            "affinity": f"set cpu affinity to {_listed(sorted(launch.cpus or ()))}",
            "groups": f"set groups {_listed(launch.groups or ())}",
            "gid": f"set group {launch.gid}",
            "uid": f"set user {launch.uid}",
            "capabilities": f"set capabilities {_listed(launch.capabilities or ('none',))}",
            "no_new_privs": "set no_new_privs",
            "cwd": f"change to directory {launch.cwd}",
            "exec": f"execute {file}",
        }.get(step, f"prepare its {step}")
        if step == "rlimit":
            name, soft, hard = self._rlimits[result.index]
            what = f"set rlimit_{name} to {shown(soft)}:{shown(hard)}"
        elif step == "fds" and result.index >= 0:
            theirs, ours = fds[result.index]
            what = f"make descriptor {ours} its descriptor {theirs}"
        elif step == "exec":
            reason += self._hint(code, file)
        if code == errno.ETIME:
            reason = f"no answer within {waited:.0f} s"
        return SpawnError(f"cannot {what}: {reason}", step, code)

    def _hint(self, code: int, file: str) -> str:
        """What people stumble over: errno names the program, but it is not the program."""
        if code == errno.ENOEXEC:
            return " (a script begins with a line like #!/bin/sh)"
        path = os.path.join(self._launch.cwd or "", file)
        if code == errno.ENOENT and "/" in file and os.path.exists(path):
            return " (the program is there; its interpreter or loader is not)"
        return ""


def effective_limits(
    limits: Iterable[tuple[str, int | None, int | None]], nofile: Limits | None
) -> list[tuple[str, int | None, int | None]]:
    """The limits to set: with the daemon's first limit of descriptors, not its raised one.

    The kernel lets nobody have infinite descriptors (setrlimit(2), fs.nr_open): as in
    Circus, that is as many as the hard limit allows.
    """
    found: dict[str, Limits] = {} if nofile is None else {"nofile": nofile}
    for name, soft, hard in limits:
        if name not in RLIMITS:
            raise SysupError(f"cannot set rlimit_{name}: there is no such limit")
        found[name] = (soft, hard)
    if "nofile" in found:
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        soft, hard = found["nofile"]
        found["nofile"] = (most if soft is None else soft, most if hard is None else hard)
    return [(name, soft, hard) for name, (soft, hard) in found.items()]


def _unsigned(what: str, value: int | None) -> int:
    """As the C struct has it: what is negative is kept, and root's must not be kept by chance."""
    if value is not None and value < 0:
        raise SysupError(f"cannot set {what} {value}: it is negative")
    return -1 if value is None else value


def _limit(value: int | None) -> int:
    return 2**64 - 1 if value is None else value


def shown(value: int | None) -> str:
    """A limit in words."""
    return "infinity" if value is None else str(value)


def _listed(values: Iterable[int | str]) -> str:
    return ",".join(str(value) for value in values)


def _capability(name: str) -> int:
    try:
        return CAPABILITIES[name]
    except KeyError:
        raise SysupError(f"cannot keep capability {name}: there is none of that name") from None


def _string(text: str, what: str) -> CData:
    try:
        encoded = os.fsencode(text)
    except UnicodeEncodeError as error:  # the locale's, or half of a surrogate pair
        reason = f"{what} can't be encoded as {error.encoding}: {text[:LONGEST_SHOWN]!a}"
        raise SysupError(f"cannot execute: {reason}") from None
    if b"\0" in encoded:
        raise SysupError(f"cannot execute: {what} has a NUL byte: {text!r}")
    return ffi.new("char[]", encoded)


def _variable(name: str, value: str) -> CData:
    return _string(f"{name}={value}", "a variable")
