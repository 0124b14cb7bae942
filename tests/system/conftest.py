"""What the tests of a whole system take from others, and the machines that they run on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.e2e.conftest import runtime, sysupd
from tests.lab import Container, Unavailable, Vm
from tests.system.services import HOME, USER, App
from tests.system.tree import ROOT, booted, install, resumed

__all__ = ["ROOT", "runtime", "sysupd"]


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree that `make install` makes, for the Python of Debian 12."""
    tree = tmp_path_factory.mktemp("installed")
    install(tree)
    return tree


@pytest.fixture(scope="module")
def machine(installed: Path) -> Iterator[Container]:
    """A machine with systemd and sysup, shared by the tests of a module."""
    with ExitStack() as stack:
        try:
            yield stack.enter_context(booted(installed))
        except Unavailable as reason:
            pytest.skip(str(reason))


@pytest.fixture(scope="module")
def vm(installed: Path) -> Iterator[Vm]:
    """The same on a kernel of its own."""
    with ExitStack() as stack:
        try:
            yield stack.enter_context(resumed(installed))
        except Unavailable as reason:
            pytest.skip(str(reason))


@pytest.fixture
def nothing_is_left(machine: Container) -> Iterator[None]:
    """What a test started ends with it."""
    yield
    machine.run(["systemctl", "stop", "sysup@*.socket", "sysup@*.service", "sysup-*.socket"])
    machine.run(["systemctl", "reset-failed"])


@pytest.fixture
def of_user(machine: Container) -> Iterator[App]:
    """An app of a user whose service manager runs."""
    app = App(machine, "mine", user=True)
    machine.run(["chown", "-R", "user:user", HOME])
    machine.run(["systemctl", "start", f"user@{USER}.service"])
    yield app
    machine.run(["systemctl", "stop", f"user@{USER}.service"])
