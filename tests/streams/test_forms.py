"""What is done to lines: their forms, which are taken, which are too many."""

from __future__ import annotations

import base64
import json
import os
import re
import time
from datetime import datetime
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sysup.config.streams import Rate
from tests.streams.house import House, content, write_all

# ---- forms -------------------------------------------------------------------------------


def lines_of(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


def test_a_prefix_says_whose_line_it_is(house: House, tmp_path: Path) -> None:
    sink = house.file(tmp_path / "log", format="prefix")
    first, second = (house.stream(sink, pid=pid, wid=wid) for pid, wid in ((11, 1), (12, 2)))
    write_all(first[1], b"one\ntw")
    write_all(second[1], b"three\n")
    house.until(lambda: content(tmp_path / "log").count(b"\n") == 2)
    write_all(first[1], b"o\nlast")
    os.close(first[1])
    os.close(second[1])
    house.until(lambda: len(house.ended) == 2)
    found = sorted(lines_of(tmp_path / "log"))
    assert found == [
        b"web.1[11]: last\n",
        b"web.1[11]: one\n",
        b"web.1[11]: two\n",
        b"web.2[12]: three\n",
    ]


@pytest.mark.parametrize(
    ("time_format", "pattern"),
    [
        ("%H:%M", rb"\d\d:\d\d \[7\] \| x\n"),
        ("iso", rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}[+-]\d\d:\d\d \[7\] \| x\n"),
        ("tai64n", rb"@40000000[0-9a-f]{16} \[7\] \| x\n"),
    ],
)
def test_stamps(house: House, tmp_path: Path, time_format: str, pattern: bytes) -> None:
    house.pour(house.file(tmp_path / "log", time_format=time_format), b"x\nx\n", pid=7)
    found = lines_of(tmp_path / "log")
    assert len(found) == 2
    assert all(re.fullmatch(pattern, line) for line in found), found


def test_stamps_tell_the_time(house: House, tmp_path: Path) -> None:
    before = time.time()  # noqa: TID251
    house.pour(house.file(tmp_path / "iso", time_format="iso"), b"x\n")
    house.pour(house.file(tmp_path / "tai", time_format="tai64n"), b"x\n")
    after = time.time()  # noqa: TID251
    iso = datetime.fromisoformat((tmp_path / "iso").read_text().split()[0]).timestamp()
    label = (tmp_path / "tai").read_text().split()[0]
    tai = int(label[1:17], 16) - 2**62 - 10 + int(label[17:], 16) / 1e9
    assert before - 1e-5 <= iso <= after
    assert before - 1e-5 <= tai <= after


@given(st.lists(st.binary(max_size=60).map(lambda line: line.replace(b"\n", b"")), max_size=8))
@settings(max_examples=50, deadline=None)
def test_json_has_every_byte(lines: list[bytes]) -> None:
    house = House()
    memory = os.memfd_create("log")
    data = b"".join(line + b"\n" for line in lines)
    house.pour(house.file(Path(f"/proc/self/fd/{memory}"), format="json"), data, pid=5, wid=3)
    assert house.stop() == 0
    os.lseek(memory, 0, 0)
    with open(memory, "rb") as file:
        records = [json.loads(line) for line in file]
    assert [_message(record) for record in records] == lines
    for record in records:
        assert datetime.fromisoformat(record["time"])
        assert (
            record.items()
            >= {
                "app": "shop",
                "watcher": "web",
                "wid": 3,
                "pid": 5,
                "stream": "stdout",
            }.items()
        )


def _message(record: dict[str, str]) -> bytes:
    if "message" in record:
        return record["message"].encode()
    return base64.b64decode(record["message_base64"])


def test_text_of_json_is_text(house: House, tmp_path: Path) -> None:
    text = 'é\N{SNOWMAN}\N{PILE OF POO}\x7f"\\\t\x01'
    house.pour(house.file(tmp_path / "log", format="json"), text.encode() + b"\nlast")
    records = [json.loads(line) for line in lines_of(tmp_path / "log")]
    assert [record["message"] for record in records] == [text, "last"]


def test_a_long_line_is_marked_where_it_is_split(house: House, tmp_path: Path) -> None:
    sink = house.file(tmp_path / "log", format="prefix", max_line=10)
    (long, writing), (_, other) = house.stream(sink, pid=1, wid=1), house.stream(sink, pid=2, wid=2)
    write_all(writing, b"0123456789a")
    house.until(lambda: content(tmp_path / "log"))
    write_all(other, b"between\n")
    house.until(lambda: b"between" in content(tmp_path / "log"))
    write_all(writing, b"bc\nnext\n")
    os.close(writing)
    house.until(lambda: long.ended)
    os.close(other)
    assert content(tmp_path / "log").splitlines() == [
        b"web.1[1]: 0123456789",
        b"web.2[2]: between",
        b"web.1[1]: ... abc",
        b"web.1[1]: next",
    ]


def test_pieces_of_json_say_so(house: House, tmp_path: Path) -> None:
    house.pour(house.file(tmp_path / "log", format="json", max_line=4), b"abcd\nabcdefghij\nx")
    records = [json.loads(line) for line in lines_of(tmp_path / "log")]
    assert [(record["message"], record.get("partial")) for record in records] == [
        ("abcd", None),
        ("abcd", True),
        ("efgh", True),
        ("ij", True),
        ("x", None),
    ]


# ---- which lines -------------------------------------------------------------------------


def fits(pattern: str, line: str) -> bool:
    """multilog(8) in Python: a star is any text without the character after it."""
    form = ""
    for number, character in enumerate(pattern):
        after = pattern[number + 1 :]
        if character != "*":
            form += re.escape(character)
        elif after:
            form += f"[^{re.escape(after[0])}]*(?={re.escape(after[0])})"
        else:
            form += ".*"
    return re.fullmatch(form, line, re.DOTALL) is not None


def selected(patterns: list[str], line: str) -> bool:
    found = not patterns or patterns[0][0] != "+"
    for pattern in patterns:
        if fits(pattern[1:], line):
            found = pattern[0] == "+"
    return found


letters = st.text("ab* ", max_size=5)


@given(
    st.lists(st.tuples(st.sampled_from("+-"), letters).map("".join), max_size=4),
    st.lists(st.text("ab ", max_size=6), max_size=8),
)
@settings(max_examples=80, deadline=None)
def test_patterns_select(patterns: list[str], lines: list[str]) -> None:
    house = House()
    memory = os.memfd_create("log")
    path = Path(f"/proc/self/fd/{memory}")
    data = "".join(f"{line}\n" for line in lines).encode()
    stream = house.pour(house.file(path, select=tuple(patterns)), data)
    assert house.stop() == 0
    expected = "".join(f"{line}\n" for line in lines if selected(patterns, line))
    assert path.read_bytes() == expected.encode()
    assert not stream.losses
    os.close(memory)


def test_what_is_left_out_may_be_said_alone(house: House, tmp_path: Path) -> None:
    sink = house.file(tmp_path / "log", select=("+*error*",), deselect=("-*known error*",))
    house.pour(sink, b"fine\nan error\na known error\nerror\n")
    assert content(tmp_path / "log") == b"an error\nerror\n"


# ---- how many ----------------------------------------------------------------------------


def test_a_rate_holds_for_all_processes_together(house: House, tmp_path: Path) -> None:
    sink = house.file(tmp_path / "log", rate=Rate(10, 1000.0), rate_burst=None)
    for _ in range(2):
        house.pour(sink, b"line\n" * 100)
    found = content(tmp_path / "log")
    assert found.count(b"line\n") == 10
    notes = re.findall(rb"sysup: web stdout: suppressed (\d+) lines \((\d+) bytes\)", found)
    assert [sum(int(part) for part in parts) for parts in zip(*notes, strict=True)] == [190, 950]
    assert sum(losses.suppressed_lines for losses in house.lost) == 190
    assert house.ended[0].losses.suppressed_lines == 90
    assert house.ended[1].losses.suppressed_bytes == 500


def test_an_enormous_burst(house: House, tmp_path: Path) -> None:
    sink = house.file(tmp_path / "log", rate=Rate(1, 1e9), rate_burst=10**9)
    house.pour(sink, b"line\n" * 60)
    assert content(tmp_path / "log").count(b"line\n") == 60


def test_a_burst_may_pass(house: House, tmp_path: Path) -> None:
    sink = house.file(tmp_path / "log", rate=Rate(1, 1000.0), rate_burst=50)
    house.pour(sink, b"line\n" * 60)
    assert content(tmp_path / "log").count(b"line\n") == 50


def _has_lines(path: Path, number: int) -> bool:
    return content(path).count(b"line\n") == number


def test_credit_comes_with_time(house: House, tmp_path: Path) -> None:
    sink = house.file(tmp_path / "log", rate=Rate(100, 0.001), rate_burst=1)
    stream, writing = house.stream(sink)
    for number in range(1, 20):
        write_all(writing, b"line\n")
        house.until(partial(_has_lines, tmp_path / "log", number))
    os.close(writing)
    house.until(lambda: stream.ended)
    assert not stream.losses


# ---- where nothing can be written --------------------------------------------------------


def test_lines_are_dropped_whole_and_counted(house: House, tmp_path: Path) -> None:
    directory = tmp_path / "gone"
    sink = house.file(directory / "log", on_full="drop", buffer=4096)
    stream, writing = house.stream(sink)
    data = b"".join(b"%06d\n" % number for number in range(50_000))
    write_all(writing, data)  # more than a pipe and the buffer hold: so it was read
    house.until(lambda: stream.bytes_read == len(data))
    house.turn()  # the last that was read is judged, too
    dropped = stream.losses
    assert dropped.dropped_lines > 40_000
    directory.mkdir()
    house.until(lambda: b"dropped" in content(directory / "log"))
    write_all(writing, b"afterwards\n")
    os.close(writing)
    house.until(lambda: stream.ended)
    found = content(directory / "log").splitlines(keepends=True)
    kept = [line for line in found if not line.startswith(b"sysup: ")]
    lost = stream.losses
    assert kept[-1] == b"afterwards\n"
    assert kept[:-1] == [b"%06d\n" % number for number in range(len(kept) - 1)]
    assert lost.dropped_lines + len(kept) - 1 == 50_000
    assert lost.dropped_bytes + sum(map(len, kept)) == len(data) + len(b"afterwards\n")
    notes = re.findall(rb"dropped (\d+) lines", b"".join(found))
    assert sum(map(int, notes)) == lost.dropped_lines
    assert sum(losses.dropped_lines for losses in house.lost) == lost.dropped_lines


def test_a_line_that_was_begun_is_not_glued_to_another(house: House, tmp_path: Path) -> None:
    """A long line loses its end while nothing can be written; the next one is on its own."""
    reading, lent = os.pipe()
    os.set_blocking(reading, False)
    sink = house.lent(lent, drop=True, max_line=1000)
    os.close(lent)
    stream, writing = house.stream(sink)
    write_all(writing, b"x" * 1_000_000)
    house.until(lambda: stream.losses.dropped_bytes > 0)
    write_all(writing, b"end\nnext\n")
    os.close(writing)
    received = bytearray()

    def read() -> bool:
        try:
            data = os.read(reading, 1 << 20)
        except BlockingIOError:
            return False
        received.extend(data)
        return not data

    sink.close()
    house.until(read)
    os.close(reading)
    lines = bytes(received).split(b"\n")
    assert set(lines[0]) == {ord("x")}
    assert b"next" in lines or stream.losses.dropped_lines == 2
    kept = sum(len(line) + 1 for line in lines[:-1] if not line.startswith(b"sysup: ")) - 1
    assert kept + stream.losses.dropped_bytes == 1_000_000 + len(b"end\nnext\n")
