"""Owns a container: starts it, and when its standard input ends, kills it and cleans up.

`python -IS keeper.py ROOTFS:LAYER...`, the topmost layer last. Standard input ends when the
test's process does, however that happens. On standard output it says `up NAME PID`, the pid of
the container's PID 1, as soon as the boot is over, and `down` when the machine has powered off;
`failed` and what was printed, if it does neither.

The container is in namespaces of mounts and of processes of its own: with the process that
made them, all that lives in them goes, and every mount. systemd-nspawn alone, killed, leaves
the container's systemd running.
"""

from __future__ import annotations

import ctypes
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

BOOT_WITHIN = 120.0
PR_SET_PDEATHSIG = 1
START = """
mount -t tmpfs tmpfs /run/systemd/nspawn
mount -t overlay overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" "$2/root"
shift 2
exec systemd-nspawn "$@"
"""


def own_cgroups(name: str) -> list[Path]:
    """A directory for the container in each hierarchy: two in one would be mixed up there."""
    mounts: dict[str, str] = {}
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, where, kind, options = line.split()[:4]
        if kind == "cgroup2":
            mounts.setdefault("", where)
        elif kind == "cgroup":
            for option in options.split(","):
                mounts.setdefault(option, where)
    found = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        there = mounts.get(controllers) or mounts.get(controllers.split(",")[0])
        if there:
            found.append(Path(there, path.lstrip("/"), name))
    return found


def make_cgroup(path: Path) -> None:
    """Make one that processes can enter."""
    path.mkdir(exist_ok=True)
    for name in ("cpuset.cpus", "cpuset.mems"):
        if (path / name).exists():
            (path / name).write_text((path.parent / name).read_text())


def remove_cgroup(path: Path) -> None:
    """Remove one whose processes were killed: they may need a moment to be gone."""
    until = time.monotonic() + 60
    for directory, _, _ in os.walk(path, topdown=False):
        while True:
            try:
                os.rmdir(directory)
                break
            except FileNotFoundError:
                break
            except OSError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.01)


class Keeper:
    """The container, from its start to its end."""

    def __init__(self, lower: str) -> None:
        self.here = Path(tempfile.gettempdir(), f"sysup-lab-{os.urandom(6).hex()}")
        self.here.mkdir(0o700)
        for name in ("root", "upper", "work"):
            (self.here / name).mkdir()
        self.cgroups = own_cgroups(self.here.name)
        self.notices = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notices.bind(f"\0{self.here.name}")
        os.makedirs("/run/systemd/nspawn", exist_ok=True)
        for path in self.cgroups:
            make_cgroup(path)
        enter = "".join(f"echo $$ >'{path}/cgroup.procs'\n" for path in self.cgroups)
        with open(self.here / "console", "wb") as console:
            self.process = subprocess.Popen(
                [
                    *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
                    *("sh", "-ec", enter + START, "sh", lower, str(self.here)),
                    *("--quiet", f"--directory={self.here}/root", f"--machine={self.here.name}"),
                    *("--boot", "--register=no", "--keep-unit", "--private-network"),
                    *("--console=pipe", "--notify-ready=yes", "--link-journal=no"),
                    *("--resolv-conf=off", "--timezone=off", f"--uuid={os.urandom(16).hex()}"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                env={
                    **os.environ,
                    "NOTIFY_SOCKET": f"@{self.here.name}",
                    "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1",
                },
                preexec_fn=die_with(os.getpid()),
            )

    def leader(self) -> int:
        """The container's PID 1: of unshare the child is nspawn, and its child is that."""
        pid = self.process.pid
        for _ in range(2):
            pid = int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])
        return pid

    def watch(self) -> None:
        """Until standard input ends."""
        until = time.monotonic() + BOOT_WITHIN
        ended = os.pidfd_open(self.process.pid)
        is_up = False
        waiting = [0, self.notices.fileno(), ended]
        while True:
            left = None if is_up else max(0.0, until - time.monotonic())
            happened = select.select(waiting, [], [], left)[0]
            if 0 in happened:
                return
            if self.notices.fileno() in happened:
                lines = self.notices.recv(8192).decode().split("\n")
                if "READY=1" in lines and not is_up:
                    is_up = True
                    say(f"up {self.here.name} {self.leader()}")
            elif is_up:
                say("down")
                waiting = [0]
            else:
                console = (self.here / "console").read_text(errors="replace")[-3000:]
                say(f"failed {console or 'to boot in time'!r}")
                return

    def close(self) -> None:
        """Kill what lives, and remove what there is."""
        self.process.kill()
        self.process.wait()
        for path in self.cgroups:
            remove_cgroup(path)
        shutil.rmtree(self.here)


def die_with(parent: int) -> Callable[[], None]:
    """What a child does first so as to be killed when its parent ends."""

    def tie() -> None:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)

    return tie


def say(line: str) -> None:
    """Tell the test, if it is still there."""
    try:
        print(line, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


if __name__ == "__main__":
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)  # the end of standard input is the sign
    keeper = Keeper(sys.argv[1])
    try:
        keeper.watch()
    finally:
        keeper.close()
