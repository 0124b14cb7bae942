"""Stream classes: the daemon's own output, and what users write in Python."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from sysup.config import StreamSpec
from sysup.protocol import SysupError
from sysup.streams import Source, open_sink
from sysup.streams.places import PythonPlace
from tests.streams.house import (
    PATIENCE,
    House,
    write_all,
    write_and_close,
)

# ---- the daemon's own output ------------------------------------------------------------

STDOUT_PROGRAM = """
import os, select, sys
from sysup.config import StreamSpec
from sysup.streams import Pump, open_sink
pump = Pump()
cls, name = sys.argv[1:]
options = {"color": "green", "time_format": "at"} if cls == "FancyStdoutStream" else {}
spec = StreamSpec(cls, options) if cls else None
reading, writing = os.pipe()
pump.add(reading, 7, open_sink(pump, spec, name))
os.write(writing, b"one\\ntwo")
os.close(writing)
sys.exit(pump.stop(10))
"""


@pytest.mark.parametrize(
    ("cls", "name", "stdout", "stderr"),
    [
        ("", "stdout", b"one\ntwo", b""),
        ("", "stderr", b"", b"one\ntwo"),
        ("StdoutStream", "stderr", b"one\ntwo", b""),
        (
            "FancyStdoutStream",
            "stdout",
            b"\x1b[32mat [7] | one\x1b[0m\n\x1b[32mat [7] | two\x1b[0m\n",
            b"",
        ),
    ],
)
def test_output_of_the_daemon_itself(cls: str, name: str, stdout: bytes, stderr: bytes) -> None:
    done = subprocess.run(
        [sys.executable, "-c", STDOUT_PROGRAM, cls, name], capture_output=True, check=True
    )
    assert (done.stdout, done.stderr) == (stdout, stderr)


# ---- classes of users --------------------------------------------------------------------


class Collector:
    """Keeps what it is called with."""

    made: list[Collector]

    def __init__(self, **options: str) -> None:
        self.options = options
        self.calls: list[dict[str, Any]] = []
        self.closed = False
        Collector.made.append(self)

    def __call__(self, data: dict[str, Any]) -> None:
        self.calls.append(data)

    def close(self) -> None:
        self.closed = True


class Fussy(Collector):
    """Raises when it is told to."""

    def __call__(self, data: dict[str, Any]) -> None:
        super().__call__(data)
        if data["data"].startswith(b"raise"):
            raise ValueError("too fussy")


class Stuck(Collector):
    """Waits for the test."""

    gate: threading.Event

    def __call__(self, data: dict[str, Any]) -> None:
        self.gate.wait(PATIENCE)
        super().__call__(data)


class Plain:
    """Takes no options and has no `close`."""

    def __init__(self) -> None:
        raise SystemExit("no thanks")


@pytest.fixture(autouse=True)
def fresh_classes() -> None:
    Collector.made = []
    Stuck.gate = threading.Event()


def collected(collector: Collector) -> bytes:
    return b"".join(call["data"] for call in list(collector.calls))


def test_a_class_is_called_with_whole_lines(house: House) -> None:
    sink = house.sink(f"{__name__}.Collector", color="red")
    data = b"".join(b"%06d\n" % n for n in range(100_000)) + b"unfinished"
    stream, writing = house.stream(sink, pid=42)
    write_all(writing, data)
    os.close(writing)
    house.until(lambda: stream.ended)
    sink.close()
    collector = Collector.made[0]
    house.until(lambda: collector.closed)
    assert collector.options == {"color": "red"}
    assert collected(collector) == data
    assert all(set(call) == {"data", "pid", "name"} for call in collector.calls)
    assert {(call["pid"], call["name"]) for call in collector.calls} == {(42, "stdout")}
    assert all(call["data"].endswith(b"\n") for call in collector.calls[:-1])


def test_lines_of_several_processes_come_apart(house: House) -> None:
    sink = house.sink(f"{__name__}.Collector")
    pipes = [house.stream(sink, pid=pid)[1] for pid in (1, 2, 3)]
    for pid, pipe in enumerate(pipes, 1):
        write_all(pipe, b"%d\n" % pid * 1000)
        os.close(pipe)
    house.until(lambda: len(house.ended) == 3)
    sink.close()
    house.until(lambda: Collector.made[0].closed)
    for pid in (1, 2, 3):
        calls = [call["data"] for call in Collector.made[0].calls if call["pid"] == pid]
        assert b"".join(calls) == b"%d\n" % pid * 1000


def test_what_a_class_raises_is_told_until_it_works_again(house: House) -> None:
    name = f"{__name__}.Fussy"
    sink = house.sink(name)
    for data in (b"raise\n", b"raise again\n"):
        house.pour(sink, data)
    house.until(lambda: len(Collector.made[0].calls) == 2 and house.told)
    assert len(house.told) == 1
    told = house.told[0][1]
    assert told is not None
    assert told.startswith(f"{name} raised:\nTraceback")
    assert told.rstrip().endswith("ValueError: too fussy")
    assert sink.failure == told
    house.pour(sink, b"fine\n")
    house.until(lambda: sink.failure is None)
    assert house.told[1:] == [(name, None)]
    assert collected(Collector.made[0]) == b"raise\nraise again\nfine\n"


def test_a_slow_class_makes_its_own_streams_wait(house: House, tmp_path: Path) -> None:
    sink = house.sink(f"{__name__}.Stuck")
    data = b"".join(b"%08d\n" % n for n in range(200_000))
    stream, writing = house.stream(sink)
    feeding = threading.Thread(target=write_and_close, args=(writing, data))
    feeding.start()
    house.until(lambda: stream.bytes_read > 200_000)
    house.pour(house.file(tmp_path / "log"), b"fine\n" * 100_000)
    assert feeding.is_alive()
    assert stream.bytes_read < 700_000
    Stuck.gate.set()
    house.until(lambda: stream.ended)
    feeding.join()
    sink.close()
    house.until(lambda: Collector.made[0].closed)
    assert collected(Collector.made[0]) == data


def test_a_class_that_hangs_does_not_keep_the_daemon() -> None:
    """The thread, the pump's memory and its descriptors are left to the end of the program."""
    house = House()
    sink = house.sink(f"{__name__}.Stuck")
    house.pour(sink, b"one\n")
    begun = time.monotonic()
    house.stop(0.2)
    assert time.monotonic() - begun < PATIENCE / 2, "it does not wait for the thread"
    Stuck.gate.set()
    place = sink._place
    assert isinstance(place, PythonPlace)
    place.join(PATIENCE)
    house.pump.dispatch()
    assert house.pump.places.stop(0.0)


@pytest.mark.parametrize(
    ("cls", "options", "reason"),
    [
        ("nosuch.Stream", {}, "cannot load stream class nosuch.Stream: ModuleNotFoundError"),
        ("os.Nothing", {}, "cannot load stream class os.Nothing: AttributeError"),
        (f"{__name__}.Plain", {"a": "b"}, f"cannot load stream class {__name__}.Plain: TypeError"),
        (f"{__name__}.Plain", {}, f"cannot load stream class {__name__}.Plain: SystemExit: no"),
        ("NoStream", {}, "cannot open stdout_stream: no such class: NoStream"),
        ("FileStream", {}, "cannot open stdout_stream: FileStream needs a filename"),
        ("FileStream", {"filename": "/"}, "cannot write to /: Invalid argument"),
    ],
)
def test_what_cannot_be_opened(
    house: House, cls: str, options: dict[str, str], reason: str
) -> None:
    with pytest.raises(SysupError, match=re.escape(reason)):
        house.sink(cls, **options)


# ---- the end of the pump -----------------------------------------------------------------


def test_stopping_writes_what_is_held_and_ends_all(house: House, tmp_path: Path) -> None:
    held, writing = house.stream(house.file(tmp_path / "log", refresh_time=3600))
    write_all(writing, b"one\ntwo")
    sink = house.sink(f"{__name__}.Collector")
    other, other_writing = house.stream(sink)
    write_all(other_writing, b"three\n")
    assert house.stop() == 0
    assert held.ended
    assert other.ended
    assert (tmp_path / "log").read_bytes() == b"one\ntwo"
    assert collected(Collector.made[0]) == b"three\n"
    assert Collector.made[0].closed
    os.close(writing)
    os.close(other_writing)


def test_only_a_class_of_ones_own_is_looked_for_beside_the_config(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    source = Source("stdout", "web", "shop", import_path=(str(tmp_path),))
    options = {"filename": str(tmp_path / "log")}
    sinks = [open_sink(house.pump, StreamSpec("FileStream", options), source)]
    assert str(tmp_path) not in sys.path
    (tmp_path / "json.py").write_text("raise SystemExit('this takes the place of another')")
    (tmp_path / "beside.py").write_text("import json\ndef Stream(): return json.dumps\n")
    sinks.append(open_sink(house.pump, StreamSpec("beside.Stream", {}), source))
    assert sys.path[-1] == str(tmp_path)
    for sink in sinks:
        sink.close()
