"""The keys that a client uses over TCP: who it is, and who it takes the daemon to be.

Both are certificates, found in the first of these places:

    own       as told, $SYSUPCTL_KEY,        ~/.config/sysup/client.key_secret
    daemon's  as told, $SYSUPCTL_SERVER_KEY, ~/.config/sysup/servers/HOST:PORT.key,
              ~/.config/sysup/server.key

Where the daemon's key is not known, TCP is plain.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import zmq

from sysup import certificates
from sysup.certificates import BadCertificate, Certificate
from sysup.protocol import SysupError

KEY_VARIABLE = "SYSUPCTL_KEY"
SERVER_KEY_VARIABLE = "SYSUPCTL_SERVER_KEY"
OWN = "client.key_secret"
SERVER = "server.key"
SERVERS = "servers"


@dataclass(frozen=True, slots=True)
class Keyring:
    """The keys of a connection, and the files they are from."""

    own: Certificate
    server: Certificate
    own_path: str
    server_path: str

    def secure(self, sock: zmq.Socket[Any]) -> None:
        """Let a socket that is yet to connect use them."""
        sock.setsockopt(zmq.CURVE_PUBLICKEY, self.own.public.encode())
        sock.setsockopt(zmq.CURVE_SECRETKEY, self.own.secret.encode())
        sock.setsockopt(zmq.CURVE_SERVERKEY, self.server.public.encode())


def directory(environ: Mapping[str, str] | None = None) -> str:
    """Where a user's keys are."""
    environ = os.environ if environ is None else environ
    base = environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return os.path.join(base, "sysup")


def find(
    endpoint: str,
    key: str | None = None,
    server_key: str | None = None,
    environ: Mapping[str, str] | None = None,
) -> Keyring | None:
    """The keys for an endpoint; None where it is not TCP, or plain.

    Args:
        endpoint: where the client connects to.
        key: the file of its own keys.
        server_key: the file of the daemon's public key.
        environ: instead of the process's environment.
    Raises:
        SysupError: a file can't be used, or only one of the two keys is known.
    """
    if not endpoint.startswith("tcp://"):
        return None
    environ = os.environ if environ is None else environ
    home = directory(environ)
    own = key or environ.get(KEY_VARIABLE)
    daemons = server_key or environ.get(SERVER_KEY_VARIABLE)
    named = os.path.join(home, SERVERS, f"{endpoint.removeprefix('tcp://')}.key")
    server_path = daemons or _there(named) or _there(os.path.join(home, SERVER))
    if server_path is None:
        if own is None:
            return None
        where = f"say it by --server-key or {SERVER_KEY_VARIABLE}, or put it at {named}"
        raise SysupError(f"cannot use the key {own}: the daemon's key is not known; {where}")
    own_path = own or os.path.join(home, OWN)
    return Keyring(_own(own_path), _read(server_path), own_path, server_path)


def _there(path: str) -> str | None:
    return path if os.path.exists(path) else None


def _own(path: str) -> Certificate:
    found = _read(path)
    if not found.secret:
        raise SysupError(f"cannot use the key {path}: it has no secret-key")
    mode = stat.S_IMODE(os.stat(path).st_mode)
    if mode & 0o077:
        raise SysupError(f"cannot use the key {path}: others can read it; make its mode 0600")
    return found


def _read(path: str) -> Certificate:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return certificates.parse(file.read(certificates.LONGEST))
    except FileNotFoundError:
        hint = "; `sysupctl keygen` makes one" if path.endswith(OWN) else ""
        raise SysupError(f"cannot use the key {path}: there is no such file{hint}") from None
    except OSError as error:
        raise SysupError(f"cannot use the key {path}: {error.strerror}") from None
    except BadCertificate as error:
        raise SysupError(f"cannot use the key {path}: {error}") from None
