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


def bind(sock: zmq.Socket[bytes], endpoint: str, mode: int, group: int) -> None:
    """Bind a ZeroMQ socket; raises SysupError with the reason.

    An ipc socket is made here and handed to libzmq (ZMQ_USE_FD), because libzmq would
    leave its mode to the umask: it is bound and given mode and group under a name of its
    own, then renamed, so it is never open to more than it should be.
    """
    try:
        if endpoint.startswith("ipc://"):
            listener = listen(endpoint.removeprefix("ipc://"), mode, group)
            sock.setsockopt(zmq.USE_FD, listener.detach())
            try:
                sock.bind(endpoint)
            finally:
                sock.setsockopt(zmq.USE_FD, -1)
        else:
            sock.bind(endpoint)
    except (OSError, zmq.ZMQError) as error:
        reason = error.strerror or str(error)
        raise SysupError(f"cannot bind {endpoint}: {reason[:1].lower()}{reason[1:]}") from None


def listen(path: str, mode: int, group: int) -> socket.socket:
    """A listening unix socket at `path` with this mode and group, replacing a stale one.

    Raises OSError; EADDRINUSE when somebody answers there, EEXIST when it is no socket.
    """
    if os.path.lexists(path) and not stat.S_ISSOCK(os.lstat(path).st_mode):
        raise FileExistsError(errno.EEXIST, "it is there, and no socket")
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except OSError:
            pass  # nobody is there, or nothing
        else:
            raise OSError(errno.EADDRINUSE, "somebody is listening there already")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    new = f"{path}.{os.getpid()}"
    try:
        before = os.umask(0o177)
        try:
            listener.bind(new)
        finally:
            os.umask(before)
        if group >= 0:
            os.chown(new, -1, group)
        os.chmod(new, mode)
        listener.listen(BACKLOG)
        os.rename(new, path)
    except OSError:
        listener.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(new)
        raise
    return listener
