"""Kills, upgrades and commands at once; at the end exactly what is wanted runs."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.chaos.stage import PATIENCE, Outcome, Scale, Stage
from tests.delegated import members
from tests.e2e.harness import until

MOST = 8
CRASHING = "flapping.retry_in = 0.05\nbackoff.delay = 0.01\nmax_retry = -1\n"


@dataclass
class Wanted:
    """What a watcher was told; None while nobody knows, as the reply did not come."""

    number: int | None
    up: bool | None = True


class Storm:
    """Sends commands at random, and keeps what they ask for."""

    def __init__(self, stage: Stage, processes: int) -> None:
        self.stage = stage
        self.watchers = {name: Wanted(processes) for name in ("file", "journal", "tree", "crash")}
        self.sent: Counter[str] = Counter()

    def step(self) -> None:
        """One command, a kill or an upgrade."""
        rand = self.stage.rand
        name = rand.choice(list(self.watchers))
        steps: list[tuple[int, Callable[[str], None]]] = [
            *((3, self.start), (3, self.stop), (6, self.incr), (6, self.decr), (3, self.set)),
            *((2, self.restart), (3, self.reload), (1, self.reload_config)),
            *((2, self.kill), (1, self.upgrade)),
        ]
        (step,) = rand.choices([step for _, step in steps], [weight for weight, _ in steps])
        self.sent[step.__name__] += 1
        step(name)

    def tell(self, command: str, name: str = "", **properties: Any) -> bool:
        """Whether it was carried out, or will be; False where nobody knows.

        What is answered holds, be it before it is done: it may wait for its turn behind another
        command, and the daemon be killed meanwhile.
        """
        waiting = self.stage.rand.random() < 0.6
        if name:
            properties["name"] = name
        # Long enough for a daemon that is being started; a reply that does not come by then
        # was that of one that was killed.
        reply = self.stage.ask(command, 5.0 if waiting else 2.0, waiting=waiting, **properties)
        return reply is not None and reply["status"] == "ok"

    def start(self, name: str) -> None:
        self.watchers[name].up = True if self.tell("start", name=name) else None

    def stop(self, name: str) -> None:
        self.watchers[name].up = False if self.tell("stop", name=name) else None

    def restart(self, name: str) -> None:
        self.watchers[name].up = True if self.tell("restart", name=name) else None

    def reload(self, name: str) -> None:
        self.tell("reload", name=name)

    def reload_config(self, name: str) -> None:
        self.tell("reloadconfig")

    def incr(self, name: str) -> None:
        self._scale("incr", name, 1)

    def decr(self, name: str) -> None:
        self._scale("decr", name, -1)

    def _scale(self, command: str, name: str, change: int) -> None:
        wanted = self.watchers[name]
        number = None if wanted.number is None else wanted.number + change
        if number is None or 0 <= number <= MOST:
            wanted.number = number if self.tell(command, name=name) else None

    def set(self, name: str) -> None:
        number = self.stage.rand.randint(0, MOST)
        done = self.tell("set", name=name, options={"numprocesses": number})
        self.watchers[name].number = number if done else None

    def kill(self, name: str) -> None:
        time.sleep(self.stage.rand.uniform(0, 0.1))
        self.stage.kill()

    def upgrade(self, name: str) -> None:
        self.tell("upgrade")

    def settle(self) -> dict[str, int]:
        """Say once more what nobody knows; how many processes of each there are to be."""
        for name, wanted in self.watchers.items():
            if wanted.number is None:
                wanted.number = self.stage.rand.randint(1, MOST)
                options = {"numprocesses": wanted.number}
                self.stage.answer("set", name=name, options=options, waiting=True)
            if wanted.up is None:
                wanted.up = self.stage.rand.random() < 0.7
                self.stage.answer("start" if wanted.up else "stop", name=name)
        return {
            name: (wanted.number or 0) if wanted.up else 0 for name, wanted in self.watchers.items()
        }


def mixed(stage: Stage, scale: Scale) -> Outcome:
    """Commands, crashes, kills and upgrades; then exactly the wanted processes run."""
    processes = 4
    stage.add("file", processes, "whole", pause=scale.pause, to_file=True)
    stage.add("journal", processes, "whole", pause=scale.pause)
    stage.add("tree", processes, "child", pause=scale.pause)
    stage.add("crash", processes, "crash", pause=scale.pause, more=CRASHING)
    stage.start(4 * processes)
    storm = Storm(stage, processes)
    for _ in range(scale.commands):
        time.sleep(stage.rand.expovariate(20))
        storm.step()
    wanted = storm.settle()
    wrong = compare(stage, wanted)
    stage.end_writers()
    stage.app.systemctl("stop")
    until(stage.is_gone, "all is gone", PATIENCE)
    sent = ", ".join(f"{number} {name}" for name, number in sorted(storm.sent.items()))
    return Outcome(stage.tally(killed=True), stage.kills, 0, (sent,), tuple(wrong))


def compare(stage: Stage, wanted: dict[str, int]) -> list[str]:
    """What does not run as wanted, by /proc and by the cgroups; the daemon is not asked."""
    deadline = time.monotonic() + PATIENCE
    while wrong := list(differences(stage, wanted)):
        if time.monotonic() > deadline:
            return wrong
        time.sleep(0.05)
    return []


def differences(stage: Stage, wanted: dict[str, int]) -> list[str]:
    """That of this moment. Processes that crash come and go: there are no more than wanted."""
    wrong = []
    processes = stage.processes()
    slots = Counter(slot.rpartition(".")[0] for slot in set(processes.values()))
    found = Counter(slot.rpartition(".")[0] for slot in processes.values())
    for name, number in wanted.items():
        each = 2 if name == "tree" else 1
        exact = name != "crash"
        if found[name] != each * number if exact else found[name] > number:
            wrong.append(f"{name}: {found[name]} processes, {each * number} are wanted")
        if exact and slots[name] != number:
            wrong.append(f"{name}: in {slots[name]} slots, {number} are wanted")
    in_cgroup = len(members(stage.app.cgroup / "w"))
    if abs(in_cgroup - len(processes)) > wanted["crash"]:
        wrong.append(f"{in_cgroup} processes in the cgroups, {len(processes)} in /proc")
    return wrong
