"""Each test leaves no descriptor and no thread behind."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest

from tests.streams.house import (
    House,
)


@pytest.fixture
def house() -> Iterator[House]:
    before = len(os.listdir("/proc/self/fd")), threading.active_count()
    house = House()
    yield house
    if not house.stopped:
        assert house.stop() == 0
    assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == before
