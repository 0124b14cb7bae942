"""What people read and type: events and values as text."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sysup.ctl import render
from sysup.ctl.values import convert, converted

FLAPPING = {
    "process_pid": 812,
    "wid": 3,
    "exit_code": None,
    "reason": "cannot execute: no such file",
    "deaths": 2,
    "tries": 1,
    "retry_in": 7.2,
    "last_output": "a\nb",
    "time": 1.0,
}


@pytest.mark.parametrize(
    ("event", "payload", "line"),
    [
        ("spawn", {"process_pid": 8}, "--:--:-- web spawn pid 8"),
        (
            "kill",
            {"process_pid": 8, "wid": 0, "signum": 15},
            "--:--:-- web.0 kill pid 8, signal 15",
        ),
        ("reap", {"exit_code": -9}, "--:--:-- web reap killed by SIGKILL"),
        ("reap", {"exit_code": -99}, "--:--:-- web reap killed by signal 99"),
        ("reap", {"exit_code": None}, "--:--:-- web reap exit code unknown"),
        ("stop", {}, "--:--:-- web stop"),
        (
            "hook_failure",
            {"name": "before_start", "error": "no\x07"},
            "--:--:-- web hook_failure name before_start, error no\\x07",
        ),
        (
            "gave_up",
            {"reason": "exit code 3", "exit_code": 3, "tries": 5, "deaths": 12, "retry_in": 0.0},
            "--:--:-- web gave_up exit code 3, after 5 tries",
        ),
    ],
)
def test_the_facts_of_an_event(event: str, payload: dict[str, Any], line: str) -> None:
    (styled,) = render.event("web", event, payload)
    assert re.sub(r"\x1b\[\d+m", "", styled) == line


def test_a_crash_loop_is_told_in_full() -> None:
    assert [click.unstyle(line) for line in render.event("web", "flapping", FLAPPING)] == [
        f"{time.strftime('%H:%M:%S', time.localtime(1))} web.3 flapping pid 812, "
        "cannot execute: no such file, 2 deaths, retry in 7s",
        "    | a",
        "    | b",
    ]


# ---- text --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (0, "0s"),
        (0.34, "0.3s"),
        (42.4, "42s"),
        (59.7, "1m00s"),
        (303, "5m03s"),
        (14700, "4h05m"),
        (273600, "3d4h"),
    ],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert render.duration(seconds) == text


@given(st.text())
def test_no_text_commands_the_terminal(text: str) -> None:
    assert render.clean(text).isprintable()


@given(st.text(st.characters(categories=["L", "N", "P", "Zs"])))
def test_plain_text_is_left_alone(text: str) -> None:
    assert not text.isprintable() or render.clean(text) == text


@pytest.mark.parametrize(
    ("key", "text", "present", "value"),
    [
        ("numprocesses", "3", 1, 3),
        ("numprocesses", "three", 1, "three"),
        ("numprocesses", "true", 1, "true"),
        ("graceful_timeout", "0.5", 30.0, 0.5),
        ("graceful_timeout", "NaN", 30.0, "NaN"),
        ("graceful_timeout", "1e999", 30.0, "1e999"),
        ("shell", "on", False, True),
        ("shell", "0", True, False),
        ("shell", "maybe", True, "maybe"),
        ("cmd", "1", None, "1"),
        ("executable", "true", None, "true"),
        ("working_dir", "1", "/", "1"),
        ("stop_signal", "QUIT 30 TERM", 15, "QUIT 30 TERM"),
        ("umask", "022", None, "022"),
        ("umask", "22", "027", "22"),
        ("nice", "-5", None, -5),
        ("copy_env", "Yes", None, True),
        ("ready", "uptime:3", None, "uptime:3"),
        ("some.key", "null", None, "null"),
        ("some.key", "[1]", None, [1]),
        ("some.key", '"1"', None, "1"),
        ("some.key", "[" * 100_000, None, "[" * 100_000),
        ("success_codes", "[0, 3]", [0], [0, 3]),
        ("success_codes", "0, 3", [0], "0, 3"),
        ("rlimit_nofile", "500", "100:200", 500),
        ("rlimit_nofile", "500:1000", 500, "500:1000"),
        ("rlimit_core", "infinity", None, "infinity"),
        ("env", "A=1,B=x y", {}, {"A": "1", "B": "x y"}),
        ("env", '{"A": "1"}', None, {"A": "1"}),
        ("env", "A", {}, "A"),
        (
            "hooks",
            "before_start:a.b,after_stop:c.d",
            None,
            {"before_start": "a.b", "after_stop": "c.d"},
        ),
        ("stdout_stream_conf", '{"class": "FileStream"}', {}, {"class": "FileStream"}),
    ],
)
def test_typed_values(key: str, text: str, present: object, value: object) -> None:
    read = convert(key, text, present)
    assert (read, type(read)) == (value, type(value))


def test_free_form_options_are_text() -> None:
    pairs = [("my.option", "1"), ("max_retry", "1"), ("stdout_stream.max_bytes", "1")]
    present = {"cmd": "sleep"}
    assert list(converted(pairs, present).values()) == ["1", 1, 1]
    assert list(converted(pairs, {}).values()) == [1, 1, 1]  # nothing is known of a new watcher


@given(st.text(), st.text(), st.none() | st.booleans() | st.integers() | st.text())
def test_every_value_can_be_sent(key: str, text: str, present: object) -> None:
    values = converted([(key, text)], {key: present})
    assert json.loads(json.dumps(values, allow_nan=False)) == values


@pytest.mark.parametrize(
    ("text", "number"),
    [("1.46M", 1530920.96), ("812B", 812), ("3G", 3 << 30), ("N/A", 0), (None, 0), ("1.5X", 0)],
)
def test_sizes_of_circus_are_read(text: object, number: float) -> None:
    assert render.byte_size(text) == pytest.approx(number)


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0B"), (1023, "1023B"), (1536, "1.5K"), (5 << 40, "5.0T")]
)
def test_sizes_are_short(number: float, text: str) -> None:
    assert render.short_size(number) == text


@pytest.mark.parametrize(
    ("text", "seconds"), [("2:05.25", 125.25), ("0:00.00", 0), ("N/A", -1), (None, -1), ("1:x", -1)]
)
def test_times_of_circus_are_read(text: object, seconds: float) -> None:
    assert render.clock_seconds(text) == seconds
