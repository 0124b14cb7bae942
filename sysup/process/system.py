"""The system's calls on processes that are there already, and on the daemon itself."""

from __future__ import annotations

import fcntl
import os
import resource
import select
import signal
import struct
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from sysup._native import ffi, lib
from sysup.process.launch import RLIMITS, Launch, Launcher, Limits, Process, SpawnError, shown
from sysup.process.orphans import hunt, next_zombie, reap_stranger
from sysup.protocol import SysupError

MARKER = "SYSUP_PROCESS"
"""The variable in a process's environment by which its descendants are known."""
LONGEST_ENVIRONMENT = 1 << 18
"""Bytes in which MARKER is looked for."""
PIDFD_INFO = struct.Struct("=Q52xi8x")
"""struct pidfd_info (linux/pidfd.h): mask, and the wait status at the end of version 1."""
PIDFD_GET_INFO = 0xC048FF0B
"""_IOWR(PIDFS_IOCTL_MAGIC, 11, struct pidfd_info)"""
PIDFD_INFO_EXIT = 1 << 3
PATIENCE = 1.0
"""Seconds that a parent may take to reap a child of which we want to know how it ended."""
BORN_WITHIN = 1.0
"""Seconds for which a process without a command line is taken to be in the midst of execve(2)."""
LAST_KILLS = 20
"""How often the last strangers are killed before the daemon ends without them."""
LAST_WAIT = 50
"""Milliseconds to wait for each."""


class Unreaped(Exception):
    """A process has ended, but its parent, another process, has not taken notice yet."""


class Unclear(Exception):
    """Whose a process is can't be told this moment, as it executes a program: look again."""


class OS:
    """The system's calls on processes.

    Args:
        nofile: the limits of descriptors that children get, from `raise_nofile`; None: ours.
        nice: how nice children are that are told nothing else; None: as we are.
    """

    def __init__(self, nofile: tuple[int, int] | None = None, nice: int | None = None) -> None:
        infinite = resource.RLIM_INFINITY
        self._nofile: Limits | None = None
        if nofile is not None:
            soft, hard = nofile
            self._nofile = (None if soft == infinite else soft, None if hard == infinite else hard)
        self._nice = nice
        self._room = 1024
        self._unreaped: dict[int, float] = {}
        """By pid, when that was first found to be so."""
        self._nameless: dict[int, float] = {}
        """The same of those that are in the midst of execve(2)."""

    # -- one process --

    def launcher(self, launch: Launch) -> Launcher:
        """Prepare to start processes. Raises SysupError as Launcher does."""
        if launch.nice is None:
            launch = launch._replace(nice=self._nice)
        return Launcher(launch, self._nofile)

    def wait(self, process: Process) -> int | None:
        """Its exit code, or a signal as a negative number, once it has ended; reaps it.

        What another daemon started has another parent, who reaps it; then the kernel is asked
        (PIDFD_GET_INFO with PIDFD_INFO_EXIT, Linux 6.15).

        None: it still runs, or nobody can tell. Raises Unreaped when its parent has yet to
        reap it; whose parent does not within a second is one of whom nobody can tell.
        """
        try:
            ended = os.waitid(os.P_PIDFD, process.pidfd, os.WEXITED | os.WNOHANG)
        except ChildProcessError:
            return self._ask_kernel(process)
        if ended is None:
            return None
        return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status

    def _ask_kernel(self, process: Process) -> int | None:
        is_reaped = not is_zombie(process.pid)  # if so before the question, no answer is final
        info = bytearray(PIDFD_INFO.size)
        PIDFD_INFO.pack_into(info, 0, PIDFD_INFO_EXIT, 0)
        try:
            fcntl.ioctl(process.pidfd, PIDFD_GET_INFO, info)
            mask, status = PIDFD_INFO.unpack(info)
            if mask & PIDFD_INFO_EXIT:
                self._unreaped.pop(process.pid, None)
                return os.waitstatus_to_exitcode(status)
        except ProcessLookupError:  # a zombie (or, before 6.15, one that was reaped)
            pass
        except OSError:  # before 6.13
            return None
        since = self._unreaped.setdefault(process.pid, time.monotonic())
        if time.monotonic() - since > PATIENCE or is_reaped:
            del self._unreaped[process.pid]
            return None
        raise Unreaped

    def adopt(self, pid: int, start: int) -> Process | None:
        """Hold a process that another daemon started; None when it has ended.

        `start` is its `start_time`, by which it is known that the pid is not another's.
        """
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            return None
        if self.start_time(pid) != start:
            os.close(pidfd)
            return None
        return Process(pid, pidfd)

    def start_time(self, pid: int) -> int:
        """When a process was started, in clock ticks since the boot (proc(5)); 0: it is gone."""
        fields = stat_fields(pid)
        return int(fields[19]) if fields else 0

    def close(self, process: Process) -> None:
        """Let go of it. From then on signals to it find it gone."""
        if process.pidfd >= 0:
            os.close(process.pidfd)
            process.pidfd = -1

    def signal(self, process: Process, signum: int) -> bool:
        """Send a signal; False when it has gone. Raises SysupError when it may not.

        On the way to its program it gets SIGKILL alone. Others are for the program; some would
        be lost, and some dump core, which up to Linux 5.15 ends all who share the memory. They
        follow at `end_birth`.
        """
        if process.pidfd < 0:
            return False
        if process.birth and signum != signal.SIGKILL:
            process.birth.signals.append(signum)
            return True
        try:
            signal.pidfd_send_signal(process.pidfd, signum)
        except ProcessLookupError:
            return False
        except OSError as error:
            raise _cannot_signal(f"process {process.pid}", signum, error) from None
        return True

    def end_birth(self, process: Process) -> None:
        """Let it be born: its birth's `sign` is readable, or it has ended.

        What was sent to it meanwhile reaches it. Raises SpawnError as Birth.end does.
        """
        birth, process.birth = process.birth, None
        if birth:
            birth.end()
            for signum in birth.signals:
                self.signal(process, signum)

    def give_up(self, process: Process) -> None:
        """Kill what was just started, and let go of it; what does not end at once is a stranger."""
        self.signal(process, signal.SIGKILL)
        poll = select.poll()
        poll.register(process.pidfd, select.POLLIN)
        if poll.poll(LAST_WAIT):
            with suppress(SpawnError):
                self.end_birth(process)
            with suppress(Unreaped):
                self.wait(process)
        self.close(process)

    def set_limit(self, process: Process, name: str, soft: int | None, hard: int | None) -> bool:
        """Change a limit of a running process; False when it has gone.

        By number, but while we have not reaped it nobody else can have its pid. Raises
        SysupError when the limit can't be set so.
        """
        if process.pidfd < 0:
            return False
        what = f"set rlimit_{name} of process {process.pid} to {shown(soft)}:{shown(hard)}"
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

    def kill_group(self, pid: int) -> bool:
        """SIGKILL to the group that a process led which has ended; False when it is empty.

        What lives by its number is another one: it had been reaped, by us or by who else was its
        parent while no daemon was there, and its group was empty.
        """
        if stat_fields(pid)[:1] and not is_zombie(pid):
            return False
        return self.signal_group(pid, signal.SIGKILL)

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

        Raises Unclear while a process that may be one of them can't be told from others.
        """
        owners = {marker: pid for pid, marker in dead.items()}
        children: dict[int, list[int]] = defaultdict(list)
        roots: list[tuple[int, int]] = []
        of_session: list[tuple[int, int]] = []
        me = os.getpid()
        nameless: set[int] = set()
        for pid, ppid, session, zombie in self._scan():
            if zombie:
                continue
            children[ppid].append(pid)
            if session in dead:
                of_session.append((pid, session))
            elif ppid == me and pid not in mains:
                marker = _marker(pid)
                if marker is None:
                    nameless.add(pid)
                elif marker in owners:
                    roots.append((pid, owners[marker]))
        # The pid of one that was reaped, and left nobody in its session, may be somebody else's.
        reused = {pid for pid in {owner for _, owner in of_session} if _is_another(pid, dead[pid])}
        roots += [(pid, owner) for pid, owner in of_session if owner not in reused]
        if self._are_born(nameless):
            raise Unclear
        found: dict[int, set[int]] = {pid: set() for pid in dead}
        seen = set(mains)
        while roots:
            pid, owner = roots.pop()
            if pid not in seen:
                seen.add(pid)
                found[owner].add(pid)
                roots += [(child, owner) for child in children[pid]]
        return found

    def chase(self, dead: Mapping[int, str], mains: Collection[int]) -> set[int]:
        """Kill orphans that `leftovers` can't find, as each has left another one before the look
        at all processes comes to it; returns of which of `dead` there were such.
        """
        owners = {marker: pid for pid, marker in dead.items()}
        return hunt(lambda pid: owners.get(_marker(pid) or ""), mains)

    def _are_born(self, nameless: Collection[int]) -> bool:
        """Whether they will soon have a name: who has none for long has hidden it."""
        now = time.monotonic()
        self._nameless = {pid: self._nameless.get(pid, now) for pid in nameless}
        return any(now - since < BORN_WITHIN for since in self._nameless.values())

    # -- strangers: our children by adoption --

    def reap_strangers(self, mains: Collection[int]) -> int:
        """Reap orphans that have ended; returns how many.

        Not those in our own session: these were started in this process by somebody
        (a hook, a stream class) who waits for them.
        """
        reaped = 0
        while pid := next_zombie():
            if pid in mains or not reap_stranger(pid):
                # It stays the first that waitid finds, so the others are to be looked for.
                me = os.getpid()
                zombies = {pid for pid, ppid, _, dead in self._scan() if dead and ppid == me}
                return reaped + sum(reap_stranger(pid) for pid in zombies - set(mains))
            reaped += 1
        return reaped

    def kill_strangers(self) -> int:
        """Kill all that is left below us in other sessions, as the daemon ends.

        Waits a short time for their end, as what they leave comes to us and is killed next.
        Returns how many were killed.
        """
        killed: set[int] = set()

        own = os.getsid(0)

        def stranger(pid: int) -> int | None:
            return pid if os.getsid(pid) != own else None

        for _ in range(LAST_KILLS):
            found = self._descendants([os.getpid()], recursive=True, session=own)
            self._kill_and_wait(found)
            found |= hunt(stranger, ())
            killed |= found
            if not found:
                break
        return len(killed)

    def _kill_and_wait(self, pids: Iterable[int]) -> None:
        poll = select.poll()
        pidfds = []
        for pid in pids:
            try:
                pidfd = os.pidfd_open(pid)
            except ProcessLookupError:
                continue
            pidfds.append(pidfd)
            with suppress(ProcessLookupError, PermissionError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                poll.register(pidfd, select.POLLIN)
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

    def figures(self, pids: Sequence[int]) -> list[tuple[Any, ...]]:
        """What processes have used and hold, as struct proc_figures has it, of those there are.

        Raises OSError.
        """
        found = ffi.new("struct proc_figures[]", len(pids))
        rc = lib.proc_read(pids, len(pids), found)
        if rc < 0:
            raise OSError(-rc, os.strerror(-rc))
        return [row for row in FIGURES.iter_unpack(ffi.buffer(found)) if row[0]]

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
FIGURES = struct.Struct("@iii16sQQQQQ0Q")
"""struct proc_figures"""


def stat_fields(pid: int) -> list[bytes]:
    """Of /proc/PID/stat from the state on (proc(5)); empty when it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()
    except OSError:
        return []


def is_zombie(pid: int) -> bool:
    """Whether it has ended and is not reaped."""
    return stat_fields(pid)[:1] in ([b"Z"], [b"X"])


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


def _marker(pid: int) -> str | None:
    """The value of MARKER in the environment that a process began with; "" without.

    None in the midst of execve(2), where it has neither environment nor command line.
    """
    try:
        environ = _proc(pid, "environ", LONGEST_ENVIRONMENT)
        if not environ and not _proc(pid, "cmdline", 1) and not is_zombie(pid):
            return None
    except OSError:  # gone, or another user's and we are not root
        return ""
    _, found, rest = (b"\0" + environ).partition(b"\0" + MARKER.encode() + b"=")
    return os.fsdecode(rest.partition(b"\0")[0]) if found else ""


def _is_another(pid: int, marker: str) -> bool:
    """Whether it lives, and is not the one that has or had this marker."""
    return _marker(pid) not in (marker, None) and bool(stat_fields(pid)) and not is_zombie(pid)


def _proc(pid: int, name: str, size: int) -> bytes:
    """The beginning of a file of a process, who can make it endless (prctl(2), PR_SET_MM)."""
    with open(f"/proc/{pid}/{name}", "rb", buffering=0) as file:
        return file.read(size)
