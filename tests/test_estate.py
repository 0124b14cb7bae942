"""What a daemon leaves to the next one, with a store that does as systemd's."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from sysup.estate import STATE, Estate, Inheritance


class Store:
    """Keeps copies of descriptors by name, and hands copies of these to each next daemon."""

    def __init__(self) -> None:
        self.kept: dict[str, list[int]] = {}

    def store(self, name: str, *fds: int) -> None:
        self.kept.setdefault(name, []).extend(map(os.dup, fds))

    def forget(self, name: str) -> None:
        for fd in self.kept.pop(name, ()):
            os.close(fd)

    def handed(self) -> dict[str, list[int]]:
        return {name: [os.dup(fd) for fd in fds] for name, fds in self.kept.items()}

    def lots(self) -> list[str]:
        return sorted(name for name in self.kept if name.startswith("lot-"))


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    made = asyncio.new_event_loop()
    yield made
    made.close()


@pytest.fixture
def store() -> Iterator[Store]:
    made = Store()
    yield made
    for name in list(made.kept):
        made.forget(name)


def begun(loop: asyncio.AbstractEventLoop, directory: Path, store: Store) -> Estate:
    estate = Estate(loop, str(directory), Inheritance(), store)
    estate.begin()
    estate.begun()
    return estate


def test_the_next_one_claims_what_was_parked(
    loop: asyncio.AbstractEventLoop, tmp_path: Path, store: Store
) -> None:
    first = begun(loop, tmp_path, store)
    assert not first.inherited
    reading, writing = os.pipe()
    first.park(["body", 7, "stdout"], [reading])
    first.ledger.put(("body", 7), {"pid": 1})
    os.write(writing, b"unread")
    os.close(reading)
    os.close(writing)
    first.close()
    second = Estate(loop, str(tmp_path), Inheritance(store.handed()), store)
    assert second.inherited
    assert second.left_behind() == []
    assert second.ledger.table[("body", 7)] == {"pid": 1}
    assert second.claim("body", 8) is None
    claimed = second.claim("body", 7)
    assert claimed
    words, (fd,) = claimed
    assert (words, os.read(fd, 100)) == (["stdout"], b"unread")
    os.close(fd)
    second.close()


def messages(end: int) -> int:
    """How many lie in a lot, by its exit."""
    with socket.socket(fileno=os.dup(end)) as exit:
        exit.setsockopt(socket.SOL_SOCKET, 42, 0)  # SO_PEEK_OFF: each once
        found = 0
        with suppress(BlockingIOError):
            while exit.recv(1 << 17, socket.MSG_PEEK | socket.MSG_DONTWAIT):
                found += 1
        return found


def test_tidied_it_is_all_there_in_few_pieces(
    loop: asyncio.AbstractEventLoop, tmp_path: Path, store: Store
) -> None:
    first = begun(loop, tmp_path, store)
    reading, writing = os.pipe()
    for number in range(10):
        first.park(["body", number, "stdout"], [reading])
        first.ledger.put(("body", 1), {"pid": number})
    os.close(reading)
    os.close(writing)
    first.tidy()
    first.close()
    (name,) = [lot for lot in store.lots() if lot.endswith("-out")]
    assert messages(store.kept[name][0]) == 1
    second = Estate(loop, str(tmp_path), Inheritance(store.handed()), store)
    assert second.ledger.table[("body", 1)] == {"pid": 9}
    for number in range(10):
        claimed = second.claim("body", number)
        assert claimed
        assert claimed[0] == ["stdout"]
        os.close(claimed[1][0])
    second.close()


def test_what_is_not_kept_any_more_is_closed(
    loop: asyncio.AbstractEventLoop, tmp_path: Path, store: Store
) -> None:
    estate = begun(loop, tmp_path, store)
    reading, writing = os.pipe()
    estate.park(["stdin", 7], [writing])
    os.close(writing)
    estate.unpark("stdin", 7, soon=True)
    os.set_blocking(reading, False)
    with pytest.raises(BlockingIOError):
        os.read(reading, 1)
    estate.clean()
    assert os.read(reading, 1) == b"", "the end"
    os.close(reading)
    estate.close()


def test_a_lot_that_was_being_made_at_the_end_is_given_up(
    loop: asyncio.AbstractEventLoop, tmp_path: Path, store: Store
) -> None:
    first = begun(loop, tmp_path, store)
    current = store.lots()
    store.store("lot-2-in", first.ledger.fd)
    store.store("lot-2-out", first.ledger.fd)
    first.close()
    handed = store.handed()
    second = Estate(loop, str(tmp_path), Inheritance(handed), store)
    assert second.inherited
    assert store.lots() == current
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(handed["lot-2-in"][0])
    second.close()


def test_at_its_own_end_nothing_is_kept(
    loop: asyncio.AbstractEventLoop, tmp_path: Path, store: Store
) -> None:
    estate = begun(loop, tmp_path, store)
    assert STATE in store.kept
    estate.end()
    assert store.kept == {}


class SlowClock(asyncio.SelectorEventLoop):
    """Whose time passes by looking at it, so that each turn of the loop has time for one step."""

    passed = 0.0

    def time(self) -> float:
        self.passed += 1.0
        return self.passed

    def turn(self) -> None:
        self.call_soon(self.stop)
        self.run_forever()


@pytest.fixture
def slow() -> Iterator[SlowClock]:
    made = SlowClock()
    yield made
    made.close()


def parked(directory: Path, store: Store, numbers: int) -> list[int]:
    """Which of so many the next daemon is given."""
    loop = asyncio.new_event_loop()
    estate = Estate(loop, str(directory), Inheritance(store.handed()), store)
    found = []
    for number in range(numbers):
        if claimed := estate.claim("body", number):
            found.append(number)
            os.close(claimed[1][0])
    estate.close()
    loop.close()
    return found


def test_a_renewal_takes_turns_and_what_comes_meanwhile_is_kept(
    slow: SlowClock, tmp_path: Path, store: Store
) -> None:
    estate = begun(slow, tmp_path, store)
    before = store.lots()
    with open(os.devnull) as null:
        for number in range(700):
            estate.park(["body", number], [null.fileno()])
        for number in range(600):
            estate.unpark("body", number)
        turns = 0
        while store.lots() == before:
            slow.turn()
            if turns in (10, 300):
                estate.park(["body", 700 + turns], [null.fileno()])
            turns += 1
    assert turns > 300
    assert parked(tmp_path, store, 1100) == [*range(600, 700), 710, 1000]
    estate.close()


def test_what_must_be_closed_soon_is_not_kept_by_a_renewal_that_is_past_it(
    slow: SlowClock, tmp_path: Path, store: Store
) -> None:
    estate = begun(slow, tmp_path, store)
    reading, writing = os.pipe()
    estate.park(["stdin", 7], [writing])
    os.close(writing)
    for number in range(20):
        estate.park(["body", number], [reading])
    estate.unpark("body", 0, soon=True)
    for _ in range(5):
        slow.turn()
    estate.unpark("stdin", 7, soon=True)
    for _ in range(60):
        slow.turn()
    assert os.read(reading, 1) == b"", "the end"
    os.close(reading)
    assert parked(tmp_path, store, 20) == list(range(1, 20))
    estate.close()


def test_what_is_wanted_at_once_does_not_wait_for_a_renewal(
    slow: SlowClock, tmp_path: Path, store: Store
) -> None:
    estate = begun(slow, tmp_path, store)
    before = len(os.listdir("/proc/self/fd"))
    with open(os.devnull) as null:
        for number in range(20):
            estate.park(["body", number], [null.fileno()])
    estate.unpark("body", 0, soon=True)
    for _ in range(5):
        slow.turn()
    estate.tidy()
    assert len(os.listdir("/proc/self/fd")) == before
    assert parked(tmp_path, store, 20) == list(range(1, 20))
    estate.close()
