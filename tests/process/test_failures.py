"""What can't be started: why, in words, and that nothing is left."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from sysup.process import OS, Launch, SpawnError
from sysup.process.system import stat_fields
from sysup.protocol import Errno, SysupError
from tests.process.real import (
    PATH,
    born,
    children,
    descriptors,
    ended,
    eventually,
    launch,
    output,
)


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
    before, ours = descriptors(), children()
    what = Launch(**{"argv": ["true"], "search": PATH, **options})
    with pytest.raises(SpawnError) as caught:
        born(system, system.launcher(what).spawn())
    error = caught.value
    assert (error.step, error.code, error.errno) == (step, code, Errno.OS_ERROR)
    assert str(error).startswith(message)
    assert descriptors() == before
    assert children() <= ours, "no process is left"


def test_a_user_may_not_become_another(system: OS) -> None:
    """Nor may root, without its capabilities: as in a container."""
    code = f"""
import sys
from sysup.process import OS, Launch, SpawnError
from tests.process.real import born
try:
    born(OS(), OS().launcher(Launch(argv=["/bin/true"], uid={os.getuid() + 1})).spawn())
except SpawnError as error:
    sys.stdout.write(str(error))
"""
    env = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    what = launch(sys.executable, "-c", code, capabilities=() if os.geteuid() == 0 else None)
    text = output(system, what._replace(env=env))
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
        born(system, system.launcher(launch(path)).spawn())
    assert caught.value.code == code
    with pytest.raises(SpawnError) as caught:
        born(system, system.launcher(launch("program", search=f"/nosuch:{tmp_path}")).spawn())
    assert caught.value.code == code


def test_a_directory_is_no_program(system: OS) -> None:
    with pytest.raises(SpawnError, match="cannot execute /usr: Permission denied"):
        born(system, system.launcher(launch("/usr")).spawn())


@pytest.mark.parametrize(
    "options",
    [
        {"argv": ["a\0b"]},
        {"argv": ["\ud800"]},
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
        born(system, system.launcher(Launch(argv=[])).spawn())


def test_a_thousand_failures_leave_nothing(system: OS) -> None:
    before, ours = descriptors(), children()
    launchers = [
        system.launcher(launch("nosuch")),
        system.launcher(launch("true", cwd="/nosuch")),
        system.launcher(launch("true", fds={0: 999})),
    ]
    for turn in range(1000):
        with pytest.raises(SpawnError):
            born(system, launchers[turn % 3].spawn())
    assert descriptors() == before
    assert children() <= ours, "no process is left"


def test_out_of_descriptors(system: OS) -> None:
    """The pidfd itself can't be had: said, and no process is left."""
    launcher, ours = system.launcher(launch("true")), children()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(SpawnError, match="cannot create a process: Too many open files"):
            born(system, launcher.spawn())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert children() <= ours


@pytest.fixture
def leased(tmp_path: Path) -> Iterator[str]:
    """A program whose owner lets nobody open it: who tries waits for /proc/sys/fs/lease-break-time
    (fcntl(2), F_SETLEASE)."""
    path = script(tmp_path, "#!/bin/true\n")
    fd = os.open(path, os.O_RDWR)
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)  # that somebody tries
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        yield path
    finally:
        os.close(fd)
        signal.signal(signal.SIGIO, before)


def test_a_program_that_does_not_answer_is_not_waited_for(system: OS, leased: str) -> None:
    launcher, before, ours = system.launcher(launch(leased)), descriptors(), children()
    waiting = [launcher.spawn() for _ in range(3)]
    assert output(system, launch("echo", "others start meanwhile")) == "others start meanwhile\n"
    for child in waiting:
        assert child.birth
        eventually(lambda pid=child.pid: stat_fields(pid)[0] == b"S")  # type: ignore[misc]
        with pytest.raises(BlockingIOError):
            child.birth.end()
        child.birth.overdue = True
        system.signal(child, signal.SIGKILL)
        with pytest.raises(SpawnError) as caught:
            born(system, child)
        assert str(caught.value) == f"cannot execute {leased}: no answer within 0 s"
        assert (caught.value.step, caught.value.code) == ("exec", errno.ETIME)
    assert (descriptors(), children()) == (before, ours)


def test_what_is_given_up_leaves_nothing_of_ours(system: OS, leased: str) -> None:
    before, ours = descriptors(), children()
    system.give_up(system.launcher(launch(leased)).spawn())
    system.give_up(system.launcher(launch("sleep", "1000")).spawn())
    assert descriptors() == before
    assert children() <= ours, "no process is left"


def test_on_the_way_it_holds_nothing_of_ours_open(system: OS, leased: str) -> None:
    """Who reads from what we close sees the end at once."""
    ends = [os.pipe2(os.O_CLOEXEC) for _ in range(3)]
    high = fcntl.fcntl(ends[2][1], fcntl.F_DUPFD_CLOEXEC, 300)
    child = system.launcher(launch(leased)).spawn(fds={200: ends[2][1]})
    for _, writing in ends:
        os.close(writing)
    os.close(high)
    poll = select.poll()
    for reading, _ in ends:
        poll.register(reading, select.POLLIN)
    eventually(lambda: len(poll.poll(0)) == 2)
    assert {fd for fd, _ in poll.poll(0)} == {ends[0][0], ends[1][0]}, "the third is its own"
    system.signal(child, signal.SIGKILL)
    ended(system, born(system, child))
    for reading, _ in ends:
        os.close(reading)


def test_its_end_is_enough_where_another_one_holds_its_sign(system: OS, leased: str) -> None:
    """A thread of ours may fork while the process is made, and has the sign open, too."""
    child, ours = system.launcher(launch(leased)).spawn(), children()
    assert child.birth
    directory, pipe = f"/proc/{child.pid}/fd", os.fstat(child.birth.sign).st_ino
    eventually(lambda: stat_fields(child.pid)[0] == b"S")
    (name,) = (n for n in os.listdir(directory) if os.stat(f"{directory}/{n}").st_ino == pipe)
    held = os.open(f"{directory}/{name}", os.O_WRONLY | os.O_CLOEXEC)
    system.signal(child, signal.SIGKILL)
    poll = select.poll()
    poll.register(child.pidfd, select.POLLIN)
    assert poll.poll(60000)
    system.end_birth(child)
    assert ended(system, child) == -signal.SIGKILL
    os.close(held)
    assert child.pid in ours - children()


ENDING = """
import sys
from sysup.process import OS, Launch
child = OS().launcher(Launch(argv=[sys.argv[1], *map(str, range(1000))])).spawn()
sys.stdout.write(f"{child.pid} {child.birth.is_over}")
"""


def test_it_does_not_outlive_the_interpreter(leased: str) -> None:
    """Its arguments are in memory that is free then, and would be anything."""
    done = subprocess.run(
        [sys.executable, "-c", ENDING, leased], capture_output=True, text=True, check=True
    )
    pid, is_over = done.stdout.split()
    assert is_over == "False"
    eventually(lambda: stat_fields(int(pid))[:1] in ([], [b"Z"]))


def test_a_signal_waits_for_the_program(system: OS, leased: str) -> None:
    """Else it would be lost, or end what still shares our memory."""
    child = system.launcher(launch(leased)).spawn()
    assert system.signal(child, signal.SIGQUIT)
    other = system.launcher(launch("sleep", "1000")).spawn()
    assert system.signal(other, signal.SIGQUIT)
    assert ended(system, born(system, other)) == -signal.SIGQUIT
    assert system.signal(child, signal.SIGKILL)
    assert ended(system, born(system, child)) == -signal.SIGKILL
