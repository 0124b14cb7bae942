"""The blocking client: finds an app's sockets, asks its daemon, listens to its events.

ZeroMQ connects in the background and for ever, so by itself a client can't tell a daemon
that isn't there from one that thinks. Two things make it know at once:

- Before the first request a plain socket connects to the endpoint and is closed again.
  What connect(2) says (ENOENT, ECONNREFUSED, EACCES) is the reason a person reads; the
  daemon sees a connection that ends before its greeting, which libzmq drops by itself.
- A monitor socket (zmq_socket_monitor(3)) tells when the connection is lost while a
  reply is waited for: the daemon ended, and the reply will never come.
"""

from __future__ import annotations

import errno
import importlib
import json
import os
import re
import socket
import stat
import sys
import time
from collections import deque
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any

import zmq

from sysup import keyring, protocol
from sysup.keyring import Keyring
from sysup.protocol import Errno, Request, SysupError

TIMEOUT = 5.0
"""Seconds until a call gives up, unless told otherwise."""
LINGER = 1000
"""Milliseconds that a request without reply may take to leave."""
ACCEPTS = "00010000"
"""In the flags of /proc/net/unix: it listens (net/unix/af_unix.c, __SO_ACCEPTCON)."""
NOT_LET_IN = (
    zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)
"""What a monitor tells then. A daemon that ends in the midst of a handshake looks like the last."""
ENDPOINT_VARIABLES = ("SYSUPCTL_ENDPOINT", "CIRCUSCTL_ENDPOINT")


class CallError(SysupError):
    """A call failed: the text says why, `errno` is the daemon's number for it.

    `reply` is what the daemon answered, empty when there was no answer.
    """

    def __init__(
        self,
        reason: str,
        errno: Errno = Errno.NOT_SPECIFIED,
        reply: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(reason)
        self.errno = errno
        self.reply = reply or {}


class Unreachable(CallError):
    """There is no daemon to be reached; nothing was asked of it."""


class NotRunning(Unreachable):
    """Nobody is there, and nobody would start an app that is asked."""


class ConnectionLost(CallError):
    """The daemon ended, or cut the connection, before it replied."""


class TimedOut(CallError):
    """No reply came in time; the daemon may still do what was asked."""


# ---- where the daemon is -----------------------------------------------------------------


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


def probe(endpoint: str, timeout: float = TIMEOUT) -> None:
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


# ---- asking ------------------------------------------------------------------------------


class Client:
    """A connection to one daemon, for one thread.

    Args:
        target: an endpoint (`ipc://PATH`, `tcp://HOST:PORT`) or the name of an app; by
            default the one that `find_endpoint` finds.
        timeout: seconds that a call waits for its reply, None: for ever. May be changed
            between calls.
        context: the ZeroMQ context to use; by default the process's own. One of zmq.green lets
            the other greenlets of gevent go on.
        key, server_key: over TCP, the files of the client's own keys and of the daemon's public
            key; by default those that `keyring.find` finds. Without any it is plain TCP.
    Raises:
        Unreachable: when no daemon is there.
        SysupError: when a key can't be used.
    """

    def __init__(
        self,
        target: str | None = None,
        timeout: float | None = TIMEOUT,
        context: zmq.Context[zmq.Socket[bytes]] | None = None,
        *,
        key: str | None = None,
        server_key: str | None = None,
    ) -> None:
        endpoint = target if target and "://" in target else find_endpoint(target)
        self._keys = keyring.find(endpoint, key, server_key)
        probe(endpoint, TIMEOUT if timeout is None else timeout)
        self.endpoint = endpoint
        self.timeout = timeout
        self._context = context or zmq.Context.instance()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        if self._keys is not None:
            self._keys.secure(self._socket)
        self._monitor = self._socket.get_monitor_socket(zmq.EVENT_DISCONNECTED | NOT_LET_IN)
        self._poller = poller_of(self._context)
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._monitor, zmq.POLLIN)
        self._socket.connect(endpoint)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<sysup.client.Client {self.endpoint}>"

    def close(self) -> None:
        """Close the connection."""
        self._socket.disable_monitor()
        self._monitor.close(0)
        self._socket.close()

    def call(self, command: str, /, **properties: Any) -> dict[str, Any]:
        """Ask the daemon to run a command, and return its reply.

        Args:
            command: its name, as `stop`.
            properties: what the command takes, as `name="web", waiting=True`.
        Raises:
            CallError: the daemon refused, or the command failed.
            TimedOut: no reply came within `timeout`.
            ConnectionLost: the daemon ended before it replied.
        """
        self._forget_the_past()
        request = Request(command, properties, id=os.urandom(8).hex())
        self._socket.send(encoded(request))
        return checked(self._reply_to(request))

    def cast(self, command: str, /, **properties: Any) -> None:
        """Tell the daemon to run a command; whether it did is not told."""
        self._socket.setsockopt(zmq.LINGER, LINGER)
        self._socket.send(encoded(Request(command, properties, cast=True)))

    def subscribe(self, topics: Iterable[str] = ("",)) -> Subscription:
        """Listen to the daemon's events; see `Subscription`. Raises as `call` does."""
        return Subscription(self.events_endpoint(), topics, self._context, self._keys)

    def subscribe_stats(self, topics: Iterable[str] = (protocol.STATS,)) -> Subscription:
        """The same of figures of processes, under `stat.`, that come each second."""
        endpoint = self.events_beside() or self._published("stats_endpoint")
        return Subscription(endpoint, topics, self._context, self._keys)

    def events_endpoint(self) -> str:
        """Where the daemon publishes; it is asked if its socket isn't beside the control socket."""
        return self.events_beside() or self._published("pubsub_endpoint")

    def _published(self, option: str) -> str:
        """An endpoint as the daemon tells it."""
        return reached(str(self.call("globaloptions")["options"][option]), self.endpoint)

    def events_beside(self) -> str | None:
        """The app's own event socket, if its control socket is what we are connected to."""
        return events_beside(self.endpoint)

    def _forget_the_past(self) -> None:
        """Drop what the monitor told of connections that ended between two calls."""
        while self._monitor.poll(0):
            self._hear_of_refusal()

    def _hear_of_refusal(self) -> None:
        """Raise Unreachable if what the monitor tells is that we were not let in."""
        kind = int.from_bytes(self._monitor.recv_multipart()[0][:2], sys.byteorder)
        if error := refusal(kind, self.endpoint, self._keys):
            raise error

    def _reply_to(self, request: Request) -> dict[str, Any]:
        until = None if self.timeout is None else time.monotonic() + self.timeout
        while True:
            left = None if until is None else max(0, int((until - time.monotonic()) * 1000))
            ready = dict(self._poller.poll(left))
            if self._socket in ready:
                reply = decoded(self._socket.recv_multipart()[-1])
                if reply.get("id") == request.id or is_stray_refusal(reply):
                    return reply
            elif self._monitor in ready:
                self._hear_of_refusal()
                raise ConnectionLost("connection lost: sysupd ended before it replied")
            else:
                raise TimedOut(
                    f"timed out after {self.timeout:g} s: no reply to {request.command} "
                    f"from {self.endpoint}"
                )


def poller_of(context: zmq.Context[zmq.Socket[bytes]]) -> zmq.Poller:
    """One that waits as the sockets of a context do: those of zmq.green let gevent go on."""
    if type(context).__module__.startswith("zmq.green"):
        poller: zmq.Poller = importlib.import_module("zmq.green").Poller()
        return poller
    return zmq.Poller()


def encoded(request: Request) -> bytes:
    """Raises CallError for a request that the daemon would not read, but cut us off."""
    frame = protocol.encode_request(request)
    if len(frame) > protocol.MAX_MESSAGE:
        most = f"the request has {len(frame)} bytes, at most {protocol.MAX_MESSAGE} are read"
        raise CallError(f"cannot {request.command}: {most}", Errno.MESSAGE_ERROR)
    return frame


def decoded(frame: bytes) -> dict[str, Any]:
    """A reply; empty, so nobody's, if it is not a JSON object."""
    try:
        reply = json.loads(frame)
    except ValueError:
        return {}
    return reply if isinstance(reply, dict) else {}


def is_stray_refusal(reply: Mapping[str, Any]) -> bool:
    """Whether it refuses a request that the daemon could not even read the `id` of."""
    return reply.get("status") == "error" and reply.get("id") is None


def checked(reply: dict[str, Any]) -> dict[str, Any]:
    """A reply that tells of no error; else raises CallError with it."""
    # `status NAME` puts the watcher's state in the place of the reply's own status
    if reply.get("status") == "error" and "reason" in reply:
        raise CallError(str(reply["reason"]), _errno(reply.get("errno")), reply)
    return reply


def _errno(number: Any) -> Errno:
    try:
        return Errno(number)
    except ValueError:
        return Errno.NOT_SPECIFIED


def refusal(kind: int, endpoint: str, keys: Keyring | None) -> Unreachable | None:
    """What an event of a monitor means, if it is that we were not let in.

    A handshake that ends without a word (NO_DETAIL) may mean as well that the daemon ended.
    """
    if not kind & NOT_LET_IN or not endpoint.startswith("tcp://"):
        return None
    if kind == zmq.EVENT_HANDSHAKE_FAILED_AUTH and keys is not None:
        reason = f"the key {keys.own_path} is not authorized there; see sysupctl authorize"
    elif keys is not None:
        reason = f"its key is not that of {keys.server_path}, or it is plain TCP"
    else:
        reason = "it wants keys (see --key and --server-key)"
    if kind == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL:
        reason += ", or it has just ended"
    return Unreachable(f"cannot reach {endpoint}: {reason}", Errno.ACCESS_DENIED)


def events_beside(endpoint: str) -> str | None:
    """The event socket beside an app's control socket; None where that is no such one."""
    if endpoint.startswith("ipc://"):
        path = endpoint.removeprefix("ipc://")
        beside = os.path.join(os.path.dirname(path), protocol.EVENTS_SOCKET)
        if os.path.basename(path) == protocol.CONTROL_SOCKET and os.path.exists(beside):
            return f"ipc://{beside}"
    return None


def reached(endpoint: str, via: str) -> str:
    """An endpoint that a daemon tells of, as it is reached from where `via` is that daemon's."""
    if via.startswith("tcp://"):
        host = via.removeprefix("tcp://").rpartition(":")[0]
        for anywhere in ("tcp://0.0.0.0:", "tcp://*:"):
            endpoint = endpoint.replace(anywhere, f"tcp://{host}:")
    return endpoint


# ---- listening ---------------------------------------------------------------------------


class Subscription:
    """Events, as an iterator of (topic, payload) which ends never.

    What is published before the daemon has seen the subscription, some milliseconds after
    this object is made, is not received: see `wait_until_heard`. Nor is what happens while
    the daemon restarts, after which the connection comes back by itself.

    Args:
        endpoint: where the daemon publishes.
        topics: beginnings of the topics wanted, as `watcher.web.`; "" is all events.
        context: the ZeroMQ context to use; by default the process's own.
        keys: those to use, where it is not plain TCP.
    """

    def __init__(
        self,
        endpoint: str,
        topics: Iterable[str] = ("",),
        context: zmq.Context[zmq.Socket[bytes]] | None = None,
        keys: Keyring | None = None,
    ) -> None:
        self.endpoint = endpoint
        self.times_heard = 0
        """How often the daemon has taken note of the subscription, once `wait_until_heard` asked
        for it: once, and again after each reconnection."""
        self._echo = f"{protocol.ECHO}{os.urandom(8).hex()}".encode()
        self._early: deque[list[bytes]] = deque()
        self._socket = (context or zmq.Context.instance()).socket(zmq.SUB)
        self._socket.setsockopt(zmq.LINGER, 0)
        if keys is not None and endpoint.startswith("tcp://"):
            keys.secure(self._socket)
        for topic in topics:
            self._socket.setsockopt(zmq.SUBSCRIBE, topic.encode())
        self._socket.connect(endpoint)

    def __enter__(self) -> Subscription:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self.close()

    def __iter__(self) -> Subscription:
        return self

    def __next__(self) -> tuple[str, Any]:
        while True:
            event = self.receive(None)
            if event is not None:
                return event

    def wait_until_heard(self, timeout: float) -> bool:
        """Wait until the daemon has seen the subscription: what it publishes then is received.

        False if that takes longer than `timeout` seconds, or the daemon doesn't tell: only
        sysupd does, at the app's own endpoint.
        """
        self._socket.setsockopt(zmq.SUBSCRIBE, self._echo)
        until = time.monotonic() + timeout
        while not self.times_heard:
            if not self._socket.poll(max(0, int((until - time.monotonic()) * 1000))):
                return False
            frames = self._socket.recv_multipart()
            if not self._is_echo(frames):
                self._early.append(frames)
        return True

    def receive(self, timeout: float | None) -> tuple[str, Any] | None:
        """The next event.

        None when none comes within `timeout` seconds (None: for ever), and each time that
        `times_heard` grows. Raises SysupError for a message of another shape; listening can
        go on.
        """
        if self._early:
            frames = self._early.popleft()
        elif self._socket.poll(None if timeout is None else int(timeout * 1000)):
            frames = self._socket.recv_multipart()
            if self._is_echo(frames):
                return None
        else:
            return None
        try:
            topic, payload = frames
            return topic.decode("utf-8", "replace"), json.loads(payload)
        except ValueError as error:
            raise SysupError(f"cannot read an event of {self.endpoint}: {error}") from None

    def wait(self, fds: Iterable[int], timeout: float) -> set[int]:
        """Wait until there is an event, or one of these descriptors can be read; those that can.

        Empty, too, when neither comes within `timeout` seconds.
        """
        poller = zmq.Poller()
        for fd in fds:
            poller.register(fd, zmq.POLLIN)
        poller.register(self._socket, zmq.POLLIN)
        left = 0 if self._early else int(timeout * 1000)
        return {found for found, _ in poller.poll(left) if isinstance(found, int)}

    def _is_echo(self, frames: list[bytes]) -> bool:
        if frames[0] != self._echo:
            return False
        self.times_heard += 1
        return True

    def close(self) -> None:
        """Stop listening."""
        self._socket.close()
