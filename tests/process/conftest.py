from __future__ import annotations

import pytest

from sysup.process import OS


@pytest.fixture
def system() -> OS:
    return OS()
