"""How long an app is without its daemon: after SIGKILL, and while it is upgraded.

On a machine of its own, with systemd as PID 1 (tests/lab). The clock is a client's: a request goes
out every few milliseconds, and what counts is when answers come. After a kill that holds what
systemd does before it starts the next daemon. What that costs PID 1 is measured once more with a
service that does nothing but leave as many processes behind, in cgroups likewise.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import zmq

from sysup import protocol
from tests.bench.peers import Peer
from tests.bench.run import Figures, Missing, Scale, Tools
from tests.e2e.harness import until
from tests.lab import Container, Unavailable
from tests.system.services import App
from tests.system.tree import booted, install

EVERY = 2
"""Milliseconds between two requests."""
WITHIN = 20.0
SETTLED = 3.0
"""Seconds after the start, or an end, before the next one: the lot is made anew meanwhile."""
PLAIN = "plain.service"
PLAIN_UNIT = """\
[Unit]
StartLimitIntervalSec=0
[Service]
ExecStart=/bin/sh /run/plain
KillMode=process
Delegate=yes
Restart=always
RestartSec=0
TasksMax=infinity
"""
PLAIN_SCRIPT = """\
cd /sys/fs/cgroup"$(sed -n s/^0:://p /proc/self/cgroup)" && mkdir -p daemon || exit
echo $$ >daemon/cgroup.procs
[ -d w ] || for i in $(seq {processes}); do
    mkdir -p w/many/$i
    sh -c 'echo $$ >"$0"/cgroup.procs; exec sleep {number}' w/many/$i &
done
exec sleep infinity
"""


def recovery(peer: Peer, tools: Tools, scale: Scale) -> Figures:
    """Kills and upgrades of a daemon with many children, of two pipes each."""
    with tempfile.TemporaryDirectory(prefix="sysup-bench-") as directory:
        tree = Path(directory)
        install(tree)
        try:
            with booted(tree) as machine:
                return _measure(machine, scale)
        except Unavailable as error:
            raise Missing(str(error)) from None


def _measure(machine: Container, scale: Scale) -> Figures:
    app = App(machine, "many")
    app.configure(scale.many)
    app.start()
    before = app.pids()
    kills = [_take(machine, app, kill) for _ in range(scale.recoveries)]
    upgrades = [_take(machine, app, upgrade) for _ in range(scale.recoveries)]
    if len(before) != scale.many or app.pids() != before:
        raise Missing(f"of {scale.many} processes {len(app.pids() & before)} run on")
    back, cpu, cpu_of_journald = zip(*kills, strict=True)
    gap = [seconds for seconds, _, _ in upgrades]
    app.systemctl("stop")
    plain = statistics.median(_plain(machine, scale))
    return {
        "back ms": 1000 * statistics.median(back),
        "at worst ms": 1000 * max(back),
        "PID 1 ms/kill": 1000 * statistics.median(cpu),
        "without sysup": 1000 * plain,
        "journald ms/kill": 1000 * statistics.median(cpu_of_journald),
        "upgrade gap ms": 1000 * statistics.median(gap),
        "at worst  ms": 1000 * max(gap),
    }


def _take(machine: Container, app: App, end: Callable[[App], None]) -> tuple[float, float, float]:
    """Seconds without an answer around the end of a daemon; of PID 1's and journald's time."""
    time.sleep(SETTLED)
    machine.run(["journalctl", "--sync"])
    pids = [machine.leader, _journald(machine)]
    used = [cpu_of(pid) for pid in pids]
    answers = Answers(machine.path(f"/run/sysup/{app.name}/control"))
    _, takeovers = next(answers)
    longest, last = 0.0, time.monotonic()
    end(app)
    for at, number in answers:
        longest, last = max(longest, at - last), at
        if number > takeovers:
            break
    answers.close()
    machine.run(["journalctl", "--sync"])
    time.sleep(SETTLED / 3)
    now = [cpu_of(pid) for pid in pids]
    return longest, now[0] - used[0], now[1] - used[1]


def _plain(machine: Container, scale: Scale) -> list[float]:
    """Seconds of PID 1's time for each kill of a service that is not sysup."""
    number = 7_000_000
    machine.write("/run/plain", PLAIN_SCRIPT.format(processes=scale.many, number=number))
    machine.write(f"/run/systemd/system/{PLAIN}", PLAIN_UNIT)
    machine.run(["systemctl", "daemon-reload"])
    machine.run(["systemctl", "start", PLAIN])
    until(lambda: len(machine.pids(f"sleep {number}")) == scale.many, "they run", 300)
    main = machine.path(f"/sys/fs/cgroup/system.slice/{PLAIN}/daemon/cgroup.procs")
    return [_take_plain(machine, main) for _ in range(scale.recoveries)]


def _take_plain(machine: Container, main: Path) -> float:
    time.sleep(SETTLED)
    used, pid = cpu_of(machine.leader), main.read_text()
    os.kill(int(pid), signal.SIGKILL)
    until(lambda: main.exists() and main.read_text() not in ("", pid), "it runs again")
    time.sleep(SETTLED / 3)
    return cpu_of(machine.leader) - used


def kill(app: App) -> None:
    """By SIGKILL."""
    os.kill(int((app.cgroup / "daemon" / "cgroup.procs").read_text()), signal.SIGKILL)


def upgrade(app: App) -> None:
    """By the signal, which needs no client."""
    os.kill(int((app.cgroup / "daemon" / "cgroup.procs").read_text()), signal.SIGUSR2)


class Answers(Iterator[tuple[float, int]]):
    """Asks again and again: when each answer came, and the number of takeovers it tells."""

    def __init__(self, path: Path) -> None:
        self._context = zmq.Context()
        self._peer = self._context.socket(zmq.DEALER)
        self._peer.linger = 0
        self._peer.reconnect_ivl = 1
        self._peer.connect(f"ipc://{path}")
        self._until = time.monotonic() + WITHIN

    def __next__(self) -> tuple[float, int]:
        while True:
            self._peer.send(protocol.encode_request(protocol.Request("version", {}, 0)))
            if self._peer.poll(EVERY):
                reply = json.loads(self._peer.recv())
                return time.monotonic(), int(reply["takeovers"])
            if time.monotonic() > self._until:
                raise Missing("the daemon does not answer any more")

    def close(self) -> None:
        """Ask no more."""
        self._peer.close()
        self._context.term()


def cpu_of(pid: int) -> float:
    """Seconds of processor time that a process has used, of one thread."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def _journald(machine: Container) -> int:
    cgroup = "/sys/fs/cgroup/system.slice/systemd-journald.service/cgroup.procs"
    return int(machine.path(cgroup).read_text())
