"""The seam to the system, on real processes: what a child is, how it ends, what it leaves."""

from __future__ import annotations

import ast
import errno
import os
import pwd
import re
import resource
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from sysup import config, process
from sysup._native import lib
from sysup.process import MARKER, OS, Launch, Process, SpawnError, identity
from sysup.protocol import Errno, SysupError

NOBODY = 65534
PATH = "/usr/bin:/bin"
WITHIN = 20.0
"""Seconds after which what should have happened never will."""

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="root can prove this, a user can't")


@pytest.fixture
def system() -> OS:
    return OS()


def launch(*argv: str, **options: Any) -> Launch:
    """What a test starts: with this PATH and our output, if it isn't told otherwise."""
    return Launch(argv=argv, env={"PATH": PATH}, **{"search": PATH, **options})


def ended(system: OS, child: Process) -> int | None:
    """Wait for its end by the pidfd, as the daemon does; returns its status, lets go of it."""
    poll = select.poll()
    poll.register(child.pidfd, select.POLLIN)
    assert poll.poll(WITHIN * 1000), "it should have ended"
    status = system.wait(child)
    system.close(child)
    return status


def output(system: OS, what: Launch, **options: Any) -> str:
    """Run it to its end; returns what it printed."""
    reading, writing = os.pipe2(os.O_CLOEXEC)
    try:
        child = system.launcher(what).spawn(fds={1: writing}, **options)
    finally:
        os.close(writing)
    with open(reading, encoding="utf-8", errors="surrogateescape") as file:
        text = file.read()
    assert ended(system, child) == 0
    return text


def status(text: str) -> dict[str, str]:
    """/proc/PID/status as a mapping."""
    return dict(line.split(":\t", 1) for line in text.splitlines())


def eventually(condition: Callable[[], bool]) -> None:
    """Wait for what no descriptor tells."""
    deadline = time.monotonic() + WITHIN
    while not condition():
        assert time.monotonic() < deadline, "it should have happened by now"
        select.select([], [], [], 0.002)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def no_child_is_left() -> bool:
    try:
        return os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
    except ChildProcessError:
        return True


# ---- what a child is ---------------------------------------------------------------------


def test_arguments_and_environment_are_exact(system: OS) -> None:
    what = Launch(argv=["name of its own", "-c", 'env; echo "$0"'], file="/bin/sh", env={"A": "1"})
    lines = set(output(system, what, env={"B": "ü\udcff=2"}).splitlines()) - {"_=/usr/bin/env"}
    assert {line for line in lines if not line.startswith("PWD=")} == {
        "A=1",
        "B=ü\udcff=2",
        "name of its own",
    }


def test_one_launcher_starts_what_differs(system: OS) -> None:
    launcher = system.launcher(launch("/bin/sh", "-c", 'exit "$N"'))
    for number in (3, 4):
        assert ended(system, launcher.spawn(env={"N": str(number)})) == number
    other = launcher.spawn(argv=["/bin/sh", "-c", "exit 7"])
    assert ended(system, other) == 7


def test_the_program_is_searched_for(system: OS, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_text("#!/bin/sh\necho found\n")
    mine.chmod(0o755)
    assert output(system, launch("mine", search=f"/nonexistent:{tmp_path}")) == "found\n"
    assert output(system, launch("./mine", cwd=str(tmp_path))) == "found\n"


def test_the_directory(system: OS, tmp_path: Path) -> None:
    assert output(system, launch("pwd", cwd=str(tmp_path))) == f"{tmp_path}\n"


def test_nothing_leaks(system: OS) -> None:
    """Descriptors: the ones it was given, and no other, inheritable or not."""
    leak = os.dup(2)
    os.set_inheritable(leak, True)

    def seen(fds: Mapping[int, int]) -> set[int]:
        rows = output(system, launch("ls", "-l", "/proc/self/fd", fds=fds)).splitlines()
        links = [row.partition(" -> ") for row in rows if " -> " in row]
        its_own = re.compile(r"/proc/\d+/fd")  # that ls has just opened, to look
        return {int(left.split()[-1]) for left, _, at in links if not its_own.fullmatch(at)}

    try:
        assert seen({0: 0, 7: 2}) == {0, 1, 7}
        assert seen({}) == {1}
        assert seen({leak: leak}) == {1, leak}
    finally:
        os.close(leak)


def test_descriptors_may_change_places(system: OS) -> None:
    reading, writing = os.pipe2(os.O_CLOEXEC)
    with open(reading, encoding="utf-8") as file:
        swapped = {0: writing, writing: 2, 1: writing, 2: 1}
        child = system.launcher(launch("sh", "-c", "echo a; echo b >&0", fds=swapped)).spawn()
        os.close(writing)
        assert ended(system, child) == 0
        assert file.read() == "a\nb\n"


def test_a_session_of_its_own(system: OS) -> None:
    script = "read -r pid name state ppid group session rest </proc/$$/stat; echo $group $session"
    own = output(system, launch("sh", "-c", f"echo $$; {script}")).split()
    assert own[0] == own[1] == own[2]
    ours = output(system, launch("sh", "-c", script, new_session=False)).split()
    assert ours == [str(os.getpgrp()), str(os.getsid(0))]


def test_signals_are_as_new(system: OS) -> None:
    """Python ignores SIGPIPE, and that would be inherited."""
    assert signal.getsignal(signal.SIGPIPE) is signal.SIG_IGN
    before = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    old_mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        seen = status(output(system, launch("cat", "/proc/self/status")))
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == old_mask | {signal.SIGTERM}
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old_mask)
        signal.signal(signal.SIGUSR2, before)
    assert int(seen["SigIgn"], 16) == int(seen["SigBlk"], 16) == 0


def test_limits_soft_hard_and_infinite(system: OS) -> None:
    limits = (("nofile", 500, 500), ("core", 0, None), ("stack", 1 << 20, 2 << 20))
    text = output(system, launch("cat", "/proc/self/limits", rlimits=limits))
    rows = {line[:25].strip(): line[25:].split() for line in text.splitlines()}
    assert rows["Max open files"][:2] == ["500", "500"]
    hard_core = resource.getrlimit(resource.RLIMIT_CORE)[1]
    assert hard_core == resource.RLIM_INFINITY
    assert rows["Max core file size"][:2] == ["0", "unlimited"]
    assert rows["Max stack size"][:2] == [str(1 << 20), str(2 << 20)]


def test_infinite_descriptors_are_as_many_as_may_be(system: OS) -> None:
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    what = launch("sh", "-c", "ulimit -Sn; ulimit -Hn", rlimits=(("nofile", None, None),))
    assert output(system, what).split() == [str(most)] * 2


def test_children_get_the_daemons_first_limit_of_descriptors() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1] - 1, before[1]))
    try:
        nofile = process.raise_nofile()
        assert nofile == (before[1] - 1, before[1])
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (before[1], before[1])
        shown = launch("sh", "-c", "ulimit -Sn; ulimit -Hn")
        assert output(OS(nofile), shown).split() == [str(before[1] - 1), str(before[1])]
        own = launch("sh", "-c", "ulimit -Sn", rlimits=(("nofile", 77, 88),))
        assert output(OS(nofile), own).split() == ["77"]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_what_the_scheduler_knows(system: OS) -> None:
    cpu = min(os.sched_getaffinity(0))
    what = launch("sh", "-c", "nice; cat /proc/self/oom_score_adj /proc/self/status")
    text = output(system, process_with(what, nice=os.nice(0) + 3, oom_score_adj=800, cpus={cpu}))
    nice, adjusted, rest = text.split("\n", 2)
    assert (int(nice), adjusted) == (os.nice(0) + 3, "800")
    assert status(rest)["Cpus_allowed_list"] == str(cpu)


def process_with(what: Launch, **options: Any) -> Launch:
    return Launch(**{name: getattr(what, name) for name in what.__dataclass_fields__} | options)


def test_umask_and_no_new_privileges(system: OS) -> None:
    what = launch("cat", "/proc/self/status", umask=0o27, no_new_privs=True)
    seen = status(output(system, what))
    assert (seen["Umask"], seen["NoNewPrivs"]) == ("0027", "1")
    seen = status(output(system, launch("cat", "/proc/self/status")))
    ours = status(Path("/proc/self/status").read_text())
    assert (seen["Umask"], seen["NoNewPrivs"]) == (ours["Umask"], ours["NoNewPrivs"])


def test_listen_pid_is_its_own(system: OS) -> None:
    script = 'test "$LISTEN_PID" = $$ && test "$LISTEN_FDS" = 1 && echo yes'
    what = launch("sh", "-c", script, listen_pid=True)
    assert output(system, what, env={"LISTEN_FDS": "1"}) == "yes\n"


@needs_root
def test_ids_and_groups(system: OS) -> None:
    what = launch("cat", "/proc/self/status", uid=NOBODY, gid=12, groups=(4, 20))
    seen = status(output(system, what))
    assert seen["Uid"].split() == [str(NOBODY)] * 4
    assert seen["Gid"].split() == ["12"] * 4
    assert seen["Groups"].split() == ["4", "20"]
    assert int(seen["CapEff"], 16) == 0


@needs_root
def test_the_new_user_enters_the_directory(system: OS, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(SpawnError, match=r"cannot change to directory .*closed: Permission"):
        system.launcher(launch("true", uid=NOBODY, cwd=str(closed))).spawn()


@needs_root
def test_capabilities_are_kept_across_the_user(system: OS) -> None:
    names = ("CAP_NET_BIND_SERVICE", "CAP_KILL")
    what = launch("cat", "/proc/self/status", uid=NOBODY, gid=NOBODY, capabilities=names)
    seen = status(output(system, what))
    sets = {seen[f"Cap{name}"] for name in ("Inh", "Prm", "Eff", "Bnd", "Amb")}
    assert {int(one, 16) for one in sets} == {1 << 10 | 1 << 5}
    seen = status(output(system, launch("cat", "/proc/self/status", capabilities=())))
    assert int(seen["CapEff"], 16) == int(seen["CapBnd"], 16) == 0


def test_names_are_the_kernels() -> None:
    assert process.CAPABILITIES["CAP_CHOWN"] == 0
    assert process.CAPABILITIES["CAP_CHECKPOINT_RESTORE"] == 40
    assert set(config.RLIMITS) == set(process.RLIMITS) - {"ofile"}


# ---- who ---------------------------------------------------------------------------------


def test_nobody_named_is_the_daemons_user() -> None:
    who = identity(None, None, None)
    entry = pwd.getpwuid(os.geteuid())
    assert (who.uid, who.gid, who.groups) == (None, None, None)
    assert (who.name, who.home) == (entry.pw_name, entry.pw_dir)


@pytest.mark.parametrize("uid", ["root", "0"])
def test_a_user_brings_its_groups(uid: str) -> None:
    who = identity(uid, None, None)
    assert (who.uid, who.gid, who.name) == (0, 0, "root")
    assert who.groups == tuple(os.getgrouplist("root", 0))


def test_groups_by_name_and_number() -> None:
    assert identity(None, "12", ["0", "daemon"]) == identity(None, "12", ["root", "1"])
    assert identity("root", "daemon", None).gid == 1
    assert identity(None, "daemon", None).groups is None, "as Circus: only a user brings groups"


def test_a_number_without_an_entry() -> None:
    with pytest.raises(SysupError, match="cannot find a group for user 54321"):
        identity("54321", None, None)
    who = identity("54321", "12", None)
    assert (who.uid, who.gid, who.groups, who.name) == (54321, 12, (12,), "54321")


def test_an_unknown_name_is_told() -> None:
    with pytest.raises(SysupError, match=r"^cannot find user 'nosuch'$"):
        identity("nosuch", None, None)
    with pytest.raises(SysupError, match=r"^cannot find group 'nosuch'$"):
        identity(None, "nosuch", None)
    with pytest.raises(SysupError, match=r"^cannot find group 'nosuch'$"):
        identity(None, None, ["nosuch"])


def test_ones_own_groups_need_no_right(system: OS) -> None:
    """So that a daemon without privileges may name the user that it is."""
    mine = tuple(os.getgroups())
    assert output(system, launch("echo", "ok", uid=os.getuid(), groups=mine)) == "ok\n"


# ---- what can't be -----------------------------------------------------------------------


def script(tmp_path: Path, text: str, mode: int = 0o755) -> str:
    path = tmp_path / "program"
    path.write_text(text)
    path.chmod(mode)
    return str(path)


FAILURES: Mapping[str, tuple[dict[str, Any], int, str]] = {
    "exec": ({"argv": ["nosuch"]}, errno.ENOENT, "cannot execute nosuch: No such file or"),
    "cwd": ({"cwd": "/nosuch"}, errno.ENOENT, "cannot change to directory /nosuch: No such"),
    "oom_score_adj": ({"oom_score_adj": 2000}, errno.EINVAL, "cannot set oom_score_adj to 2000: "),
    "affinity": ({"cpus": [1000]}, errno.EINVAL, "cannot set cpu affinity to 1000: "),
    "rlimit": (
        {"rlimits": (("core", 0, 0), ("nofile", 9, 5))},
        errno.EINVAL,
        "cannot set rlimit_nofile to 9:5: Invalid argument",
    ),
    "fds": ({"fds": {1: 1, 5: 999}}, errno.EBADF, "cannot make descriptor 999 its descriptor 5: "),
    "groups": ({"groups": [2**32 - 1]}, errno.EINVAL, "cannot set groups 4294967295: "),
    "gid": ({"gid": 2**32}, errno.EINVAL, "cannot set group 4294967296: Invalid"),
    "uid": ({"uid": 2**32 - 1}, errno.EINVAL, "cannot set user 4294967295: Invalid"),
}


@pytest.mark.parametrize("step", FAILURES)
def test_the_failed_step_is_named(step: str, system: OS) -> None:
    options, code, message = FAILURES[step]
    if step == "groups" and os.geteuid() != 0:
        code, message = errno.EPERM, "cannot set groups"
    before = descriptors()
    what = Launch(**{"argv": ["true"], "search": PATH, **options})
    with pytest.raises(SpawnError) as caught:
        system.launcher(what).spawn()
    error = caught.value
    assert (error.step, error.code, error.errno) == (step, code, Errno.OS_ERROR)
    assert str(error).startswith(message)
    assert descriptors() == before
    assert no_child_is_left()


def test_a_user_may_not_become_another(system: OS) -> None:
    """Nor may root, without its capabilities: as in a container."""
    code = f"""
import sys
from sysup.process import OS, Launch, SpawnError
try:
    OS().launcher(Launch(argv=["/bin/true"], uid={os.getuid() + 1})).spawn()
except SpawnError as error:
    sys.stdout.write(str(error))
"""
    env = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    what = launch(sys.executable, "-c", code, capabilities=() if os.geteuid() == 0 else None)
    text = output(system, process_with(what, env=env))
    assert text == f"cannot set user {os.getuid() + 1}: Operation not permitted"


@pytest.mark.parametrize(
    ("text", "mode", "code", "message"),
    [
        ("#!/bin/sh\n", 0o644, errno.EACCES, "Permission denied"),
        ("echo hello\n", 0o755, errno.ENOEXEC, r"Exec format error \(a script begins with"),
        ("#!/nosuch/sh\n", 0o755, errno.ENOENT, r"No such file or directory \(the program is th"),
    ],
)
def test_what_is_no_program(
    text: str, mode: int, code: int, message: str, tmp_path: Path, system: OS
) -> None:
    path = script(tmp_path, text, mode)
    with pytest.raises(SpawnError, match=f"^cannot execute {path}: {message}") as caught:
        system.launcher(launch(path)).spawn()
    assert caught.value.code == code
    with pytest.raises(SpawnError) as caught:
        system.launcher(launch("program", search=f"/nosuch:{tmp_path}")).spawn()
    assert caught.value.code == code


def test_a_directory_is_no_program(system: OS) -> None:
    with pytest.raises(SpawnError, match="cannot execute /usr: Permission denied"):
        system.launcher(launch("/usr")).spawn()


@pytest.mark.parametrize(
    "options",
    [
        {"argv": ["a\0b"]},
        {"argv": ["true"], "env": {"A": "\0"}},
        {"argv": ["true"], "cwd": "\0"},
        {"argv": ["true"], "rlimits": (("nosuch", 1, 1),)},
        {"argv": ["true"], "rlimits": (("core", -1, 1),)},
        {"argv": ["true"], "capabilities": ["CAP_NOSUCH"]},
        {"argv": ["true"], "nice": 1 << 40},
        {"argv": ["true"], "groups": [-1]},
        {"argv": ["true"], "cpus": [-1]},
        {"argv": ["true"], "cpus": [1 << 40]},
        {"argv": ["true"], "uid": -1},
        {"argv": ["true"], "gid": -5},
        {"argv": ["true"], "umask": -1},
    ],
)
def test_what_cannot_be_said_to_the_system(options: dict[str, Any], system: OS) -> None:
    with pytest.raises(SysupError, match=r"^cannot "):
        system.launcher(Launch(**options))


def test_no_program_at_all(system: OS) -> None:
    with pytest.raises(SysupError, match="no program"):
        system.launcher(Launch(argv=[])).spawn()


def test_a_thousand_failures_leave_nothing(system: OS) -> None:
    before = descriptors()
    launchers = [
        system.launcher(launch("nosuch")),
        system.launcher(launch("true", cwd="/nosuch")),
        system.launcher(launch("true", fds={0: 999})),
    ]
    for turn in range(1000):
        with pytest.raises(SpawnError):
            launchers[turn % 3].spawn()
    assert descriptors() == before
    assert no_child_is_left()


def test_out_of_descriptors(system: OS) -> None:
    """The pidfd itself can't be had: said, and no process is left."""
    launcher = system.launcher(launch("true"))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(SpawnError, match="cannot create a process: Too many open files"):
            launcher.spawn()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert no_child_is_left()


# ---- cgroups -----------------------------------------------------------------------------


@pytest.fixture
def cgroup() -> Iterator[Path]:
    for root in (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified")):
        path = root / f"sysup-test-{os.getpid()}"
        if (root / "cgroup.procs").exists() and os.access(root, os.W_OK):
            with suppress(OSError):
                path.mkdir()
                break
    else:
        pytest.skip("no cgroup v2 here that we may make groups in")
    yield path
    path.rmdir()


@pytest.mark.may_skip
def test_born_into_a_cgroup(system: OS, cgroup: Path) -> None:
    fd = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        text = output(system, launch("cat", "/proc/self/cgroup"), cgroup_fd=fd)
    finally:
        os.close(fd)
    assert f"/{cgroup.name}\n" in text


def test_what_is_no_cgroup(system: OS, tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with pytest.raises(SpawnError, match=r"^cannot join its cgroup: ") as caught:
            system.launcher(launch("true")).spawn(cgroup_fd=fd)
    finally:
        os.close(fd)
    assert caught.value.step == "cgroup"


# ---- a process that runs -----------------------------------------------------------------


def idle(system: OS, *, env: Mapping[str, str] | None = None) -> Process:
    """One that does nothing until a signal ends it."""
    return system.launcher(launch("sleep", "1000")).spawn(env=env)


def test_its_end_is_told_by_the_pidfd(system: OS) -> None:
    child = idle(system)
    assert system.wait(child) is None
    assert system.signal(child, signal.SIGTERM)
    assert ended(system, child) == -signal.SIGTERM


def test_an_exit_code(system: OS) -> None:
    assert ended(system, system.launcher(launch("sh", "-c", "exit 3")).spawn()) == 3


def test_one_that_has_gone_is_no_error(system: OS) -> None:
    child = system.launcher(launch("true")).spawn()
    pid = child.pid
    assert ended(system, child) == 0
    assert not system.signal(child, signal.SIGTERM)
    assert not system.set_limit(child, "nofile", 5, 5)
    assert not system.signal_group(pid, signal.SIGKILL)
    assert not system.kill(pid)
    system.close(child)


def test_reaped_but_not_closed(system: OS) -> None:
    child = system.launcher(launch("true")).spawn()
    os.waitid(os.P_PIDFD, child.pidfd, os.WEXITED)
    assert not system.signal(child, signal.SIGTERM)
    assert not system.set_limit(child, "core", 0, 0)
    assert system.wait(child) is None
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


# ---- those around it ---------------------------------------------------------------------


@pytest.fixture
def adopts() -> None:
    """Orphans become our children; it stays so, and harms no other test."""
    process.become_subreaper()


class Tree:
    """A process that has started others, which told their pids; all are killed in the end."""

    def __init__(self, system: OS, text: str, marker: str) -> None:
        reading, writing = os.pipe2(os.O_CLOEXEC)
        launcher = system.launcher(launch("sh", "-c", text, "sh", sys.executable))
        self.main = launcher.spawn(env={MARKER: marker}, fds={1: writing})
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
        self._file.close()
        for pid in self.pids:
            self._system.kill(pid)
        eventually(lambda: self._system.reap_strangers(()) >= 0 and no_child_is_left())


IN_SESSION = "sleep 1000 & echo $!; wait"
ESCAPED = "setsid sh -c 'sh -c \"echo \\$\\$; exec sleep 1000\" & sleep 0' & echo $!; wait"
"""A grandchild in a session of its own, whose parent and grandparent end."""
CLEAN_ROOM = "setsid env -i sleep 1000 & echo $!; wait"


@pytest.fixture
def grow(system: OS, adopts: None) -> Iterator[Callable[[str, str], Tree]]:
    trees: list[Tree] = []

    def grow(text: str, marker: str) -> Tree:
        trees.append(Tree(system, text, marker))
        return trees[-1]

    yield grow
    for tree in trees:
        if tree.main.pidfd >= 0:
            tree.die()
    for tree in trees:
        tree.close()


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


def test_children_are_signalled_alone_or_with_theirs(system: OS, grow: Grow) -> None:
    tree = grow("sh -c 'sleep 1000 & echo $!; echo $$; wait' & wait; exec sleep 1000", "m6")
    grandchild, child = tree.tell(2)
    assert not system.signal_child(tree.main, os.getpid(), signal.SIGURG)
    assert system.signal_child(tree.main, grandchild, signal.SIGURG)
    assert system.signal_children(tree.main, signal.SIGSTOP, recursive=False) == 1
    assert system.signal_children(tree.main, signal.SIGCONT, recursive=True) == 2
    assert system.signal_children(tree.main, signal.SIGKILL, recursive=True) == 2
    eventually(lambda: not alive(grandchild) and not alive(child))
    assert alive(tree.main.pid)


def test_strangers_are_reaped_and_mains_are_not(system: OS, grow: Grow) -> None:
    first = system.launcher(launch("true")).spawn()
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
    theirs = system.launcher(launch("sh", "-c", "exit 5", new_session=False)).spawn()
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
    bystander = system.launcher(launch("sleep", "1000", new_session=False)).spawn()
    assert system.kill_strangers() == 1
    assert not alive(pid)
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


# ---- the border --------------------------------------------------------------------------


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
