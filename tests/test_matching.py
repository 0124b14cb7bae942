"""Patterns: what they mean, and that none takes long."""

from __future__ import annotations

import contextlib
import signal
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sysup.matching import LONGEST, matching
from sysup.protocol import MessageError

NAMES = ["web", "web-1", "worker", "db"]


@pytest.mark.parametrize(
    ("pattern", "regex", "found"),
    [
        ("w*", False, ["web", "web-1", "worker"]),
        ("web", False, ["web"]),
        ("W[eo].*", True, ["web", "web-1", "worker"]),
        ("b", True, []),
        (".*b$", True, ["web", "db"]),
    ],
)
def test_what_patterns_mean(pattern: str, regex: bool, found: list[str]) -> None:
    assert matching(NAMES, pattern, regex=regex) == found


@pytest.mark.parametrize(
    ("pattern", "regex"),
    [
        ("(a+)+b", True),
        ("(a|a)*b", True),
        ("(a?){60}a{60}b", True),
        (r"(.*)\1\1\1\1(.*)\2\2\2(.*)\3\3x", True),
        ("a*" * 25 + "b", True),
        ("(" * 100 + "a+" + ")+" * 100 + "b", True),
        ("*a" * 400 + "b", False),
    ],
)
def test_no_pattern_takes_long(pattern: str, regex: bool) -> None:
    before = signal.getsignal(signal.SIGVTALRM)
    begun = time.process_time()
    with contextlib.suppress(MessageError):
        assert matching(["a" * 60] * 1000, pattern, regex=regex) == []
    assert time.process_time() - begun < 2.0
    assert signal.getsignal(signal.SIGVTALRM) is before
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0.0, 0.0)
    assert matching(NAMES, "w.*", regex=True)


@pytest.mark.parametrize("pattern", ["(", "*", "a{99999999999999999999}", "x" * (LONGEST + 1)])
def test_what_is_no_pattern(pattern: str) -> None:
    with pytest.raises(MessageError, match="'name' isn't a pattern"):
        matching(NAMES, pattern, regex=True)


@given(st.text(st.sampled_from("ab(|)*+?{1,9}[^]\\.$")), st.booleans())
def test_any_text_is_a_pattern_or_refused(pattern: str, regex: bool) -> None:
    with contextlib.suppress(MessageError):
        assert set(matching(["a" * 40, "ab" * 20], pattern, regex=regex)) <= {"a" * 40, "ab" * 20}


def test_what_takes_too_long_is_told() -> None:
    with pytest.raises(MessageError, match="'name' is a pattern that takes too long"):
        matching(["a" * 60], "(a+)+b", regex=True)


def test_another_thread_may_match_as_well() -> None:
    found: list[list[str]] = []
    other = threading.Thread(target=lambda: found.append(matching(NAMES, "d.", regex=True)))
    other.start()
    other.join()
    assert found == [["db"]]
