"""Directories that take long to make, kept in the user's cache under what they were made from.

The tree that machines boot is replaced when it is to be another one; of these, which change with
every change of the code, some lie side by side.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sysup-lab"
GENERATIONS = 4
"""How many of a kind are kept: of branches that are tested in turn, each has its own."""


def stored(kind: str, wanted: str, make: Callable[[Path], None]) -> Path:
    """The directory of a kind that was made from what `wanted` stands for, made if it is not there.

    Nobody may write to it.
    """
    CACHE.mkdir(parents=True, exist_ok=True)
    path = CACHE / f"{kind}-{wanted[:16]}"
    with open(CACHE / f"{kind}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            unfinished = CACHE / f"{kind}-unfinished"
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            make(unfinished)
            unfinished.rename(path)
        path.touch()
        others = sorted(CACHE.glob(f"{kind}-*"), key=lambda other: -other.stat().st_mtime)
        for old in others[GENERATIONS:]:
            shutil.rmtree(old)
    return path
