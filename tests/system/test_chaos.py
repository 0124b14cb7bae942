"""A daemon that is killed, upgraded, stopped and hindered: `make chaos`, in short."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.scenarios import SCENARIOS, run
from tests.chaos.stage import SHORT
from tests.lab import Unavailable

SEED = 1


@pytest.mark.parametrize("name", SCENARIOS)
def test_nobody_notices(installed: Path, name: str) -> None:
    try:
        outcome = run(name, installed, SHORT, SEED)
    except Unavailable as reason:
        pytest.skip(str(reason))
    assert outcome.is_good, outcome
    assert outcome.tally is None or outcome.tally.lines > 1000
