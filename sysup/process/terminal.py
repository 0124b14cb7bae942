"""A terminal for a process that wants to see one."""

from __future__ import annotations

import os
import termios

ROWS, COLUMNS = 24, 80
EDITING = (termios.VERASE, termios.VKILL, termios.VEOL)
"""Characters that mean something in a line, though signals and flow control are off."""


def open_terminal(owner: int | None) -> tuple[int, int]:
    """A new pseudo-terminal: our end, and that of the process. Raises OSError.

    Bytes pass unchanged both ways and are not echoed. What is written to our end is read in
    lines, so that VEOF (Ctrl-D) ends the input; no other character means anything.

    It becomes nobody's controlling terminal (openpty(3) opens it with O_NOCTTY): nothing that
    is written to it may be a signal to the session, nor may our end's closing.

    Args:
        owner: user whose it is, so that it can open /dev/stdout again; None: the daemon's.
    """
    ours, theirs = os.openpty()
    try:
        _set(theirs)
        if owner is not None:
            os.fchown(theirs, owner, -1)
        os.fchmod(theirs, 0o600)
    except BaseException:
        os.close(ours)
        os.close(theirs)
        raise
    return ours, theirs


def _set(terminal: int) -> None:
    try:
        _, _, cflag, _, ispeed, ospeed, cc = termios.tcgetattr(terminal)
        for index in EDITING:
            cc[index] = b"\0"  # _POSIX_VDISABLE: the NUL byte is data all the same
        attributes = [0, 0, cflag, termios.ICANON, ispeed, ospeed, cc]
        termios.tcsetattr(terminal, termios.TCSANOW, attributes)
        termios.tcsetwinsize(terminal, (ROWS, COLUMNS))
    except termios.error as error:
        raise OSError(*error.args) from None
