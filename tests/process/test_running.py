"""Processes that run, and those around them: signals, limits, ends, leftovers."""

from __future__ import annotations

import ast
import os
import resource
import select
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import pytest

from sysup import process
from sysup._native import lib
from sysup.process import MARKER, OS, Process, Unclear, Unreaped
from sysup.process import system as process_system
from sysup.process.system import is_zombie
from sysup.protocol import SysupError
from tests.process.real import (
    WITHIN,
    born,
    ended,
    eventually,
    launch,
)


def idle(system: OS, *, env: Mapping[str, str] | None = None) -> Process:
    """One that does nothing until a signal ends it."""
    return born(system, system.launcher(launch("sleep", "1000")).spawn(env=env))


def test_its_end_is_told_by_the_pidfd(system: OS) -> None:
    child = idle(system)
    assert system.wait(child) is None
    assert system.signal(child, signal.SIGTERM)
    assert ended(system, child) == -signal.SIGTERM


def test_an_exit_code(system: OS) -> None:
    assert ended(system, born(system, system.launcher(launch("sh", "-c", "exit 3")).spawn())) == 3


def test_one_that_has_gone_is_no_error(system: OS) -> None:
    child = born(system, system.launcher(launch("true")).spawn())
    pid = child.pid
    assert ended(system, child) == 0
    assert not system.signal(child, signal.SIGTERM)
    assert not system.set_limit(child, "nofile", 5, 5)
    assert not system.signal_group(pid, signal.SIGKILL)
    assert not system.kill(pid)
    system.close(child)


def kernel_tells() -> bool:
    """Whether it knows how a process ended that was reaped (PIDFD_INFO_EXIT, Linux 6.15)."""
    major, minor = os.uname().release.split(".")[:2]
    return (int(major), int(minor)) >= (6, 15)


@pytest.mark.parametrize(("end", "status"), [("exit 7", 7), ("kill -9 $$", -9)])
def test_the_end_of_another_ones_child(system: OS, end: str, status: int) -> None:
    script = f"sh -c 'echo $$; read x; {end}'; read x"
    with subprocess.Popen(
        ["sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdin
        assert parent.stdout
        pid = int(parent.stdout.readline())
        adopted = system.adopt(pid, system.start_time(pid))
        assert adopted
        assert system.adopt(pid, system.start_time(pid) + 1) is None, "another of that number"
        parent.send_signal(signal.SIGSTOP)
        # In the midst of waitpid(2) it would still reap before it stops.
        os.waitid(os.P_PID, parent.pid, os.WSTOPPED)
        parent.stdin.write("\n")
        parent.stdin.flush()
        eventually(lambda: is_zombie(pid))
        if kernel_tells():
            with pytest.raises(Unreaped):
                system.wait(adopted)
        parent.send_signal(signal.SIGCONT)
        eventually(lambda: not is_zombie(pid))
        assert system.wait(adopted) == (status if kernel_tells() else None)
        assert system.adopt(pid, 1) is None
        system.close(adopted)


def test_reaped_but_not_closed(system: OS) -> None:
    child = born(system, system.launcher(launch("true")).spawn())
    os.waitid(os.P_PIDFD, child.pidfd, os.WEXITED)
    assert not system.signal(child, signal.SIGTERM)
    assert not system.set_limit(child, "core", 0, 0)
    assert system.wait(child) == (0 if kernel_tells() else None)
    system.close(child)


def test_nonsense_signals(system: OS) -> None:
    child = idle(system)
    with pytest.raises(SysupError, match="cannot send signal 99 to process"):
        system.signal(child, 99)
    with pytest.raises(ValueError, match="no group"):
        system.signal_group(0, signal.SIGKILL)
    system.signal(child, signal.SIGKILL)
    ended(system, child)


def test_a_limit_of_a_running_process(system: OS) -> None:
    child = idle(system)
    assert system.set_limit(child, "nofile", 50, 60)
    assert resource.prlimit(child.pid, resource.RLIMIT_NOFILE) == (50, 60)
    assert system.set_limit(child, "nofile", None, 60)
    assert resource.prlimit(child.pid, resource.RLIMIT_NOFILE) == (60, 60)
    assert system.set_limit(child, "core", 0, None)
    assert resource.prlimit(child.pid, resource.RLIMIT_CORE) == (0, resource.RLIM_INFINITY)
    what = f"cannot set rlimit_%s of process {child.pid} to "
    with pytest.raises(SysupError, match=what % "core" + "9:5: "):
        system.set_limit(child, "core", 9, 5)
    with pytest.raises(SysupError, match=what % "nosuch" + "1:infinity: there is no such limit"):
        system.set_limit(child, "nosuch", 1, None)
    system.signal(child, signal.SIGKILL)
    ended(system, child)


@pytest.fixture
def adopts() -> None:
    """Orphans become our children; it stays so, and harms no other test."""
    process.become_subreaper()


def strangers() -> set[int]:
    """Our children in other sessions, dead or alive."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):
            fields = path.read_text(errors="replace").rpartition(")")[2].split()
            if int(fields[1]) == os.getpid() and int(fields[3]) != os.getsid(0):
                found.add(int(path.parent.name))
    return found


class Tree:
    """A process that has started others, which told their pids; all are killed in the end."""

    def __init__(self, system: OS, text: str, marker: str) -> None:
        reading, writing = os.pipe2(os.O_CLOEXEC)
        launcher = system.launcher(launch("sh", "-c", text, "sh", sys.executable))
        self.main = born(system, launcher.spawn(env={MARKER: marker}, fds={1: writing}))
        os.close(writing)
        self._file = open(reading, encoding="ascii")  # noqa: SIM115
        self._system = system
        self.pids: list[int] = []

    def tell(self, number: int) -> list[int]:
        """Wait until so many pids were printed."""
        while len(self.pids) < number:
            self.pids += [int(self._file.readline())]
        return self.pids

    def die(self) -> int:
        """Kill the main process alone."""
        self._system.signal(self.main, signal.SIGKILL)
        return self.end()

    def end(self) -> int:
        pid = self.main.pid
        ended(self._system, self.main)
        return pid

    def close(self) -> None:
        if self.main.pidfd >= 0:
            self.die()
        self._file.close()


IN_SESSION = "sleep 1000 & echo $!; wait"
ESCAPED = "setsid sh -c 'sh -c \"echo \\$\\$; exec sleep 1000\" & sleep 0' & echo $!; wait"
"""A grandchild in a session of its own, whose parent and grandparent end."""
CLEAN_ROOM = "setsid env -i /bin/sh -c 'echo $$; exec sleep 1000' & wait"


@pytest.fixture
def grow(system: OS, adopts: None) -> Iterator[Callable[[str, str], Tree]]:
    trees: list[Tree] = []

    def grow(text: str, marker: str) -> Tree:
        trees.append(Tree(system, text, marker))
        return trees[-1]

    yield grow
    for tree in trees:
        tree.close()

    def nothing_is_left() -> bool:
        system.kill_strangers()
        system.reap_strangers(())
        return not strangers()

    eventually(nothing_is_left)


Grow = Callable[[str, str], Tree]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_what_stays_in_the_session_is_found(system: OS, grow: Grow) -> None:
    tree = grow(IN_SESSION, "m1")
    (pid,) = tree.tell(1)
    dead = tree.die()
    assert system.leftovers({dead: "m1"}, ()) == {dead: {pid}}
    assert system.leftovers({dead: "m1"}, (pid,)) == {dead: set()}, "it is somebody's main now"


def test_what_escaped_is_found_by_its_marker(system: OS, grow: Grow) -> None:
    tree = grow(ESCAPED, "m2")
    tree.tell(2)
    dead = tree.die()
    eventually(lambda: sum(alive(pid) for pid in tree.pids) == 1)
    (left,) = (pid for pid in tree.pids if alive(pid))
    eventually(lambda: system.leftovers({dead: "m2"}, ()) == {dead: {left}})
    for other in ("m", "m22", "", "2"):
        assert system.leftovers({dead: other}, ()) == {dead: set()}
    system.kill(left)
    eventually(lambda: system.leftovers({dead: "m2"}, ()) == {dead: set()})


def test_what_executes_a_program_this_moment_is_not_overlooked(
    system: OS, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has neither environment nor command line then, and may be what is looked for."""
    child = idle(system, env={MARKER: "born"})
    eventually(lambda: process_system._marker(child.pid) == "born")
    real = process_system._proc
    nameless = lambda pid, *args: b"" if pid == child.pid else real(pid, *args)  # noqa: E731
    monkeypatch.setattr(process_system, "_proc", nameless)
    with pytest.raises(Unclear):
        system.leftovers({1: "born"}, ())
    monkeypatch.setattr(process_system, "BORN_WITHIN", 0.0)
    assert system.leftovers({1: "born"}, ()) == {1: set()}, "it has hidden itself"
    monkeypatch.setattr(process_system, "BORN_WITHIN", WITHIN)
    monkeypatch.setattr(process_system, "_proc", real)
    assert system.leftovers({1: "born"}, ()) == {1: {child.pid}}
    system.signal(child, signal.SIGKILL)
    ended(system, child)


ENDLESS = """
import ctypes, struct, sys, time
size = 1 << 30
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
at = libc.mmap(None, size, 1, 0x4022, -1, 0)  # PROT_READ, PRIVATE | ANONYMOUS | NORESERVE
with open("/proc/self/stat") as file:
    stat = [0, 0, 0, *file.read().rpartition(")")[2].split()]  # counted as in proc(5)
libc.sbrk.restype = ctypes.c_void_p
code, data, brk = map(int, stat[26:28]), map(int, stat[45:47]), (int(stat[47]), libc.sbrk(0))
rest = (int(stat[28]), *map(int, stat[48:50]), at, at + size - 1)
told = struct.pack("=12QIi", *code, *data, *brk, *rest, 0, 0, -1)
PR_SET_MM, PR_SET_MM_MAP = 35, 14
long = ctypes.c_ulong
done = libc.prctl(PR_SET_MM, long(PR_SET_MM_MAP), told, long(len(told)), long(0))
print(done, flush=True)
time.sleep(1000)
"""
"""Its environment is a gigabyte of zeros: prctl(2), PR_SET_MM."""


def test_an_environment_without_end_is_not_read_to_the_end(system: OS) -> None:
    reading, writing = os.pipe2(os.O_CLOEXEC)
    child = born(
        system, system.launcher(launch(sys.executable, "-c", ENDLESS)).spawn(fds={1: writing})
    )
    os.close(writing)
    with open(reading, encoding="ascii") as file:
        is_set = file.readline() == "0\n"
    tracemalloc.start()
    try:
        system.leftovers({1: "m"}, ())
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        system.signal(child, signal.SIGKILL)
        ended(system, child)
    if not is_set:
        pytest.skip("the kernel lets nobody say where its environment is")
    assert most < 16 << 20


def test_what_descends_from_it_goes_with_it(system: OS, grow: Grow) -> None:
    text = "setsid sh -c 'env -i sleep 1000 & echo $!; wait' & echo $!; wait"
    tree = grow(text, "m3")
    tree.tell(2)
    dead = tree.die()
    eventually(lambda: system.leftovers({dead: "m3"}, ()) == {dead: set(tree.pids)})


def test_a_look_serves_many_and_tells_them_apart(system: OS, grow: Grow) -> None:
    trees = [grow(IN_SESSION if n % 2 else ESCAPED, f"many{n}") for n in range(6)]
    living = grow(IN_SESSION, "living")
    for n, tree in enumerate(trees):
        tree.tell(1 if n % 2 else 2)
    living.tell(1)
    dead = {tree.die(): f"many{n}" for n, tree in enumerate(trees)}

    def found_all() -> bool:
        left = system.leftovers(dead, {living.main.pid})
        return all(
            left[pid] == {one for one in tree.pids if alive(one)} and len(left[pid]) == 1
            for pid, tree in zip(dead, trees, strict=True)
        )

    eventually(found_all)


def test_a_session_of_another_with_the_pid_is_not_its(system: OS, grow: Grow) -> None:
    tree = grow("sleep 1000 & echo $!; wait", "another")
    (pid,) = tree.tell(1)
    eventually(lambda: process_system._marker(tree.main.pid) == "another")
    assert system.leftovers({tree.main.pid: "m"}, ()) == {tree.main.pid: set()}
    assert system.leftovers({tree.main.pid: "another"}, ()) == {tree.main.pid: {tree.main.pid, pid}}


def test_a_zombie_is_not_left_over(system: OS, grow: Grow) -> None:
    tree = grow("sleep 0 & echo $!; exec sleep 1000", "m4")
    (pid,) = tree.tell(1)
    eventually(lambda: not alive(pid))
    assert (
        tree.main.pid not in system.leftovers({tree.main.pid: "m4"}, {tree.main.pid})[tree.main.pid]
    )
    assert system.leftovers({tree.main.pid: "m4"}, {tree.main.pid}) == {tree.main.pid: set()}


def test_a_group_is_signalled(system: OS, grow: Grow) -> None:
    tree = grow(IN_SESSION, "m5")
    (pid,) = tree.tell(1)
    assert system.signal_group(tree.main.pid, signal.SIGKILL)
    assert tree.end()
    eventually(lambda: not alive(pid))


def test_the_group_of_the_dead_is_not_that_of_another_with_its_pid(system: OS, grow: Grow) -> None:
    tree = grow("sleep 1000 & echo $!; wait", "m5")
    (pid,) = tree.tell(1)
    assert not system.kill_group(tree.main.pid), "it lives, so it is not the one that has ended"
    tree.die()
    assert system.kill_group(tree.main.pid)
    eventually(lambda: not alive(pid))


def test_children_are_signalled_alone_or_with_theirs(system: OS, grow: Grow) -> None:
    tree = grow("sh -c 'sleep 1000 & echo $!; echo $$; exec sleep 1000' & exec sleep 1000", "m6")
    grandchild, child = tree.tell(2)
    assert not system.signal_child(tree.main, os.getpid(), signal.SIGURG)
    assert system.signal_child(tree.main, grandchild, signal.SIGURG)
    assert system.signal_children(tree.main, signal.SIGSTOP, recursive=False) == 1
    assert system.signal_children(tree.main, signal.SIGCONT, recursive=True) == 2
    assert system.signal_children(tree.main, signal.SIGKILL, recursive=True) == 2
    eventually(lambda: not alive(grandchild) and not alive(child))
    assert alive(tree.main.pid)


def test_strangers_are_reaped_and_mains_are_not(system: OS, grow: Grow) -> None:
    first = born(system, system.launcher(launch("true")).spawn())
    select.select([first.pidfd], [], [], WITHIN)
    tree = grow(ESCAPED, "m7")
    tree.tell(2)
    orphan = next(iter(tree.pids))
    dead = tree.die()
    eventually(lambda: any(alive(pid) for pid in system.leftovers({dead: "m7"}, ())[dead]))
    for pid in tree.pids:
        system.kill(pid)
    left: list[int] = []

    def reaped() -> bool:
        left.append(system.reap_strangers({first.pid}))
        return not any(os.path.exists(f"/proc/{pid}") for pid in tree.pids)

    eventually(reaped)
    assert sum(left) > 0, orphan
    assert ended(system, first) == 0, "its status is still to be had"
    assert system.reap_strangers(()) == 0


def test_children_that_others_wait_for_are_left_to_them(system: OS) -> None:
    """A hook that runs a program by subprocess must get its status."""
    theirs = born(system, system.launcher(launch("sh", "-c", "exit 5", new_session=False)).spawn())
    select.select([theirs.pidfd], [], [], WITHIN)
    assert system.reap_strangers(()) == 0
    assert ended(system, theirs) == 5


def test_the_last_strangers_are_killed(system: OS, grow: Grow) -> None:
    """Even those that cannot be told whose they are."""
    tree = grow(CLEAN_ROOM, "m8")
    (pid,) = tree.tell(1)
    dead = tree.die()
    assert alive(pid)
    assert system.leftovers({dead: "m8"}, ()) == {dead: set()}
    bystander = born(system, system.launcher(launch("sleep", "1000", new_session=False)).spawn())
    assert system.kill_strangers() == 1
    eventually(lambda: not alive(pid))
    assert alive(bystander.pid), "of our own session: not a stranger"
    system.signal(bystander, signal.SIGKILL)
    ended(system, bystander)


def test_a_daemon_that_inherited_an_ignored_sigchld_gets_statuses() -> None:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        process.become_subreaper()
        assert signal.getsignal(signal.SIGCHLD) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_the_declared_types_are_those_of_the_extension() -> None:
    stub = Path(process.__file__).parents[1] / "_native.pyi"
    (declared,) = (n for n in ast.parse(stub.read_text()).body if isinstance(n, ast.ClassDef))
    names = {n.name for n in declared.body if isinstance(n, ast.FunctionDef)}
    names |= {
        n.target.id
        for n in declared.body
        if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)
    }
    assert names <= set(dir(lib))
    functions = {name for name in dir(lib) if callable(getattr(lib, name))}
    assert functions <= names
