"""The narrow seam to the system: start, signal, await and bury processes.

Everything sysup does to processes goes through `OS`; unit tests put a fake in its place, whole.

A process is held by its pidfd, so a signal never meets a stranger that was given the same
number. Its tree is found without cgroups: what it forks stays in its session (every process
is started in one of its own) unless it leaves it; what leaves it becomes a child of this
daemon when its parent dies, because the daemon is a subreaper, and carries in its environment
the marker that the process was started with.
"""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import resource
import signal
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from sysup._native import ffi, lib
from sysup.config import CAPABILITIES
from sysup.protocol import SysupError

MARKER = "SYSUP_PROCESS"
"""The variable in each child's environment by which its descendants are known."""
UNLIMITED = 2**64 - 1
KEEP = -(2**31)
"""INT32_MIN, native.h's word for "as the daemon has it" where -1 is a value."""


class Limit(NamedTuple):
    """A limit on a resource of getrlimit(2), by its lower-case name; None is infinity."""

    name: str
    soft: int | None
    hard: int | None


@dataclass(frozen=True)
class Account:
    """Who a process runs as: ids (None: the daemon's own) and what passwd(5) says."""

    uid: int | None
    gid: int | None
    groups: tuple[int, ...] | None
    name: str
    home: str
    shell: str


@dataclass(frozen=True)
class Launch:
    """All that a process is started with; None means as the daemon has it.

    Args:
        argv: its arguments, argv[0] first.
        file: what to execute, searched in `search` (directories, ':' between them) if it
            has no '/'.
        fds: its descriptors, all of them: number there, number here.
        cpus: numbers of the CPUs to run on.
        capabilities: names (CAP_CHOWN) of those to keep.
        cgroup_fd: a descriptor of the cgroup's directory to be born into.
    """

    argv: Sequence[str]
    env: Mapping[str, str]
    file: str = ""
    search: str | None = None
    cwd: str | None = None
    fds: Mapping[int, int] = field(default_factory=dict)
    account: Account | None = None
    rlimits: Sequence[Limit] = ()
    umask: int | None = None
    nice: int | None = None
    oom_score_adj: int | None = None
    cpus: Collection[int] | None = None
    no_new_privs: bool = False
    capabilities: Collection[str] | None = None
    cgroup_fd: int = -1


@dataclass(frozen=True, slots=True)
class Process:
    """A child that was started: its number and the descriptor that stands for it."""

    pid: int
    pidfd: int


class SpawnError(SysupError):
    """A process could not be started.

    Attributes:
        step: what it was doing, in native.h's word.
        number: errno.
    """

    def __init__(self, message: str, step: str, number: int) -> None:
        super().__init__(message)
        self.step = step
        self.number = number


def become_subreaper() -> None:
    """Be the parent of all orphans below (prctl(2), PR_SET_CHILD_SUBREAPER; Linux 3.4)."""
    rc = lib.become_subreaper()
    if rc < 0:
        raise OSError(-rc, os.strerror(-rc))


def raise_nofile() -> tuple[int, int]:
    """Allow this process as many descriptors as it may have; returns the limits before."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    return before


def account(uid: str | None, gid: str | None, groups: Sequence[str] | None) -> Account:
    """Look names or numbers up. Without `uid`, name and home are those of the daemon's user.

    Without `gid` it is the user's own group, without `groups` all that the user is in.
    Raises SysupError for a user or a group that does not exist.
    """
    user = find_user(str(os.geteuid()) if uid is None else uid)
    group = find_group(gid) if gid is not None else None if uid is None else user.pw_gid
    members: tuple[int, ...] | None = None
    if groups is not None:
        members = tuple(find_group(name) for name in groups)
    elif uid is not None:
        members = tuple(os.getgrouplist(user.pw_name, user.pw_gid if group is None else group))
    number = None if uid is None else user.pw_uid
    if os.geteuid() != 0 and number == os.geteuid():
        number, members = None, None  # it is so already, and setting it would need privilege
        group = None if group == os.getegid() else group
    return Account(number, group, members, user.pw_name, user.pw_dir, user.pw_shell or "/bin/sh")


def find_user(name: str) -> pwd.struct_passwd:
    """A user by name or number; a number need not be in passwd(5)."""
    with contextlib.suppress(KeyError, OverflowError):
        return pwd.getpwuid(int(name)) if name.isdecimal() else pwd.getpwnam(name)
    if name.isdecimal() and int(name) < 2**32 - 1:
        return pwd.struct_passwd((name, "x", int(name), int(name), "", "/", "/bin/sh"))
    raise SysupError(f"cannot find user '{name}'")


def find_group(name: str) -> int:
    """The number of a group by name or number."""
    if name.isdecimal() and int(name) < 2**32 - 1:
        return int(name)
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise SysupError(f"cannot find group '{name}'") from None


class OS:
    """The system, as far as processes go.

    Args:
        nofile: (soft, hard) of RLIMIT_NOFILE for children that say nothing of it.
    """

    def __init__(self, nofile: tuple[int, int] | None = None) -> None:
        self._nofile = nofile
        self._entries = ffi.new("struct proc_entry[]", 1024)

    # ---- life and death ------------------------------------------------------------------

    def spawn(self, launch: Launch) -> Process:
        """Start a process; it executes its program when this returns.

        Raises SpawnError, with the step that failed, and then there is no process.
        """
        memory: list[Any] = []
        result = ffi.new("struct spawn_result *")
        rc = lib.spawn(self._native(launch, memory), result)
        if rc < 0:
            step = ffi.string(lib.spawn_step_name(result.step)).decode()
            what = describe_step(launch, result.step, step, result.index)
            reason = os.strerror(-rc)
            message = f"cannot {what}: {reason[:1].lower()}{reason[1:]}"
            raise SpawnError(message, step, -rc)
        return Process(result.pid, result.pidfd)

    def _native(self, launch: Launch, memory: list[Any]) -> Any:
        """The `struct spawn_spec`; `memory` keeps alive what it points to."""

        def keep(pointer: Any) -> Any:
            memory.append(pointer)
            return pointer

        def text(value: str | None) -> Any:
            return ffi.NULL if value is None else keep(ffi.from_buffer(os.fsencode(value) + b"\0"))

        def texts(values: Iterable[str]) -> Any:
            return keep(ffi.new("char *[]", [*map(text, values), ffi.NULL]))

        who = launch.account or Account(None, None, None, "", "", "")
        limits = self._limits(launch)
        flags = lib.SPAWN_NEW_SESSION
        flags |= lib.SPAWN_NO_NEW_PRIVS if launch.no_new_privs else 0
        flags |= lib.SPAWN_CAPABILITIES if launch.capabilities is not None else 0
        cpus = cpu_words(launch.cpus) if launch.cpus is not None else []
        fds = [{"from": here, "to": there} for there, here in launch.fds.items()]
        groups = who.groups
        return ffi.new(
            "struct spawn_spec *",
            {
                "file": text(launch.file or launch.argv[0]),
                "search": text(launch.search),
                "argv": texts(launch.argv),
                "envp": texts(f"{name}={value}" for name, value in launch.env.items()),
                "cwd": text(launch.cwd),
                "fds": keep(ffi.new("struct spawn_fd[]", fds)),
                "n_fds": len(fds),
                "rlimits": keep(ffi.new("struct spawn_rlimit[]", limits)),
                "n_rlimits": len(limits),
                "groups": keep(ffi.new("uint32_t[]", groups or ())),
                "n_groups": -1 if groups is None else len(groups),
                "uid": -1 if who.uid is None else who.uid,
                "gid": -1 if who.gid is None else who.gid,
                "umask": -1 if launch.umask is None else launch.umask,
                "nice": KEEP if launch.nice is None else launch.nice,
                "oom_score_adj": KEEP if launch.oom_score_adj is None else launch.oom_score_adj,
                "cpus": keep(ffi.new("uint64_t[]", cpus)) if cpus else ffi.NULL,
                "n_cpus": len(cpus),
                "capabilities": capability_bits(launch.capabilities or ()),
                "flags": flags,
                "cgroup_fd": launch.cgroup_fd,
            },
        )

    def _limits(self, launch: Launch) -> list[tuple[int, int, int]]:
        limits = list(launch.rlimits)
        if self._nofile and all(limit.name != "nofile" for limit in limits):
            limits.append(Limit("nofile", *self._nofile))
        return [
            (resource_number(limit.name), number_of(limit.soft), number_of(limit.hard))
            for limit in limits
        ]

    def wait(self, process: Process) -> int | None:
        """Bury the process if it is dead: its exit code, -N for signal N; None: it lives.

        Raises ChildProcessError when it is no child of ours (any more).
        """
        info = os.waitid(os.P_PIDFD, process.pidfd, os.WEXITED | os.WNOHANG)
        if info is None:
            return None
        return info.si_status if info.si_code == os.CLD_EXITED else -info.si_status

    def close(self, process: Process) -> None:
        """Let go of a process that was buried."""
        os.close(process.pidfd)

    # ---- signals and limits --------------------------------------------------------------

    def signal(self, process: Process, signum: int) -> bool:
        """Send a signal; False: it is dead already, though perhaps not yet buried."""
        try:
            signal.pidfd_send_signal(process.pidfd, signum)
        except ProcessLookupError:
            return False
        return True

    def signal_group(self, pid: int, signum: int) -> bool:
        """Send a signal to the process group that `pid` leads or led; False: it is empty."""
        try:
            os.killpg(pid, signum)
        except ProcessLookupError:
            return False
        return True

    def signal_children(self, process: Process, signum: int, *, recursive: bool) -> list[int]:
        """Send a signal to the children of a process, or to all its descendants."""
        below = Tree(self._scan()).below(process.pid, recursive=recursive)
        return [pid for pid in below if send(pid, signum)]

    def signal_child(self, process: Process, pid: int, signum: int) -> bool:
        """Send a signal to one descendant of a process; False: there is no such one."""
        return pid in Tree(self._scan()).below(process.pid, recursive=True) and send(pid, signum)

    def kill(self, pid: int) -> bool:
        """Send SIGKILL to what `leftovers` found; False: it is dead already."""
        return send(pid, signal.SIGKILL)

    def set_limit(
        self, process: Process, name: str, soft: int | None, hard: int | None
    ) -> str | None:
        """Set a limit of a running process (prlimit(2)); returns why it can't be, or None."""
        values = [resource.RLIM_INFINITY if v is None else v for v in (soft, hard)]
        try:
            resource.prlimit(process.pid, resource_number(name), (values[0], values[1]))
        except ProcessLookupError:
            return None  # it has just died: there is nothing to limit
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            return f"cannot limit {name} of process {process.pid}: {str(reason).lower()}"
        return None

    # ---- what the dead leave behind ------------------------------------------------------

    def leftovers(self, dead: Mapping[int, str], mains: Collection[int]) -> dict[int, set[int]]:
        """What still lives of the trees of dead processes, in one look at all processes.

        Args:
            dead: markers by pid of processes that were buried. Their numbers are not given
                to others as long as a session is called by them.
            mains: processes in slots, which are never anybody's leftovers.
        """
        tree = Tree(self._scan())
        by_marker = {marker: pid for pid, marker in dead.items()}
        found: dict[int, set[int]] = defaultdict(set)
        strangers = set(tree.below(os.getpid(), recursive=False)) - set(mains)
        for entry in tree.living:
            pid, session = entry.pid, entry.session
            if pid in mains:
                continue
            owner = session if session in dead else None
            if owner is None and pid in strangers:
                owner = by_marker.get(read_marker(pid))
            if owner is not None:
                found[owner] |= {pid, *tree.below(pid, recursive=True)} - set(mains)
        return dict(found)

    def reap_strangers(self, mains: Collection[int]) -> int:
        """Bury orphans that became our children and died; returns how many."""
        buried = 0
        while True:
            try:
                info = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return buried
            if info is None:
                return buried
            if info.si_pid in mains:
                # Its pidfd tells of it, and it hides those behind it: look for them one by one.
                return buried + self._reap_hidden(mains)
            bury(info.si_pid)
            buried += 1

    def _reap_hidden(self, mains: Collection[int]) -> int:
        me = os.getpid()
        zombies = [e.pid for e in self._scan() if e.ppid == me and e.state == b"Z"]
        return sum(bury(pid) for pid in zombies if pid not in mains)

    def kill_strangers(self) -> None:
        """Kill and bury all that descends from us."""
        while below := Tree(self._scan()).below(os.getpid(), recursive=True):
            for pid in below:
                send(pid, signal.SIGKILL)
            for pid in below:
                # Those of them that are no children of ours become so as their parents die.
                with contextlib.suppress(ChildProcessError):
                    os.waitid(os.P_PID, pid, os.WEXITED)
        self.reap_strangers(())

    def _scan(self) -> list[Any]:
        """One line for each process of the system."""
        while (count := lib.proc_scan(self._entries, len(self._entries))) > len(self._entries):
            self._entries = ffi.new("struct proc_entry[]", count + count // 4)
        if count < 0:
            raise OSError(-count, os.strerror(-count))
        return list(self._entries[0:count])


class Tree:
    """Who descends from whom, at one moment."""

    def __init__(self, entries: Sequence[Any]) -> None:
        self.living = [entry for entry in entries if entry.state not in (b"Z", b"X")]
        self._children: dict[int, list[int]] = defaultdict(list)
        for entry in self.living:
            self._children[entry.ppid].append(entry.pid)

    def below(self, pid: int, *, recursive: bool) -> list[int]:
        """The children of a process, or all its descendants."""
        found = list(self._children.get(pid, ()))
        if recursive:
            for child in found:  # grows as we go
                found += self._children.get(child, ())
        return found


def send(pid: int, signum: int) -> bool:
    """Send a signal to a process of ours by number; False: it is gone, or not ours."""
    try:
        os.kill(pid, signum)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def bury(pid: int) -> bool:
    """Take the exit status of a dead child; False: there is none."""
    try:
        return os.waitpid(pid, os.WNOHANG) != (0, 0)
    except ChildProcessError:
        return False


def read_marker(pid: int) -> str:
    """The marker in the environment that a process was started with; empty without one."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            variables = file.read().split(b"\0")
    except OSError:
        return ""
    prefix = f"{MARKER}=".encode()
    return next(
        (v[len(prefix) :].decode("ascii", "replace") for v in variables if v.startswith(prefix)), ""
    )


def describe_step(launch: Launch, step: int, name: str, index: int) -> str:
    """What could not be done, in words: "execute web", "set rlimit nofile"."""
    who = launch.account
    if step == lib.SPAWN_STEP_RLIMIT and 0 <= index < len(launch.rlimits):
        return f"set rlimit {launch.rlimits[index].name}"
    words = {
        lib.SPAWN_STEP_CLONE: "make a process",
        lib.SPAWN_STEP_EXEC: f"execute {launch.file or launch.argv[0]}",
        lib.SPAWN_STEP_CWD: f"change to directory {launch.cwd}",
        lib.SPAWN_STEP_UID: f"become user {who.name if who else ''}",
        lib.SPAWN_STEP_GID: f"become group {who.gid if who else ''}",
        lib.SPAWN_STEP_GROUPS: "set the supplementary groups",
        lib.SPAWN_STEP_CGROUP: "enter the cgroup",
        lib.SPAWN_STEP_FDS: "arrange the descriptors",
    }
    return words.get(step, f"set {name}")


def resource_number(name: str) -> int:
    """The number of a resource by its lower-case name."""
    return int(RESOURCES[name])


RESOURCES = {
    name.removeprefix("RLIMIT_").lower(): getattr(resource, name)
    for name in dir(resource)
    if name.startswith("RLIMIT_")
}
RESOURCES.setdefault("locks", 10)  # asm-generic/resource.h; Python's module has no name for it


def number_of(limit: int | None) -> int:
    """A limit as the kernel has it."""
    return UNLIMITED if limit is None or limit < 0 else limit


def cpu_words(cpus: Collection[int]) -> list[int]:
    """A set of CPU numbers as 64-bit words."""
    bits = sum(1 << cpu for cpu in set(cpus))
    return [bits >> at & UNLIMITED for at in range(0, max(bits.bit_length(), 1), 64)]


def capability_bits(names: Collection[str]) -> int:
    """Names of capabilities as the set that the kernel knows."""
    return sum(1 << CAPABILITIES.index(name) for name in set(names))
