"""The ledger: what was put is there for the next one, whenever the end comes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sysup.ledger import HEAD, Ledger
from sysup.protocol import SysupError


@pytest.fixture
def fd() -> Iterator[int]:
    number = os.memfd_create("ledger")
    yield number
    os.close(number)


def test_what_was_put_is_there(fd: int) -> None:
    ledger = Ledger(fd)
    ledger.put(("place", "web", 1), {"state": "running", "at": 1.5})
    ledger.put(("place", "web", 2), [None, "ö\udc80"])
    ledger.put(("lot",), 3)
    ledger.put(("lot",), 4)
    ledger.drop(("place", "web", 1))
    ledger.drop(("never",))
    again = Ledger(fd)
    assert again.table == ledger.table == {("place", "web", 2): [None, "ö\udc80"], ("lot",): 4}
    assert list(again.find("place")) == [(("web", 2), [None, "ö\udc80"])]


def test_the_same_once_more_is_not_written(fd: int) -> None:
    ledger = Ledger(fd)
    ledger.put(("a",), 1)
    size = os.fstat(fd).st_size
    ledger.put(("a",), 1)
    assert os.fstat(fd).st_size == size
    ledger.drop(("a",))
    ledger.put(("a",), None)
    assert Ledger(fd).table == {("a",): None}, "nothing is a value, too"


def test_it_stays_small(fd: int) -> None:
    ledger = Ledger(fd)
    for number in range(20_000):
        ledger.put(("place", number % 10), {"number": number})
    assert os.fstat(fd).st_size < 1 << 18
    assert Ledger(fd).table == ledger.table
    ledger.clear()
    assert Ledger(fd).table == {}


def test_a_new_log_is_of_what_holds_alone(fd: int) -> None:
    ledger = Ledger(fd)
    for number in range(100):
        ledger.put(("place", 1), {"number": number})
    ledger.compact()
    ledger.put(("place", 2), {"number": 0})
    begin = HEAD.unpack(os.pread(fd, HEAD.size, 0))[1]
    assert os.pread(fd, 1 << 16, begin).count(b'"place"') == 2
    assert Ledger(fd).table == ledger.table


def test_another_version_is_refused(fd: int) -> None:
    os.pwrite(fd, b"sysup ledger 0\n\0" + bytes(4096), 0)
    with pytest.raises(SysupError, match="another version"):
        Ledger(fd)


KEYS = st.sampled_from([("a",), ("b", 1), ("b", 2)])
STEPS = st.lists(st.tuples(KEYS, st.none() | st.text(max_size=3000)), max_size=120)


class Killed(BaseException):
    """The process ends here."""


class Dying:
    """Stands for os.pwrite: after so many bytes the process is killed."""

    def __init__(self, bytes_left: int) -> None:
        self.left = bytes_left
        self.write = os.pwrite

    def __call__(self, fd: int, data: Any, at: int) -> int:
        if len(data) < self.left:
            self.left -= len(data)
            return self.write(fd, data, at)
        if at == 0:  # the head: whole or not at all
            raise Killed
        self.write(fd, data[: self.left], at)
        raise Killed


@settings(max_examples=300, deadline=None)
@given(steps=STEPS, life=st.integers(1, 200_000))
def test_killed_at_any_byte_it_has_all_but_the_last_step(
    steps: list[tuple[tuple[str | int, ...], str | None]], life: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        fd = os.memfd_create("ledger")
        ledger = Ledger(fd)
        before: dict[Any, Any] = {}
        after: dict[Any, Any] = {}
        patch.setattr(os, "pwrite", Dying(life))
        patch.setattr("sysup.ledger.ROOM", 4096)
        try:
            for key, value in steps:
                before = dict(after)
                if value is None:
                    after.pop(key, None)
                    ledger.drop(key)
                else:
                    after[key] = value
                    ledger.put(key, value)
            before = after
        except Killed:
            pass
        patch.undo()
        assert Ledger(fd).table in (before, after)
        os.close(fd)
