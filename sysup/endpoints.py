"""Endpoints: ZeroMQ sockets bound where only those reach them who may."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat

import zmq

from sysup.protocol import SysupError

BACKLOG = 1024
OWN = 0o600
"""The mode of a socket that is for our user alone."""


def bind(
    sock: zmq.Socket[bytes], endpoint: str, mode: int, group: int, listener: int | None = None
) -> None:
    """Bind a ZeroMQ socket; raises SysupError with the reason.

    An ipc socket is made here and handed to libzmq (ZMQ_USE_FD), because libzmq would
    leave its mode to the umask: it is bound and given mode and group under a name of its
    own, then renamed, so it is never open to more than it should be. One that listens already
    is used by a duplicate, because libzmq closes it.
    """
    try:
        if endpoint.startswith("ipc://"):
            path = endpoint.removeprefix("ipc://")
            fd = listen(path, mode, group).detach() if listener is None else os.dup(listener)
            sock.setsockopt(zmq.USE_FD, fd)
            try:
                sock.bind(endpoint)
            finally:
                sock.setsockopt(zmq.USE_FD, -1)
        else:
            sock.bind(endpoint)
    except (OSError, zmq.ZMQError) as error:
        reason = error.strerror or str(error)
        raise SysupError(f"cannot bind {endpoint}: {reason[:1].lower()}{reason[1:]}") from None


def address_of(fd: int) -> str:
    """The endpoint of a listening unix socket. Raises SysupError for anything else.

    So it does when the path is gone: nobody would ever reach it.
    """
    if not stat.S_ISSOCK(os.fstat(fd).st_mode):
        raise SysupError("it is no socket")
    with socket.socket(fileno=os.dup(fd)) as sock:
        if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_STREAM:
            raise SysupError("it is not a stream socket of the file system")
        if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise SysupError("it does not listen")
        path = os.fsdecode(sock.getsockname())
    try:
        there = stat.S_ISSOCK(os.lstat(path).st_mode)
    except OSError:
        there = False
    if not there:
        raise SysupError(f"{path or 'its path'} is not there any more")
    return f"ipc://{path}"


def _is_listened_at(path: str) -> bool:
    """Whether somebody is there, without waiting until he takes the connection."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(path)
        except BlockingIOError:  # many wait there already
            return True
        except OSError:  # nobody is there, or nothing
            return False
        return True


def listen(path: str, mode: int, group: int) -> socket.socket:
    """A listening unix socket at `path` with this mode and group, replacing a stale one.

    Where others may write to the directory, group and mode are to be -1 and OWN, which it has
    from its birth: they could put a link in its place, for us to give to a file of any name.

    Raises OSError; EADDRINUSE when somebody answers there, EEXIST when it is no socket.
    """
    if os.path.lexists(path) and not stat.S_ISSOCK(os.lstat(path).st_mode):
        raise FileExistsError(errno.EEXIST, "it is there, and no socket")
    if _is_listened_at(path):
        raise OSError(errno.EADDRINUSE, "somebody is listening there already")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    new = f"{path}.{os.getpid()}"
    try:
        before = os.umask(0o777 & ~OWN)
        try:
            listener.bind(new)
        finally:
            os.umask(before)
        if group >= 0:
            os.chown(new, -1, group)
        if mode != OWN:
            os.chmod(new, mode)
        listener.listen(BACKLOG)
        os.rename(new, path)
    except OSError:
        listener.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(new)
        raise
    return listener
