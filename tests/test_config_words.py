"""Words: as shlex has them, in time that grows with the length."""

from __future__ import annotations

import shlex
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sysup.config.rules import LONGEST
from sysup.config.words import split


def outcome(text: str, *, by_shlex: bool = False) -> list[str] | str:
    """The words, or what is wrong."""
    try:
        return shlex.split(text) if by_shlex else split(text)
    except ValueError as error:
        return str(error)


@given(st.text("ab'\"\\ \t\r\n#$\N{NO-BREAK SPACE}", max_size=12) | st.text(max_size=20))
@example("")
@example("'' \"\"")
@example('"a\\"b\\\\c\\d"')
@example('"a\\')
@example('"a\\\\')
@example("a'b\\")
@example("\\")
def test_words_are_those_of_shlex(text: str) -> None:
    assert outcome(text) == outcome(text, by_shlex=True)


@pytest.mark.parametrize("unit", ["a", "a ", "''", "'' ", '"a" ', '\\"', "\\a", "'a", '"\\', " "])
@pytest.mark.parametrize("end", ["", "'", '"', "\\"])
def test_no_command_line_takes_long(unit: str, end: str) -> None:
    short, long = (taken(unit * (length // len(unit)) + end) for length in (LONGEST // 8, LONGEST))
    assert long < 32 * max(short, 0.001), "by the square it were 64"


def taken(text: str) -> float:
    """Seconds of processor time to split it."""
    before = time.thread_time()
    outcome(text)
    return time.thread_time() - before
