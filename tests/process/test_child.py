"""What a child is, seen from inside it."""

from __future__ import annotations

import gc
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import pytest

from sysup import config, process
from sysup.process import OS, Launch, SpawnError
from tests.process.real import (
    NOBODY,
    born,
    ended,
    launch,
    needs_root,
    output,
    status,
)


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
        assert ended(system, born(system, launcher.spawn(env={"N": str(number)}))) == number
    other = born(system, launcher.spawn(argv=["/bin/sh", "-c", "exit 7"]))
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
        child = born(
            system, system.launcher(launch("sh", "-c", "echo a; echo b >&0", fds=swapped)).spawn()
        )
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


def test_the_daemons_directory_by_its_shells_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "release").mkdir()
    (tmp_path / "current").symlink_to("release")
    monkeypatch.chdir(tmp_path / "current")
    for shown in ("", "/", "/no/such", "release", str(tmp_path)):
        assert process.own_directory({"PWD": shown}) == str(tmp_path / "release")
    assert process.own_directory({"PWD": str(tmp_path / "current")}) == str(tmp_path / "current")
    (tmp_path / "release").rmdir()
    assert process.own_directory({}) == ""


def test_what_the_scheduler_knows(system: OS) -> None:
    cpu = min(os.sched_getaffinity(0))
    what = launch("sh", "-c", "nice; cat /proc/self/oom_score_adj /proc/self/status")
    text = output(system, what._replace(nice=os.nice(0) + 3, oom_score_adj=800, cpus={cpu}))
    nice, adjusted, rest = text.split("\n", 2)
    assert (int(nice), adjusted) == (os.nice(0) + 3, "800")
    assert status(rest)["Cpus_allowed_list"] == str(cpu)


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
        born(system, system.launcher(launch("true", uid=NOBODY, cwd=str(closed))).spawn())


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
            born(system, system.launcher(launch("true")).spawn(cgroup_fd=fd))
    finally:
        os.close(fd)
    assert caught.value.step == "cgroup"


def test_its_oom_score_is_not_ours(system: OS) -> None:
    """The kernel gives it to all who share the memory."""
    ours = Path("/proc/self/oom_score_adj").read_text()
    assert output(system, launch("cat", "/proc/self/oom_score_adj", oom_score_adj=777)) == "777\n"
    assert Path("/proc/self/oom_score_adj").read_text() == ours


def test_many_at_once_are_what_they_are_to_be(system: OS) -> None:
    """Nobody waits for them, nor keeps what they are made of."""
    reading, writing = os.pipe2(os.O_CLOEXEC)
    made = []
    for number in range(50):
        what = launch("sh", fds={0: 0, 1: writing, 2: 2})._replace(env={"N": str(number)})
        argv = ["/bin/sh", "-c", 'echo "$N $0"', f"a{number}"]
        made.append(system.launcher(what).spawn(argv=argv))
        gc.collect(0)
    os.close(writing)
    assert [ended(system, born(system, child)) for child in made] == [0] * 50
    with open(reading) as file:
        assert sorted(file) == sorted(f"{number} a{number}\n" for number in range(50))


@needs_root
def test_who_starts_it_may_have_precedence() -> None:
    """And a child does not have it, nor its session."""
    program = """
import os
from pathlib import Path
from sysup.process import OS, take_precedence
from tests.process.real import launch, output
os.nice(3)
system = OS(nice=3)
os.setsid()
take_precedence()
group = Path("/proc/self/autogroup")
print(os.nice(0), group.read_text().split()[-1] if group.exists() else "-8")
print(output(system, launch("nice")), output(system, launch("nice", nice=-2)), sep="", end="")
show = launch("sh", "-c", "cat /proc/self/autogroup || echo nice 0")
print(output(system, show).split()[-1])
"""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True)
    assert (done.stdout.split(), done.stderr) == (["-20", "-8", "3", "-2", "0"], "")
