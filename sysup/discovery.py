"""Where the daemons are: finds the control sockets of apps, and knocks at an endpoint.

ZeroMQ connects in the background and for ever, so by itself a client can't tell a daemon that
isn't there from one that thinks. So before the first request a plain socket connects to the
endpoint and is closed again. What connect(2) says (ENOENT, ECONNREFUSED, EACCES) is the reason a
person reads; the daemon sees a connection that ends before its greeting, which libzmq drops by
itself.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import stat
from collections.abc import Mapping

from sysup import protocol
from sysup.protocol import CallError, Errno

PATIENCE = 5.0
"""Seconds that a connection may take, unless told otherwise."""
ACCEPTS = "00010000"
"""In the flags of /proc/net/unix: it listens (net/unix/af_unix.c, __SO_ACCEPTCON)."""
ENDPOINT_VARIABLES = ("SYSUPCTL_ENDPOINT", "CIRCUSCTL_ENDPOINT")


class Unreachable(CallError):
    """There is no daemon to be reached; nothing was asked of it."""


class NotRunning(Unreachable):
    """Nobody is there, and nobody would start an app that is asked."""


def find_endpoint(
    app: str | None = None,
    environ: Mapping[str, str] | None = None,
    uid: int | None = None,
) -> str:
    """The control endpoint of an app.

    Without `app`, the endpoint in SYSUPCTL_ENDPOINT or CIRCUSCTL_ENDPOINT, else that of
    the one app which is running.

    Args:
        app: its name.
        environ: instead of the process's environment.
        uid: the user whose apps come first, instead of the process's.
    Raises:
        Unreachable: the app isn't running, or none is, or several are, or they can't be
            reached; says where was looked, and why not.
    """
    environ = os.environ if environ is None else environ
    uid = os.geteuid() if uid is None else uid
    if app is None:
        for variable in ENDPOINT_VARIABLES:
            if environ.get(variable):
                return environ[variable]
    bases = _bases(uid, environ)
    sockets = _control_sockets(bases)
    return _only_one(sockets, bases) if app is None else _of_app(app, sockets, bases)


def apps(environ: Mapping[str, str] | None = None, uid: int | None = None) -> list[str]:
    """The names of the apps that have a control socket, running or not, sorted."""
    uid = os.geteuid() if uid is None else uid
    bases = _bases(uid, os.environ if environ is None else environ)
    return sorted({name for name, _ in _control_sockets(bases)})


def running(environ: Mapping[str, str] | None = None, uid: int | None = None) -> dict[str, str]:
    """The endpoints of the apps that run and may be commanded, by name. Raises NotRunning."""
    uid = os.geteuid() if uid is None else uid
    bases = _bases(uid, os.environ if environ is None else environ)
    found = _running(_control_sockets(bases), _listening())
    if not found:
        raise NotRunning(f"no sysupd is running (looked in {', '.join(bases)})")
    return {name: f"ipc://{path}" for name, path in found.items()}


def _bases(uid: int, environ: Mapping[str, str]) -> list[str]:
    """The user's own base, then the system's; an override stands alone."""
    own = protocol.runtime_base(uid, environ)
    if environ.get("SYSUP_RUNTIME_DIR"):
        return [own]
    bases = dict.fromkeys([own, protocol.SYSTEM_BASE])
    return [base for base in bases if not _is_foreign(base, uid)]


def _is_foreign(base: str, uid: int) -> bool:
    """Whether a stranger made it, as anybody may in /tmp, to have us talk to his sockets."""
    try:
        return os.lstat(base).st_uid not in (0, uid)
    except OSError:
        return False


def _control_sockets(bases: list[str]) -> list[tuple[str, str]]:
    """(app, path of its control socket), as they are found; stale ones, too."""
    found = []
    for base in bases:
        try:
            names = sorted(os.listdir(base))
        except OSError:
            continue
        paths = ((name, os.path.join(base, name, protocol.CONTROL_SOCKET)) for name in names)
        found += [(name, path) for name, path in paths if _may_be_there(path)]
    return found


def _may_be_there(path: str) -> bool:
    """Whether the socket exists, or its directory hides it from us."""
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)
    except PermissionError:
        return True
    except OSError:
        return False


def _of_app(app: str, sockets: list[tuple[str, str]], bases: list[str]) -> str:
    for name, path in sockets:
        if name == app:
            return f"ipc://{path}"
    others = ", ".join(sorted({name for name, _ in sockets}))
    known = f"; there is {others}" if others else ""
    raise NotRunning(f"{app} is not running (looked in {', '.join(bases)}{known})")


def _only_one(sockets: list[tuple[str, str]], bases: list[str]) -> str:
    """The one app that runs, or the one that would be started by asking it.

    No socket is connected to for that where the kernel tells who listens: systemd may hold
    those of many apps, and a connection to each would start them all.
    """
    listening = _listening()
    found = _listened_at(sockets, listening)
    running = _running(sockets, listening)
    idle = bool(found) and not running
    live = {name: f"ipc://{path}" for name, path in (running or found).items()}
    denied = None
    for name, path in sockets if not live else ():
        try:
            probe(f"ipc://{path}")
        except Unreachable as error:
            denied = error if error.errno is Errno.ACCESS_DENIED else denied
        else:
            live.setdefault(name, f"ipc://{path}")
    if len(live) > 1:
        several = "several apps wait to be started" if idle else "several apps are running"
        raise Unreachable(f"{several}: {', '.join(sorted(live))}; name one (-a APP)")
    for endpoint in live.values():
        return endpoint
    raise denied or NotRunning(f"no sysupd is running (looked in {', '.join(bases)})")


def _listened_at(sockets: list[tuple[str, str]], listening: set[str]) -> dict[str, str]:
    """Those where somebody listens whom we may ask, by app."""
    found: dict[str, str] = {}
    for name, path in sockets:
        if path in listening and os.access(path, os.W_OK, effective_ids=True):
            found.setdefault(name, path)
    return found


def _running(sockets: list[tuple[str, str]], listening: set[str]) -> dict[str, str]:
    """Those of them that are a daemon's, not systemd's for one that is yet to be started.

    The socket of events is the daemon's own, so there is one.
    """
    found = _listened_at(sockets, listening)
    events = {name: os.path.join(os.path.dirname(p), protocol.EVENTS_SOCKET) for name, p in sockets}
    return {name: path for name, path in found.items() if events[name] in listening}


def _listening() -> set[str]:
    """The paths of all unix sockets that somebody listens at, as far as can be known.

    The kernel tells the name that a socket was bound by; sysupd's were `NAME.PID` then.
    """
    try:
        with open("/proc/net/unix", errors="surrogateescape") as table:
            rows = [line.rstrip("\n").split(maxsplit=7) for line in table]
    except OSError:
        return set()
    paths = {row[7] for row in rows if len(row) == 8 and row[3] == ACCEPTS}
    return paths | {re.sub(r"\.\d+$", "", path) for path in paths}


def probe(endpoint: str, timeout: float = PATIENCE) -> None:
    """Raise Unreachable, with the reason, when nobody listens at an endpoint.

    Endpoints of other kinds than `ipc://PATH` and `tcp://HOST:PORT` are taken on trust.
    """
    scheme, _, where = endpoint.partition("://")
    try:
        if not where:
            raise ValueError("not an endpoint; write ipc://PATH or tcp://HOST:PORT")
        if scheme == "ipc":
            _connect_unix(where, timeout)
        elif scheme == "tcp" and ";" not in where:
            host, _, port = where.rpartition(":")
            socket.create_connection((host.strip("[]"), int(port)), timeout).close()
    except (OSError, ValueError) as error:
        raise Unreachable(f"cannot reach {endpoint}: {_reason(error)}") from None


def _connect_unix(path: str, timeout: float) -> None:
    with socket.socket(socket.AF_UNIX) as plain:
        plain.settimeout(timeout)
        try:
            plain.connect("\0" + path[1:] if path.startswith("@") else path)
        except BlockingIOError:
            pass  # the listener's queue is full (EAGAIN, unix(7)): it is there, and busy
        except PermissionError:
            raise Unreachable(_permission_text(path), Errno.ACCESS_DENIED) from None


def _reason(error: Exception) -> str:
    match error:
        case OSError(errno=errno.ENOENT):
            return "there is no such socket; is sysupd running?"
        case OSError(errno=errno.ECONNREFUSED):
            return "connection refused; is sysupd running?"
        case OSError(strerror=str(text)):
            return text[:1].lower() + text[1:]
        case _:
            return str(error)


def _permission_text(path: str) -> str:
    """Who may use a socket, and what to do to be one of them."""
    import grp
    import pwd

    denied, found = path, None
    while found is None:
        try:
            found = os.stat(denied)
        except PermissionError:  # the mode of a directory above it stands in the way
            denied = os.path.dirname(denied)
    try:
        owner = pwd.getpwuid(found.st_uid).pw_name
    except KeyError:
        owner = str(found.st_uid)
    try:
        group = grp.getgrgid(found.st_gid).gr_name
    except KeyError:
        group = str(found.st_gid)
    mode = stat.S_IMODE(found.st_mode)
    joining = f"join group {group} or " if mode & stat.S_IRWXG and found.st_gid else ""
    return f"permission denied: {denied} is {owner}:{group} {mode:04o}; {joining}use sudo"
