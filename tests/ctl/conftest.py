"""A daemon of canned replies, and sysupctl run in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeAlias

import pytest

from sysup.ctl.program import main
from sysup.discovery import ENDPOINT_VARIABLES


class Done(NamedTuple):
    """What a run of sysupctl came to."""

    code: int
    out: str
    err: str


Run: TypeAlias = Callable[..., Done]


@pytest.fixture
def base(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The only place where daemons are looked for."""
    for variable in (*ENDPOINT_VARIABLES, "NO_COLOR"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("SYSUP_RUNTIME_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def ctl(base: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs sysupctl in this process."""

    def run(*args: str) -> Done:
        code = main(list(args))
        return Done(code, *capsys.readouterr())

    return run
