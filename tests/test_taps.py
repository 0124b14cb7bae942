"""Which streams are tapped, and what is published of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from sysup.protocol import unpack
from sysup.taps import CHUNK, Taps
from tests.fakes import FakeStream
from tests.world import World


class Wire:
    """Taps, and what they published."""

    def __init__(self) -> None:
        self.taps = Taps()
        self.told: list[tuple[bytes, Mapping[str, Any]]] = []
        self.taps.publish = lambda topic, payload: self.told.append((topic, payload))

    def stream(self, watcher: str = "web", wid: int = 1, name: str = "stdout") -> FakeStream:
        made = FakeStream(812, name, None)
        self.taps.enter(made, watcher, wid)
        return made

    def read(self, stream: FakeStream, data: bytes, missed: int = 0) -> None:
        stream.tapped += missed + len(data)
        self.taps.take(stream, data, missed, stream.tapped)


@pytest.fixture
def wire() -> Wire:
    return Wire()


def test_what_is_wanted_is_tapped_and_nothing_else(wire: Wire) -> None:
    streams = [wire.stream(), wire.stream(name="stderr"), wire.stream("My Web", 2)]

    def tapped(*topics: bytes) -> list[bool]:
        wire.taps.want(topics)
        return [stream.is_tapped for stream in streams]

    assert tapped() == [False] * 3
    assert tapped(b"output.") == [True] * 3
    assert tapped(b"output.web.") == [True, True, False]
    assert tapped(b"output.web.1.stderr", b"output.my_web.2.") == [False, True, True]
    assert wire.stream("web", 3).is_tapped is False
    assert wire.stream("my web", 2).is_tapped is True
    assert tapped() == [False] * 3


def test_chunks_are_told_with_their_position(wire: Wire) -> None:
    wire.taps.want((b"output.",))
    stream = wire.stream()
    wire.read(stream, b"a\xff")
    wire.read(stream, b"b", missed=10)
    assert wire.told[0] == (
        b"output.web.1.stdout",
        {"wid": 1, "pid": 812, "stream": "stdout", "data": "a\udcff", "at": 2, "missed": 0},
    )
    assert (wire.told[1][1]["at"], wire.told[1][1]["missed"]) == (13, 10)


def test_long_chunks_are_told_in_pieces(wire: Wire) -> None:
    wire.taps.want((b"output.",))
    data = bytes(n % 251 for n in range(2 * CHUNK + 1))
    wire.read(wire.stream(), data, missed=3)
    told = [payload for _, payload in wire.told]
    assert b"".join(unpack(payload["data"]) for payload in told) == data
    assert [payload["at"] for payload in told] == [3 + CHUNK, 3 + 2 * CHUNK, 4 + 2 * CHUNK]
    assert [payload["missed"] for payload in told] == [3, 0, 0]


def test_what_is_no_longer_wanted_is_not_told(wire: Wire) -> None:
    wire.taps.want((b"output.",))
    one, two = wire.stream(), wire.stream(wid=2)
    wire.taps.want((b"output.web.2.",))
    wire.read(one, b"late")
    wire.taps.leave(two)
    wire.read(two, b"late")
    assert wire.told == []
    wire.taps.want(())
    assert two.is_tapped, "it has ended: nobody touches it"


def test_streams_of_processes_come_and_go(world: World) -> None:
    taps = world.board.setting.taps
    taps.want((b"output.web.1.",))
    world.run(world.watcher(numprocesses=2).start())
    assert [s.is_tapped for pid in (101, 102) for s in world.pump.streams[pid]] == [
        *(True, True, False, False)
    ]
    world.os.die(101)
    world.loop.settle()
    assert all(stream.is_tapped for stream in world.pump.streams[103])
    assert len(taps._taps) == 4
