"""The fake world of the unit tests, and what CI may skip.

In CI a skipped test is a failed one: what CI cannot run, it does not prove.

A test that may be skipped even there says so by `@pytest.mark.may_skip`.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.canned import CannedDaemon
from tests.delegated import delegated
from tests.journald import Journald, Unavailable
from tests.world import World

IN_CI = os.environ.get("CI") == "true"

# That a machine is slow is no error: neither of an example nor of what draws them.
settings.register_profile(
    "patient", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("patient")


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    world = World(monkeypatch.setattr)
    yield world
    world.close()


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """Where the runtime directories of apps are."""
    return tmp_path / "run"


@pytest.fixture
def daemon(base: Path) -> Iterator[CannedDaemon]:
    """One of canned replies, of the app `shop`."""
    with CannedDaemon(base / "shop") as running:
        yield running


@pytest.fixture
def journald() -> Iterator[Journald]:
    """A running journald of this test's own, without a rate limit."""
    try:
        begun = Journald()
    except Unavailable as reason:
        pytest.skip(str(reason))
    with begun:
        yield begun


@pytest.fixture
def unit_cgroup() -> Iterator[Path]:
    """A cgroup like that of a unit that systemd delegates."""
    with delegated() as path:
        if path is None:
            pytest.skip("no cgroup v2 here that we may make groups in")
        yield path


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "may_skip: allowed to be skipped in CI as well")


def _refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if report.outcome == "skipped" and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"skipped in CI: {reason}"


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, None]:
    outcome = yield
    if IN_CI and item.get_closest_marker("may_skip") is None:
        _refuse_skip(outcome.get_result())


@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report() -> Generator[None, Any, None]:
    outcome = yield
    if IN_CI:
        _refuse_skip(outcome.get_result())
