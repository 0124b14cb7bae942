"""The narrow seam to the operating system: processes are made, signalled, awaited, found.

A process is held by its pidfd, so a signal never meets a stranger that got its number. What
only has a number (groups, limits, what a dead process left behind) says why that
is harmless.

All of a process's tree is to die with it, but a process may leave its session (setsid) and
its parent (a double fork). It can't leave two things: the daemon is a subreaper
(prctl(2)), so an orphan becomes our child, wherever it was; and the environment it began with
stays in /proc/PID/environ, where `MARKER` tells whose it is. What is found by neither, a
descendant that cleaned its environment and left the session, is killed when the daemon ends;
only a cgroup of its own could tell sooner.

Tests of the modules above replace `OS` as a whole.
"""

from __future__ import annotations

import errno
import grp
import os
import pwd
import resource
import select
import signal
import struct
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from sysup import config
from sysup._native import ffi, lib
from sysup.protocol import Errno, SysupError

MARKER = "SYSUP_PROCESS"
"""The variable in a process's environment by which its descendants are known."""

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
LISTEN_PID = b"LISTEN_PID="
PID_ROOM = 11
"""Bytes of a pid in decimal with its NUL."""
LAST_KILLS = 20
"""How often the last strangers are killed before the daemon ends without them."""
LAST_WAIT = 50
"""Milliseconds to wait for each."""


class SpawnError(SysupError):
    """A process could not be started.

    Args:
        message: what could not be done, with what, and why.
        step: the step that failed, as the C code names it: "exec", "cwd", "uid", ...
        code: the system's errno.
    """

    errno = Errno.OS_ERROR

    def __init__(self, message: str, step: str, code: int) -> None:
        super().__init__(message)
        self.step = step
        self.code = code


# ---- who ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Identity:
    """Whom a process runs as.

    `uid`, `gid` and `groups` are None where the daemon's stay; `name`, `home` and `shell` are
    of the user that it comes to in any case.
    """

    uid: int | None
    gid: int | None
    groups: tuple[int, ...] | None
    name: str
    home: str
    shell: str


def identity(uid: str | None, gid: str | None, groups: Sequence[str] | None) -> Identity:
    """Look up whom a process is to run as.

    Args:
        uid: a user's name or number; None: the daemon's.
        gid: a group's name or number; None: the primary group of `uid`.
        groups: supplementary groups; None: those that `uid` is a member of.

    Raises SysupError when there is no such user or group, or when `uid` is a number
    without an entry and no `gid` is given.
    """
    user = _find_user(os.geteuid() if uid is None else uid)
    number = None if uid is None else user.pw_uid if user else int(uid)
    group = None if gid is None else _find_group(gid)
    if number is not None and group is None:
        if user is None:
            raise SysupError(f"cannot find a group for user {uid}: it has no entry, so set gid")
        group = user.pw_gid
    members: tuple[int, ...] | None = None
    if groups is not None:
        members = tuple(_find_group(name) for name in groups)
    elif number is not None and group is not None:
        members = tuple(os.getgrouplist(user.pw_name, group)) if user else (group,)
    if user is None:
        return Identity(number, group, members, str(uid or os.geteuid()), "/", "/bin/sh")
    shell = user.pw_shell or "/bin/sh"
    return Identity(number, group, members, user.pw_name, user.pw_dir or "/", shell)


def _find_user(user: str | int) -> pwd.struct_passwd | None:
    """The entry of a user; None for a number that has none."""
    try:
        return pwd.getpwnam(user) if isinstance(user, str) else pwd.getpwuid(user)
    except KeyError:
        pass
    if isinstance(user, str) and not user.isdecimal():
        raise SysupError(f"cannot find user '{user}'")
    try:
        return pwd.getpwuid(int(user))
    except (KeyError, OverflowError):
        return None


def _find_group(group: str) -> int:
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        if group.isdecimal():
            return int(group)
        raise SysupError(f"cannot find group '{group}'") from None


# ---- a process from nothing ----------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Launch:
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
    env: Mapping[str, str] = field(default_factory=dict)
    file: str | None = None
    search: str | None = None
    cwd: str | None = None
    fds: Mapping[int, int] = field(default_factory=lambda: {0: 0, 1: 1, 2: 2})
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


@dataclass(slots=True)
class Process:
    """A process that was started here, held by its pidfd until `OS.close`."""

    pid: int
    pidfd: int


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
        self._file = launch.file or ""
        self._rlimits = _effective_limits(launch.rlimits, nofile)
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
        """Start one; it has executed its program when this returns.

        Args:
            argv: instead of the launch's.
            env: variables beside the launch's, or instead of some.
            fds: descriptors beside the launch's, or instead of some.
            cgroup_fd: directory of the cgroup to be born into; -1: the daemon's.

        Raises SpawnError, and then nothing is left behind.
        """
        spec = self._spec
        arguments = self._argv
        if argv is not None:
            arguments = [_string(argument, "an argument") for argument in argv]
        if self._launch.file is None:
            if not arguments:
                raise SysupError("cannot execute: there is no program")
            self._file, spec.file = ffi.string(arguments[0]).decode(errors="replace"), arguments[0]
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
        rc = lib.spawn(spec, self._result)
        if rc < 0:
            raise self._explain(-rc, list(pairs.items()))
        return Process(self._result.pid, self._result.pidfd)

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
        spec.uid = -1 if launch.uid is None else launch.uid
        spec.gid = -1 if launch.gid is None else launch.gid
        spec.umask = -1 if launch.umask is None else launch.umask
        spec.nice = KEEP if launch.nice is None else launch.nice
        spec.oom_score_adj = KEEP if launch.oom_score_adj is None else launch.oom_score_adj
        if launch.cpus is not None:
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

    def _explain(self, code: int, fds: Sequence[tuple[int, int]]) -> SpawnError:
        """Which step failed, on what, and why, in words."""
        launch, result = self._launch, self._result
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
            "exec": f"execute {self._file}",
        }.get(step, f"prepare its {step}")
        if step == "rlimit":
            name, soft, hard = self._rlimits[result.index]
            what = f"set rlimit_{name} to {_shown(soft)}:{_shown(hard)}"
        elif step == "fds" and result.index >= 0:
            theirs, ours = fds[result.index]
            what = f"make descriptor {ours} its descriptor {theirs}"
        elif step == "exec":
            reason += self._hint(code)
        return SpawnError(f"cannot {what}: {reason}", step, code)

    def _hint(self, code: int) -> str:
        """What people stumble over: errno names the program, but it is not the program."""
        if code == errno.ENOEXEC:
            return " (a script begins with a line like #!/bin/sh)"
        path = os.path.join(self._launch.cwd or "", self._file)
        if code == errno.ENOENT and "/" in self._file and os.path.exists(path):
            return " (the program is there; its interpreter or loader is not)"
        return ""


def _effective_limits(
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


def _limit(value: int | None) -> int:
    return 2**64 - 1 if value is None else value


def _shown(value: int | None) -> str:
    return "infinity" if value is None else str(value)


def _listed(values: Iterable[int | str]) -> str:
    return ",".join(str(value) for value in values)


def _capability(name: str) -> int:
    try:
        return CAPABILITIES[name]
    except KeyError:
        raise SysupError(f"cannot keep capability {name}: there is none of that name") from None


def _string(text: str, what: str) -> CData:
    encoded = os.fsencode(text)
    if b"\0" in encoded:
        raise SysupError(f"cannot execute: {what} has a NUL byte: {text!r}")
    return ffi.new("char[]", encoded)


def _variable(name: str, value: str) -> CData:
    return _string(f"{name}={value}", "a variable")


# ---- the system ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Relative:
    """A line of the table of all processes."""

    pid: int
    ppid: int
    session: int
    zombie: bool


class OS:
    """The system's calls on processes.

    Args:
        nofile: the limits of descriptors that children get, from `raise_nofile`; None: ours.
    """

    def __init__(self, nofile: tuple[int, int] | None = None) -> None:
        infinite = resource.RLIM_INFINITY
        self._nofile: Limits | None = None
        if nofile is not None:
            soft, hard = nofile
            self._nofile = (None if soft == infinite else soft, None if hard == infinite else hard)
        self._room = 1024

    # -- one process --

    def launcher(self, launch: Launch) -> Launcher:
        """Prepare to start processes. Raises SysupError as Launcher does."""
        return Launcher(launch, self._nofile)

    def wait(self, process: Process) -> int | None:
        """Its exit code, or a signal as a negative number, once it has ended; reaps it.

        None: it still runs, or nobody can tell (it is not our child; it was reaped before).
        """
        try:
            ended = os.waitid(os.P_PIDFD, process.pidfd, os.WEXITED | os.WNOHANG)
        except ChildProcessError:
            return None
        if ended is None:
            return None
        return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status

    def close(self, process: Process) -> None:
        """Let go of it. From then on signals to it find it gone."""
        if process.pidfd >= 0:
            os.close(process.pidfd)
            process.pidfd = -1

    def signal(self, process: Process, signum: int) -> bool:
        """Send a signal; False when it has gone. Raises SysupError when it may not."""
        if process.pidfd < 0:
            return False
        try:
            signal.pidfd_send_signal(process.pidfd, signum)
        except ProcessLookupError:
            return False
        except OSError as error:
            raise _cannot_signal(f"process {process.pid}", signum, error) from None
        return True

    def set_limit(self, process: Process, name: str, soft: int | None, hard: int | None) -> bool:
        """Change a limit of a running process; False when it has gone.

        By number, but while we have not reaped it nobody else can have its pid. Raises
        SysupError when the limit can't be set so.
        """
        if process.pidfd < 0:
            return False
        what = f"set rlimit_{name} of process {process.pid} to {_shown(soft)}:{_shown(hard)}"
        try:
            number = RLIMITS[name]
            if name == "nofile" and None in (soft, hard):
                most = resource.prlimit(process.pid, number)[1]
                soft, hard = most if soft is None else soft, most if hard is None else hard
            infinite = resource.RLIM_INFINITY
            values = (infinite if soft is None else soft, infinite if hard is None else hard)
            resource.prlimit(process.pid, number, values)
        except ProcessLookupError:
            return False
        except KeyError:
            raise SysupError(f"cannot {what}: there is no such limit") from None
        except (OSError, ValueError, OverflowError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise SysupError(f"cannot {what}: {reason}") from None
        return True

    # -- those around it --

    def signal_group(self, pid: int, signum: int) -> bool:
        """Signal the process group that `pid` leads or led; False when it is empty.

        To be called while `pid` is not reaped, or at once after: its number stays taken as
        long as the group has a member, and else pids come round only after all others
        (kernel.pid_max; pid allocation is cyclic).
        """
        if pid <= 1:
            raise ValueError(f"no group of a child: {pid}")
        try:
            os.killpg(pid, signum)
        except ProcessLookupError:
            return False
        except OSError as error:
            raise _cannot_signal(f"process group {pid}", signum, error) from None
        return True

    def kill(self, pid: int) -> bool:
        """SIGKILL to what `leftovers` has just found; False when it has gone.

        The pid can't be another's yet, for the reason that `signal_group` gives.
        """
        return _send(pid, signal.SIGKILL)

    def signal_child(self, process: Process, child_pid: int, signum: int) -> bool:
        """Signal one descendant of a process; False when it is none."""
        below = self._descendants([process.pid], recursive=True)
        return child_pid in below and _send(child_pid, signum)

    def signal_children(self, process: Process, signum: int, *, recursive: bool) -> int:
        """Signal the children of a process, or all its descendants; returns how many."""
        below = self._descendants([process.pid], recursive=recursive)
        return sum(_send(pid, signum) for pid in below)

    def leftovers(self, dead: Mapping[int, str], mains: Collection[int]) -> dict[int, set[int]]:
        """What lives on of processes that have ended, by their pids; one look for all.

        That is what is in the session of one, or is our child now and bears its marker,
        and what descends from these.

        Args:
            dead: the pids of processes that have been reaped, with the value that MARKER has
                in their environment.
            mains: the pids of all processes that are not to be touched, nor those below.
        """
        owners = {marker: pid for pid, marker in dead.items()}
        children: dict[int, list[int]] = defaultdict(list)
        roots: list[tuple[int, int]] = []
        me = os.getpid()
        for pid, ppid, session, zombie in self._scan():
            if zombie:
                continue
            children[ppid].append(pid)
            owner = session if session in dead else None
            if owner is None and ppid == me and pid not in mains:
                owner = owners.get(_marker(pid))
            if owner is not None:
                roots.append((pid, owner))
        found: dict[int, set[int]] = {pid: set() for pid in dead}
        seen = set(mains)
        while roots:
            pid, owner = roots.pop()
            if pid not in seen:
                seen.add(pid)
                found[owner].add(pid)
                roots += [(child, owner) for child in children[pid]]
        return found

    # -- strangers: our children by adoption --

    def reap_strangers(self, mains: Collection[int]) -> int:
        """Reap orphans that have ended; returns how many.

        Not those in our own session: these were started in this process by somebody
        (a hook, a stream class) who waits for them.
        """
        reaped = 0
        while pid := _next_zombie():
            if pid in mains or not _reap_stranger(pid):
                # It stays the first that waitid finds, so the others are to be looked for.
                me = os.getpid()
                zombies = {pid for pid, ppid, _, dead in self._scan() if dead and ppid == me}
                return reaped + sum(_reap_stranger(pid) for pid in zombies - set(mains))
            reaped += 1
        return reaped

    def kill_strangers(self) -> int:
        """Kill all that is left below us in other sessions, as the daemon ends.

        Waits a short time for their end, as what they leave comes to us and is killed next.
        Returns how many were killed.
        """
        killed: set[int] = set()
        for _ in range(LAST_KILLS):
            found = self._descendants([os.getpid()], recursive=True, session=os.getsid(0))
            killed |= found
            if not found:
                break
            self._kill_and_wait(found)
        return len(killed)

    def _kill_and_wait(self, pids: Iterable[int]) -> None:
        poll = select.poll()
        pidfds = []
        for pid in pids:
            try:
                pidfds.append(os.pidfd_open(pid))
            except OSError:  # it has gone
                continue
            poll.register(pidfds[-1], select.POLLIN)
            _send(pid, signal.SIGKILL)
        if pidfds:
            poll.poll(LAST_WAIT)
        for pidfd in pidfds:
            os.close(pidfd)

    # -- all processes --

    def _descendants(
        self, roots: Iterable[int], *, recursive: bool, session: int | None = None
    ) -> set[int]:
        """The living below `roots`, but for those in `session`."""
        children: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for pid, ppid, its_session, zombie in self._scan():
            if not zombie:
                children[ppid].append((pid, its_session))
        found: set[int] = set()
        level = list(roots)
        while level:
            below = [child for pid in level for child in children.pop(pid, ())]
            found.update(pid for pid, its_session in below if its_session != session)
            level = [pid for pid, _ in below] if recursive else []
        return found

    def _scan(self) -> Iterator[tuple[int, int, int, bool]]:
        """(pid, parent, session, whether it has ended) of every process."""
        while True:
            entries = ffi.new("struct proc_entry[]", self._room)
            n = lib.proc_scan(entries, self._room)
            if n < 0:
                raise SysupError(f"cannot read /proc: {os.strerror(-n)}")
            if n <= self._room:
                break
            self._room = n + n // 4
        data = ffi.buffer(entries, n * ENTRY.size)[:]
        for pid, ppid, _, session, _, state in ENTRY.iter_unpack(data):
            yield pid, ppid, session, state in b"ZX"


ENTRY = struct.Struct("@iiiiQc0Q")
"""struct proc_entry: unpacking all at once is ten times faster than cffi's attributes."""


def _send(pid: int, signum: int) -> bool:
    try:
        os.kill(pid, signum)
    except ProcessLookupError:
        return False
    except OSError as error:
        raise _cannot_signal(f"process {pid}", signum, error) from None
    return True


def _cannot_signal(target: str, signum: int, error: OSError) -> SysupError:
    try:
        name = signal.Signals(signum).name
    except ValueError:
        name = f"signal {signum}"
    return SysupError(f"cannot send {name} to {target}: {error.strerror}")


def _marker(pid: int) -> str:
    """The value of MARKER in the environment that a process began with; "" without."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            environ = b"\0" + file.read()
    except OSError:  # gone, or another user's and we are not root
        return ""
    _, found, rest = environ.partition(b"\0" + MARKER.encode() + b"=")
    return os.fsdecode(rest.partition(b"\0")[0]) if found else ""


def _next_zombie() -> int:
    """A child that has ended and is not reaped, always the same until it is; 0 if none."""
    try:
        ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return 0
    return ended.si_pid if ended else 0


def _reap_stranger(pid: int) -> bool:
    """Reap a child that has ended, unless it is of our own session."""
    try:
        if os.getsid(pid) == os.getsid(0):
            return False
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG) is not None
    except (ProcessLookupError, ChildProcessError):
        return False


# ---- the daemon itself ---------------------------------------------------------------------


def become_subreaper() -> None:
    """Be given the orphans below us, and the exit status of our children.

    Who starts the daemon may ignore SIGCHLD, and that is inherited; children would
    then vanish without a status (waitpid(2), NOTES).
    """
    if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    rc = lib.become_subreaper()
    if rc < 0:
        raise SysupError(f"cannot become a subreaper: {os.strerror(-rc)}")


def raise_nofile() -> tuple[int, int]:
    """Let the daemon have as many descriptors as it may; returns (soft, hard) as they were.

    Children are to get these: a high soft limit slows old programs that close all
    they may have, and breaks those that use select(2).
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return soft, hard
