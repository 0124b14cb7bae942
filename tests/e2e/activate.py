"""Becomes a program that gets sockets as systemd hands them over: NAME=FD... -- PROGRAM ARGS."""

from __future__ import annotations

import fcntl
import os
import sys

FIRST = 3


def main(words: list[str]) -> None:
    end = words.index("--")
    pairs = [word.rpartition("=")[::2] for word in words[:end]]
    above = [fcntl.fcntl(int(fd), fcntl.F_DUPFD, 64) for _, fd in pairs]
    os.closerange(FIRST, 64)
    for place, fd in enumerate(above, FIRST):
        os.dup2(fd, place)
        os.close(fd)
    os.environ["LISTEN_FDS"] = str(len(pairs))
    os.environ["LISTEN_FDNAMES"] = ":".join(name for name, _ in pairs)
    os.environ["LISTEN_PID"] = str(os.getpid())
    os.execvp(words[end + 1], words[end + 1 :])


if __name__ == "__main__":
    main(sys.argv[1:])
