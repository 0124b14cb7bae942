"""Descriptors parked in a lot, and taken from it."""

from __future__ import annotations

import os
import resource
from typing import Any

import pytest

from sysup.lot import Lot
from sysup.protocol import SysupError


def number_open() -> int:
    return len(os.listdir("/proc/self/fd"))


def take(lot: Lot) -> list[tuple[Any, list[int]]]:
    return [parcel for parcels in lot.take() for parcel in parcels]


def close(taken: list[tuple[object, list[int]]]) -> None:
    for _, fds in taken:
        for fd in fds:
            os.close(fd)


def test_taken_are_the_same_files_with_what_was_in_them() -> None:
    lot = Lot.new()
    reading, writing = os.pipe()
    os.write(writing, b"last words")
    lot.park([(["body", 7, "stdout"], [reading]), (["nothing"], [])])
    os.close(reading)
    os.close(writing)
    ((what, (fd,)), nothing) = take(lot)
    assert (what, nothing) == (["body", 7, "stdout"], (["nothing"], []))
    assert os.read(fd, 100) == b"last words"
    assert not os.get_inheritable(fd)
    os.close(fd)
    lot.close()


def test_taking_leaves_them_for_another_time() -> None:
    lot = Lot.new()
    lot.park([(1, [0]), (2, [1, 2])])
    before = number_open()
    for _ in range(3):
        taken = take(lot)
        assert [(what, len(fds)) for what, fds in taken] == [(1, 1), (2, 2)]
        close(taken)
        lot.park([])
    assert number_open() == before
    lot.park([(3, [0])])
    close(taken := take(lot))
    assert [what for what, _ in taken] == [1, 2, 3]
    lot.close()


def test_another_process_takes_them_by_its_ends() -> None:
    lot = Lot.new()
    lot.park([("x", [0])])
    entrance, exit = (os.dup(fd) for fd in lot.ends)
    lot.close()
    again = Lot.of(entrance, exit)
    again.park([("y", [1])])
    close(taken := take(again))
    assert [what for what, _ in taken] == ["x", "y"]
    again.close()


def test_thousands_go_into_few_messages() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        lot = Lot.new()
        lot.park([(["body", number], [0, 1, 2]) for number in range(1000)])
        taken = take(lot)
        assert [(what[1], len(fds)) for what, fds in taken] == [(n, 3) for n in range(1000)]
        close(taken)
        lot.close()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_full_one_says_so() -> None:
    lot = Lot.new()
    lot.entrance.setsockopt(1, 7, 4608)  # SO_SNDBUF
    with pytest.raises(SysupError, match=r"^cannot park descriptors: "):
        lot.park([(number, [0]) for number in range(100_000)])
    lot.close()
