"""Texts for pipes and terminals that are full, closed or slow."""

from __future__ import annotations

import os
import tty
from collections.abc import Callable, Iterator

import pytest

from sysup.process import open_terminal
from sysup.protocol import SysupError
from sysup.stdin import CHUNK, LIMIT, LINE, Input, send
from tests.world import World

DEAF = "cannot send to web.1: it does not read its input any more"


class End:
    """An input, and the process's end of it, closed if need be."""

    def __init__(self, world: World, theirs: int, ours: int, terminal: bool) -> None:
        self.world, self.theirs, self.ours = world, theirs, ours
        self.input = Input(world.loop, ours, "web.1", terminal=terminal)
        os.set_blocking(theirs, False)

    def read(self, size: int) -> bytes:
        """So many bytes, as the loop brings them."""
        found = b""
        while len(found) < size:
            self.world.loop.settle()
            found += os.read(self.theirs, size - len(found))
        return found

    def hang_up(self) -> None:
        os.close(self.theirs)
        self.theirs = -1

    def is_open(self) -> bool:
        """Whether our end is."""
        return os.path.exists(f"/proc/self/fd/{self.ours}")

    def close(self) -> None:
        self.input.close()
        if self.theirs >= 0:
            self.hang_up()


Make = Callable[[], End]


@pytest.fixture
def pipe(world: World) -> Iterator[Make]:
    made: list[End] = []

    def make() -> End:
        made.append(End(world, *os.pipe2(os.O_CLOEXEC), terminal=False))
        return made[-1]

    yield make
    for end in made:
        end.close()


@pytest.fixture
def terminal(world: World) -> Iterator[End]:
    ours, theirs = open_terminal(None)
    end = End(world, theirs, ours, terminal=True)
    yield end
    end.close()


def text(size: int) -> bytes:
    """Bytes by which an error of order is seen."""
    return b"".join(b"%7d\n" % number for number in range(size // 8))


# ---- pipes -------------------------------------------------------------------------------


def test_what_a_pipe_has_room_for_is_there_at_once(pipe: Make) -> None:
    end = pipe()
    assert end.input.send(b"one\n").done()
    assert end.input.send(b"two\n").done()
    assert os.read(end.theirs, 100) == b"one\ntwo\n"


def test_a_text_is_through_when_its_last_byte_is(pipe: Make) -> None:
    end = pipe()
    first, second = end.input.send(text(3 * CHUNK)), end.input.send(b"end\n")
    assert end.read(2 * CHUNK - 1) == text(3 * CHUNK)[: 2 * CHUNK - 1]
    assert not first.done()
    end.world.loop.settle()
    assert end.read(1) == text(3 * CHUNK)[2 * CHUNK - 1 : 2 * CHUNK]
    rest = end.read(CHUNK + 4)
    assert rest == text(3 * CHUNK)[2 * CHUNK :] + b"end\n"
    assert first.done()
    assert second.done()


def test_what_waits_is_bounded(pipe: Make) -> None:
    end = pipe()
    end.input.check(text(LIMIT))
    with pytest.raises(SysupError, match=f"the text has {LIMIT + 1} bytes, 0 bytes are still"):
        end.input.check(text(LIMIT) + b"x")
    end.input.send(text(LIMIT))
    waiting = LIMIT - CHUNK
    end.input.check(bytes(CHUNK))
    with pytest.raises(SysupError, match=f"{waiting} bytes are still unread, at most {LIMIT} may"):
        end.input.check(bytes(CHUNK + 1))
    assert end.read(LIMIT) == text(LIMIT)
    end.input.check(text(LIMIT))


def test_all_get_it_or_none(pipe: Make) -> None:
    good, full = pipe(), pipe()
    waiting = full.input.send(text(LIMIT))
    with pytest.raises(SysupError, match=r"cannot send to web\.1: the text has"):
        good.world.run(send([good.input, full.input], text(2 * CHUNK), eof=False))
    good.world.run(send([good.input], b"x", eof=False))
    assert os.read(good.theirs, 10) == b"x"
    waiting.cancel()


def test_who_stops_to_read_is_told_of_and_the_others_get_it(pipe: Make) -> None:
    good, bad = pipe(), pipe()
    sent = send([good.input, bad.input], text(2 * CHUNK), eof=False)
    bad.hang_up()
    assert good.read(2 * CHUNK) == text(2 * CHUNK)
    with pytest.raises(SysupError, match=DEAF):
        good.world.run(sent)


def test_a_reader_that_goes_is_noticed_though_nothing_is_sent(pipe: Make) -> None:
    end = pipe()
    end.hang_up()
    end.world.loop.settle()
    assert not end.is_open()
    with pytest.raises(SysupError, match=DEAF):
        end.input.check(b"")


def test_a_reader_that_has_just_gone_gets_nothing(pipe: Make) -> None:
    end = pipe()
    end.hang_up()
    with pytest.raises(SysupError, match=DEAF):
        end.input.check(b"x")
    end = pipe()
    end.input.check(b"x")
    end.hang_up()
    assert str(end.input.send(b"x").exception()) == DEAF


def test_the_end_comes_after_all_that_was_sent(pipe: Make) -> None:
    end = pipe()
    end.input.send(text(2 * CHUNK), eof=True)
    with pytest.raises(SysupError, match=r"cannot send to web\.1: its input was closed"):
        end.input.check(b"x")
    assert end.is_open()
    assert end.read(2 * CHUNK) == text(2 * CHUNK)
    end.world.loop.settle()
    assert not end.is_open()
    assert os.read(end.theirs, 1) == b""


def test_closing_ends_all_that_wait_and_may_be_repeated(pipe: Make) -> None:
    end = pipe()
    texts = [end.input.send(text(2 * CHUNK)), end.input.send(b"x", eof=True)]
    texts[0].cancel()
    end.input.close()
    end.input.close()
    assert not end.is_open()
    assert str(texts[1].exception()) == DEAF


# ---- terminals ---------------------------------------------------------------------------


def test_every_byte_but_that_which_ends_the_input(terminal: End) -> None:
    data = bytes(set(range(256)) - {4, 10}) + b"\n"
    assert terminal.input.send(data).done()
    assert os.read(terminal.theirs, 1000) == data


def test_output_is_neither_changed_nor_mixed_with_echo(terminal: End) -> None:
    terminal.input.send(b"in\n")
    os.write(terminal.theirs, b"out\n\x00\xff\t\n")
    assert os.read(terminal.ours, 100) == b"out\n\x00\xff\t\n"


@pytest.mark.parametrize(("data", "reads"), [(b"a\n", [b"a\n", b""]), (b"a", [b"a", b""])])
def test_a_terminal_s_input_can_be_ended_and_go_on(
    terminal: End, data: bytes, reads: list[bytes]
) -> None:
    terminal.input.send(data)
    terminal.input.send(b"", eof=True)
    assert [os.read(terminal.theirs, 100) for _ in reads] == reads
    longest = b"b" * LINE + b"\n"
    terminal.input.check(longest)
    terminal.input.send(longest)
    assert terminal.read(len(longest)) == longest


def test_lines_that_a_terminal_would_cut_are_refused(terminal: End) -> None:
    longest = b"x" * LINE
    terminal.input.check(longest + b"\n" + longest)
    with pytest.raises(SysupError, match="a terminal takes no line of more than 4095 bytes"):
        terminal.input.check(longest + b"x\n")
    terminal.input.send(longest)
    with pytest.raises(SysupError, match="takes no line"):
        terminal.input.check(b"x\n")
    terminal.input.send(b"\n")
    assert terminal.read(LINE + 1) == longest + b"\n"
    terminal.input.check(b"x\n")


def test_a_program_that_reads_no_lines_gets_long_ones(terminal: End) -> None:
    tty.setcbreak(terminal.theirs)
    data = (bytes(range(11, 256)) + bytes(range(10))) * 100
    terminal.input.check(data)
    terminal.input.send(data, eof=True)
    assert terminal.read(len(data) + 1) == data + b"\x04"
    with pytest.raises(BlockingIOError):
        os.read(terminal.theirs, 1)


def test_a_terminal_that_nobody_has_open(terminal: End) -> None:
    waiting = terminal.input.send(b"x\n" * 50_000)
    assert not waiting.done()
    terminal.hang_up()
    terminal.world.loop.settle()
    assert str(waiting.exception()) == DEAF
    with pytest.raises(SysupError, match=DEAF):
        terminal.input.check(b"x")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a terminal away")
def test_a_terminal_is_its_owner_s_alone(world: World) -> None:
    ours, theirs = open_terminal(12345)
    found = os.fstat(theirs)
    os.close(ours)
    os.close(theirs)
    assert (found.st_uid, found.st_mode & 0o777) == (12345, 0o600)


def test_a_terminal_that_cannot_be_given_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "fchown", refuse)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(OSError, match="Operation not permitted"):
        open_terminal(12345)
    assert os.listdir("/proc/self/fd") == before
