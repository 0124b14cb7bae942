"""Where an app lives while it runs: its directory, who may enter, and the lock on it."""

from __future__ import annotations

import contextlib
import fcntl
import grp
import os
import stat
from typing import Any

from sysup import protocol
from sysup.config import Config
from sysup.protocol import SysupError

GROUP = "sysup"


def runtime_directory(loaded: Config) -> str:
    """The app's own directory for its sockets, made if it is not there.

    One that root has made (systemd, for the control socket) is left as it is.

    Raises SysupError when it can't be made, or belongs to somebody else: in a directory
    that others may write (/tmp) they could have put it there.
    """
    base = loaded.daemon.runtime_dir or protocol.runtime_base(os.geteuid(), os.environ)
    path = os.path.join(base, loaded.app)
    group, _ = socket_access()
    try:
        os.makedirs(base, mode=0o755, exist_ok=True)
        if is_open_to_strangers(os.stat(base)):
            raise SysupError(f"cannot use {base}: others may replace what is in it")
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)
        found = os.lstat(path)
        if not stat.S_ISDIR(found.st_mode) or found.st_uid not in (0, os.geteuid()):
            raise SysupError(f"cannot use {path}: it is not a directory of this user")
        if found.st_uid != os.geteuid():
            if found.st_mode & 0o002:
                raise SysupError(f"cannot use {path}: others may replace what is in it")
            if not os.access(path, os.W_OK | os.X_OK):
                raise SysupError(f"cannot use {path}: it is root's, and this user may not write it")
            return path
        if group >= 0:
            os.chown(path, -1, group)
        os.chmod(path, 0o750 if group >= 0 else 0o700)
    except OSError as error:
        raise SysupError(f"cannot make {path}: {error.strerror}") from None
    return path


def is_open_to_strangers(directory: os.stat_result) -> bool:
    """Whether others than root and we may rename or remove what is ours in a directory.

    Where it is sticky (/tmp) they may not, unless it is their own.
    """
    if directory.st_uid not in (0, os.geteuid()):
        return True
    return bool(directory.st_mode & 0o022) and not directory.st_mode & stat.S_ISVTX


def socket_access() -> tuple[int, int]:
    """Group (-1: none) and mode of the sockets: for the group sysup where root has one."""
    if os.geteuid() == 0:
        try:
            return grp.getgrnam(GROUP).gr_gid, 0o660
        except KeyError:
            pass
    return -1, 0o600


def take_lock(directory: str, app: str, held: int = -1) -> Any:
    """Hold the app's lock as long as the daemon lives, so there is never a second one.

    `held`: its descriptor, where it is ours already.

    Raises SysupError naming the daemon that holds it.
    """
    path = os.path.join(directory, "lock") if held < 0 else held
    file = open(path, "a+", encoding="ascii")  # noqa: SIM115
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip()
        file.close()
        raise SysupError(f"cannot run {app}: sysupd is running already (pid {holder})") from None
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file
