"""What people type: the command that shows how all is, each time by a new process."""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tests.bench.peers import Peer
from tests.bench.run import SETTLE, Figures, Missing, Run, Scale, Tools

PATIENCE = 30.0
"""Seconds that a command may take."""
DROP_CACHES = Path("/proc/sys/vm/drop_caches")


def status(peer: Peer, tools: Tools, scale: Scale) -> Figures:
    """`status` of some children: with all files in memory, and with none where we may have that."""
    with Run(peer, tools.child, ("sleep",), scale.children) as run:
        run.all_up()
        time.sleep(SETTLE)
        command = peer.status(run.directory)
        ask(command)
        began = os.times()
        warm = [ask(command) for _ in range(scale.commands)]
        ended = os.times()
        cpu = ended.children_user + ended.children_system
        cpu -= began.children_user + began.children_system
        cold = [ask(command, drop_caches) for _ in range(scale.commands // 4)]
    return {
        "p50 ms": 1000 * statistics.median(warm),
        "max ms": 1000 * max(warm),
        "CPU ms": 1000 * cpu / len(warm),
        "p50 ms, caches dropped": 1000 * statistics.median(cold),
    }


def ask(command: list[str], before: Callable[[], None] = lambda: None) -> float:
    """Seconds that a command takes. Raises Missing when it fails."""
    before()
    began = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    took = time.monotonic() - began
    if done.returncode:
        raise Missing(f"{command[0]} fails: {done.stdout[-200:]}{done.stderr[-200:]}")
    return took


def drop_caches() -> None:
    """Have the kernel forget what files hold. Raises Missing where we may not."""
    os.sync()
    try:
        DROP_CACHES.write_text("3")
    except OSError as error:
        raise Missing(f"cannot drop caches: {error.strerror}") from None
