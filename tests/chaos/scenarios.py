"""What is done to an app, each on a machine of its own, and what became of it."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

from tests.chaos.mixed import mixed
from tests.chaos.stage import LOGS, PATIENCE, Outcome, Scale, Stage, staged
from tests.e2e.harness import until

QUEUE = 513
"""Entries that the journal's socket holds at most (unix(7), max_dgram_qlen, and one)."""
CLOSED = 2
"""How often it is closed when journald is to be away: what comes in may open it once more."""


TO_THE_END = "restart = never\ndrain_timeout = 60"
"""Of writers that end by themselves: a stop waits until what they wrote is where it is to be,
which on a loaded machine takes longer than the second that it is given else."""


def begin(stage: Stage, scale: Scale) -> None:
    """Half of the children write to the journal, half to one file."""
    half = scale.children // 2
    stage.add("journal", half, "halves", pause=3 * scale.pause, more=TO_THE_END)
    stage.add(
        "file",
        scale.children - half,
        "halves",
        pause=scale.pause,
        to_file=True,
        more=TO_THE_END,
    )
    stage.start(scale.children)


def end(stage: Stage, scale: Scale, *notes: str) -> Outcome:
    """Let all end by themselves, and see what is there."""
    again = len(stage.written()) - scale.children
    missing = scale.children - len(stage.processes())
    stage.end_writers()
    stage.app.systemctl("stop")
    return Outcome(stage.tally(), stage.kills, max(again, missing), tuple(notes))


def kill(stage: Stage, scale: Scale) -> Outcome:
    """The daemon is killed at any moment, also while it takes over from the one before."""
    begin(stage, scale)
    stage.kill_at_random(scale.kills)
    restarts = stage.app.show("NRestarts")
    return end(stage, scale, f"{restarts} restarts by systemd")


def upgrade(stage: Stage, scale: Scale) -> Outcome:
    """The daemon becomes the program that is installed, at any moment."""
    begin(stage, scale)
    daemon = stage.daemon()
    for _ in range(scale.upgrades):
        time.sleep(stage.rand.uniform(0, 0.5))
        stage.app.ctl("upgrade")
    takeovers = stage.answer()["takeovers"]
    assert takeovers == scale.upgrades, takeovers
    assert stage.daemon() == daemon
    return end(stage, scale, f"{takeovers} upgrades")


# ---- stop ------------------------------------------------------------------------------------


def running(stage: Stage) -> None:
    """It serves."""
    stage.answer()


def killed(stage: Stage) -> None:
    """The daemon was killed a moment before."""
    stage.answer()
    os.kill(stage.daemon(), signal.SIGKILL)
    stage.kills += 1
    time.sleep(stage.rand.uniform(0, 0.4))


def hangs(stage: Stage) -> None:
    """The daemon was stopped by SIGSTOP."""
    stage.answer()
    os.kill(stage.daemon(), signal.SIGSTOP)


def starting(stage: Stage) -> None:
    """It is in the middle of its start."""
    time.sleep(stage.rand.uniform(0, 0.5))


def restarting(stage: Stage) -> None:
    """systemd waits before it starts the next daemon."""
    stage.answer()
    os.kill(stage.daemon(), signal.SIGKILL)
    stage.kills += 1
    until(lambda: stage.app.show("SubState") == "auto-restart", "systemd waits", PATIENCE)


def taking_over(stage: Stage) -> None:
    """The daemon takes over from the one before."""
    stage.answer()
    stage.kill()
    time.sleep(stage.rand.uniform(0, 0.3))


def killed_in_it(stage: Stage) -> None:
    """The daemon is killed in the middle of the stop."""
    stage.answer()
    stage.app.systemctl("stop", "--no-block")
    time.sleep(stage.rand.uniform(0, 0.1))
    if pid := stage.daemon():
        os.kill(pid, signal.SIGKILL)
        stage.kills += 1


STATES: tuple[Callable[[Stage], None], ...] = (
    *(running, killed, hangs, starting, restarting, taking_over, killed_in_it),
)


def stop(stage: Stage, scale: Scale) -> Outcome:
    """`systemctl stop` in any state leaves no process and no cgroup."""
    stage.add("tree", scale.children, "child", pause=20_000)
    stage.start(0)
    left, slowest, total = [], 0.0, len(STATES) * scale.stops
    for number in range(total):
        state = STATES[number % len(STATES)]
        pause = 600 if state is restarting else 0.1  # time to stop it in, however slow
        stage.app.drop_in(f"[Service]\nTimeoutStopSec=1\nRestartSec={pause}\n")
        stage.app.systemctl("start", *(["--no-block"] if state is starting else []))
        state(stage)
        stage.app.systemctl("stop")
        stopped = time.monotonic()
        while not stage.is_gone() and time.monotonic() < stopped + PATIENCE:
            time.sleep(0.005)
        slowest = max(slowest, time.monotonic() - stopped)
        if not stage.is_gone():
            left.append(f"{state.__name__}: {len(stage.processes())} processes are left")
            stage.machine.run(["pkill", "-KILL", "-x", "writer"], check=False)
    stage.end_writers()
    notes = f"{total} stops in {len(STATES)} states, all gone {slowest:.2f} s later at the latest"
    return Outcome(None, stage.kills, 0, (notes,), tuple(left))


# ---- journald and a full disk ----------------------------------------------------------------


@contextmanager
def under_kills(stage: Stage, kills: int) -> Iterator[None]:
    """The daemon is killed meanwhile, so often."""
    failed: list[BaseException] = []

    def work() -> None:
        try:
            stage.kill_at_random(kills)
        except AssertionError as error:
            failed.append(error)

    thread = Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        thread.join()
    if failed:
        raise failed[0]


def switch_journald(stage: Stage, verb: str, state: str) -> None:
    """Start it, or stop it, with its sockets.

    A socket that is closed last may have started it once more; then it is told again.
    """
    units = [f"systemd-journald{name}" for name in (".socket", "-dev-log.socket", ".service")]

    def is_so() -> bool:
        stage.machine.run(["systemctl", "reset-failed", *units], check=False)
        stage.machine.run(["systemctl", "--no-block", verb, *units])
        deadline = time.monotonic() + 2
        while time.monotonic() < deadline:
            found = stage.machine.run(["systemctl", "is-active", *units], check=False).stdout
            if set(found.split()) == {state}:
                return True
        return False

    until(is_so, f"journald is {state}", PATIENCE)


def journald(stage: Stage, scale: Scale) -> Outcome:
    """journald is restarted, hangs, and is away with its sockets for a while."""
    begin(stage, scale)
    away: list[tuple[float, float]] = []

    def pause(most: float) -> None:
        time.sleep(stage.rand.uniform(0.1, most))

    with under_kills(stage, scale.kills // 4):
        for _ in range(scale.rounds):
            stage.machine.run(["systemctl", "restart", "systemd-journald"])
            pause(0.6)
            stage.machine.run(["pkill", "-STOP", "-x", "systemd-journal"])
            pause(1.5)
            stage.machine.run(["pkill", "-CONT", "-x", "systemd-journal"])
            pause(0.6)
            stopped = time.monotonic()
            switch_journald(stage, "stop", "inactive")
            pause(1.5)
            away.append((stopped, time.monotonic()))
            switch_journald(stage, "start", "active")
            pause(0.6)
    outcome = end(stage, scale, f"journald was restarted, hung and was away {scale.rounds} times")
    return without_queues(outcome, away)


def without_queues(outcome: Outcome, away: list[tuple[float, float]]) -> Outcome:
    """Take away what was lost in the queue of a socket that systemd has closed.

    That was sent, and nobody will ever read it; it came in between the last line before and
    the first one after journald was away, and its queues hold only so much.
    """
    assert outcome.tally
    theirs = 0
    for begun, ended in away:
        around = [
            number
            for before, after, number in outcome.tally.gaps
            if before <= ended and after >= begun
        ]
        theirs += min(sum(around), CLOSED * QUEUE)
    outcome.tally.lost -= theirs
    return outcome.noted(f"{theirs} lines were in a queue of journald's that systemd closed")


def full(stage: Stage, scale: Scale) -> Outcome:
    """The file system of the file is full for a while, again and again."""
    stage.machine.path(LOGS).mkdir(parents=True)
    stage.machine.run(["mount", "-t", "tmpfs", "-o", "size=512M", "tmpfs", LOGS])
    stage.add("file", scale.children, "halves", pause=scale.pause, to_file=True, more=TO_THE_END)
    stage.start(scale.children)
    with under_kills(stage, scale.kills // 4):
        for _ in range(scale.rounds):
            time.sleep(stage.rand.uniform(0.2, 1.0))
            stage.machine.run(["sh", "-c", f"cat /dev/zero >{LOGS}/.filler"], check=False)
            time.sleep(stage.rand.uniform(0.2, 2.0))
            stage.machine.path(f"{LOGS}/.filler").unlink()
    failures = stage.machine.journal("-u", stage.app.unit).count("sink failed")
    return end(stage, scale, f"full {scale.rounds} times, {failures} reports of it")


SCENARIOS: dict[str, Callable[[Stage, Scale], Outcome]] = {
    "kill": kill,
    "upgrade": upgrade,
    "mixed": mixed,
    "stop": stop,
    "journald": journald,
    "full": full,
}


def run(name: str, tree: Path, scale: Scale, seed: int) -> Outcome:
    """Run a scenario; what it finds depends on the seed, and on how fast the machine is."""
    with staged(tree, name, random.Random(f"{seed} {name}")) as stage:
        try:
            return SCENARIOS[name](stage, scale)
        except AssertionError as error:
            return Outcome(None, stage.kills, 0, (), (str(error),))
