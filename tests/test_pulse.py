"""The self-check: each fault alone keeps the sign of life back."""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import zmq

from sysup.config import Role
from sysup.control import Control
from sysup.pulse import Pulse, out_of_descriptors
from sysup.streams import Pump

INTERVAL = 0.2
PATIENCE = 60.0


class Wedged:
    """A pump whose thread does not turn, until it is told to."""

    heartbeat = 7

    def ping(self) -> None:
        """Nobody hears it."""


class Patient(logging.Handler):
    """A daemon's control socket and pump, and a pulse that feels both."""

    def __init__(self, directory: Path) -> None:
        super().__init__(logging.ERROR)
        self.loop = asyncio.get_running_loop()
        self.path = directory / "control"
        self.endpoint = f"ipc://{self.path}"
        app: Any = SimpleNamespace(takeovers=0)
        self.control = Control(self.loop, app, lambda: 0.0)
        self.pump = Pump()
        self.signs = 0
        self.unbroken = 0
        """Signs since the last complaint."""
        self.complaints: list[str] = []
        self.pulses: list[Pulse] = []
        self._happened = asyncio.Event()
        logging.getLogger("sysup.pulse").addHandler(self)

    def is_there(self) -> bool:
        """Whether somebody listens at the path of the control socket."""
        with socket.socket(socket.AF_UNIX) as client:
            return client.connect_ex(str(self.path)) == 0

    def serve(self) -> None:
        self.control.serve(self.endpoint, Role.ADMIN)

    def feel(self, heart: Any = None, interval: float = INTERVAL) -> None:
        self.pulses.append(
            Pulse(self.loop, heart or self.pump, self.endpoint, interval, self._sign)
        )
        self.pulses[0].begin()

    def emit(self, record: logging.LogRecord) -> None:
        self.complaints.append(record.getMessage())
        self.unbroken = 0
        self._happened.set()

    def _sign(self) -> None:
        self.signs += 1
        self.unbroken += 1
        self._happened.set()

    async def until(self, condition: Callable[[], object]) -> None:
        while not condition():
            self._happened.clear()
            await self._happened.wait()

    def close(self) -> None:
        logging.getLogger("sysup.pulse").removeHandler(self)
        for pulse in self.pulses:
            pulse.close()
        self.control.close()
        self.pump.stop(5.0)
        super().close()


Scene = Callable[[Patient], Coroutine[Any, Any, None]]


@pytest.fixture
def play(tmp_path: Path) -> Callable[[Scene], None]:
    async def run(scene: Scene) -> None:
        patient = Patient(tmp_path)
        try:
            await asyncio.wait_for(scene(patient), PATIENCE)
        finally:
            patient.close()

    return lambda scene: asyncio.run(run(scene))


SOCKET = "no sign of life to systemd: the control socket does not answer"
PUMP = "no sign of life to systemd: the pump does not turn"


def test_who_is_well_gives_signs(play: Callable[[Scene], None]) -> None:
    async def scene(patient: Patient) -> None:
        patient.serve()
        patient.feel()
        await patient.until(lambda: patient.unbroken == 4)

    play(scene)


def test_there_are_two_beats_in_an_interval_and_nothing_between(
    play: Callable[[Scene], None],
) -> None:
    async def scene(patient: Patient) -> None:
        patient.serve()
        begun = patient.loop.time()
        patient.feel(interval=100.0)
        await patient.until(lambda: patient.signs)
        pulse = patient.pulses[0]
        assert pulse._glance is None
        assert pulse._next is not None
        assert begun + 50.0 <= pulse._next.when() <= patient.loop.time() + 50.0

    play(scene)


def test_a_pump_that_turns_late_is_looked_at_until_it_does(
    play: Callable[[Scene], None],
) -> None:
    looks = iter(range(100))

    class Late(Wedged):
        @property
        def heartbeat(self) -> int:  # type: ignore[override]
            return int(next(looks) >= 10)

    async def scene(patient: Patient) -> None:
        patient.serve()
        patient.feel(Late(), interval=100.0)
        await patient.until(lambda: patient.signs)
        assert next(looks) == 11
        assert patient.pulses[0]._glance is None

    play(scene)


def test_a_pump_that_does_not_turn(
    play: Callable[[Scene], None], capfd: pytest.CaptureFixture[str]
) -> None:
    wedged = Wedged()

    async def scene(patient: Patient) -> None:
        patient.serve()
        patient.feel(wedged)
        await patient.until(lambda: patient.complaints.count(PUMP) >= 2)
        assert patient.signs == 0
        assert all("the pump does not turn" in complaint for complaint in patient.complaints)
        wedged.heartbeat += 1
        await patient.until(lambda: patient.signs)

    play(scene)
    assert PUMP in capfd.readouterr().err, "which needs no pump"


def test_a_control_socket_that_is_not_there(play: Callable[[Scene], None]) -> None:
    async def scene(patient: Patient) -> None:
        patient.feel()
        await patient.until(lambda: patient.complaints.count(SOCKET) >= 2)
        assert patient.signs == 0
        assert all("does not answer" in complaint for complaint in patient.complaints)
        patient.serve()
        await patient.until(lambda: patient.signs)

    play(scene)


def test_a_listener_that_is_gone(play: Callable[[Scene], None]) -> None:
    async def scene(patient: Patient) -> None:
        patient.serve()
        patient.feel()
        await patient.until(lambda: patient.signs)
        for router in patient.control._routers:
            router.unbind(router.getsockopt_string(zmq.LAST_ENDPOINT))
        while patient.is_there():  # noqa: ASYNC110  it is for libzmq's thread to close it
            await asyncio.sleep(0.001)
        patient.complaints.clear()
        await patient.until(lambda: SOCKET in patient.complaints)
        signs = patient.signs
        await patient.until(lambda: patient.complaints.count(SOCKET) >= 3)
        assert patient.signs == signs

    play(scene)


def test_requests_that_nobody_reads(play: Callable[[Scene], None]) -> None:
    """The connection is made by libzmq's thread, which knows nothing of the loop."""

    async def scene(patient: Patient) -> None:
        patient.serve()
        for router in patient.control._routers:
            patient.loop.remove_reader(router.fileno())
        await asyncio.sleep(0)  # the read that `serve` has arranged
        patient.feel()
        await patient.until(lambda: len(patient.complaints) >= 2)
        assert patient.signs == 0

    play(scene)


def test_a_command_that_fails_is_no_answer(
    play: Callable[[Scene], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sysup.table.Table.run", lambda table, app, request, role: 1 / 0)

    async def scene(patient: Patient) -> None:
        patient.serve()
        patient.feel()
        await patient.until(lambda: SOCKET in patient.complaints)
        assert patient.signs == 0

    play(scene)


def test_without_descriptors_nobody_is_asked(play: Callable[[Scene], None]) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    async def scene(patient: Patient) -> None:
        patient.serve()
        patient.feel()
        await patient.until(lambda: patient.signs)
        signs = patient.signs
        patient.complaints.clear()
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            assert out_of_descriptors()
            await patient.until(lambda: patient.signs >= signs + 2)
            assert not [complaint for complaint in patient.complaints if "socket" in complaint]
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    play(scene)
    assert not out_of_descriptors()
