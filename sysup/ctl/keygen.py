"""sysupctl keygen and authorize: the keys with which one commands over TCP.

Both write files and ask no daemon. A key is made where it is used: its secret never travels.
"""

from __future__ import annotations

import os
import re

import click
import zmq

from sysup import certificates, keyring
from sysup.certificates import BadCertificate, Certificate
from sysup.ctl.session import Command, session
from sysup.protocol import SysupError

SERVER_DIRECTORY = "/etc/sysup/keys"
AUTHORIZED = "authorized"
ROLES = ("read", "operate", "admin")
SECRET = "A secret: who has this file is who it says. Give it to nobody."
PUBLIC = "A public key: whoever is to know the peer may have this file."


def _expanded(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    return None if value is None else os.path.abspath(os.path.expanduser(value))


force_option = click.option("--force", is_flag=True, help="Replace files that are there.")


@click.command(cls=Command)
@click.option("--server", is_flag=True, help="Make a daemon's keys, not your own.")
@click.option(
    "--dir",
    "directory",
    metavar="DIR",
    callback=_expanded,
    help=f"Where to: ~/.config/sysup, or {SERVER_DIRECTORY} with --server.",
)
@force_option
def keygen(server: bool, directory: str | None, force: bool) -> None:
    """Make keys for encrypted TCP: your own, or a daemon's.

    Writes client.key_secret and client.key, or server.key_secret, server.key and the directory
    authorized, and says what to do with them.
    """
    name = "server" if server else "client"
    where = directory or (SERVER_DIRECTORY if server else keyring.directory())
    public, secret = (key.decode() for key in zmq.curve_keypair())
    secret_path = os.path.join(where, f"{name}.key_secret")
    public_path = os.path.join(where, f"{name}.key")
    _make_directory(os.path.join(where, AUTHORIZED if server else keyring.SERVERS))
    _refuse_to_replace([secret_path, public_path], force)
    _write(secret_path, Certificate(public, secret), SECRET, 0o600)
    _write(public_path, Certificate(public), PUBLIC, 0o644)
    steps = _server_steps(where) if server else _client_steps(where)
    session().show({"secret": secret_path, "public": public_path, "key": public}, steps)


def _server_steps(where: str) -> list[str]:
    return [
        f"made {where}/server.key_secret, which stays here, and {where}/server.key",
        "next:",
        f"  1. in the app's file, under [sysup]: endpoint = tcp://HOST:PORT, curve_dir = {where};",
        "     then restart the app",
        "  2. for each who is to connect: have `sysupctl keygen` run there, get client.key, and",
        f"     sysupctl authorize NAME client.key --role operate{_dir(where, SERVER_DIRECTORY)}",
        "  3. give them server.key, for ~/.config/sysup/servers/HOST:PORT.key",
    ]


def _client_steps(where: str) -> list[str]:
    own = where == keyring.directory()
    use = "" if own else f" --key {where}/client.key_secret"
    return [
        f"made {where}/client.key_secret, which stays here, and {where}/client.key",
        "next:",
        f"  1. bring {where}/client.key to the daemon's machine, and there",
        "     sysupctl authorize NAME client.key --role operate",
        f"  2. put the daemon's server.key at {keyring.directory()}/servers/HOST:PORT.key",
        f"  3. sysupctl --endpoint tcp://HOST:PORT{use} status",
    ]


def _dir(where: str, default: str) -> str:
    return "" if where == default else f" --dir {where}"


@click.command(cls=Command)
@click.argument("name")
@click.argument("file", type=click.Path(dir_okay=False))
@click.option(
    "--role", type=click.Choice(ROLES), default="read", help="What they may do (read by default)."
)
@click.option(
    "--dir",
    "directory",
    metavar="DIR",
    default=SERVER_DIRECTORY,
    callback=_expanded,
    help=f"The app's curve_dir ({SERVER_DIRECTORY}).",
)
@force_option
def authorize(name: str, file: str, role: str, directory: str, force: bool) -> None:
    """Let somebody connect over TCP whose public key is in FILE.

    Counts at once, as long as DIR/authorized/NAME.key is there.
    """
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.@-]{0,99}", name):
        raise SysupError(f"cannot authorize {name!r}: a name is of letters, digits and _.@-")
    try:
        with open(file, encoding="utf-8", errors="replace") as source:
            found = certificates.parse(source.read(certificates.LONGEST))
    except OSError as error:
        raise SysupError(f"cannot read {file}: {error.strerror}") from None
    except BadCertificate as error:
        raise SysupError(f"cannot read {file}: {error}") from None
    if not os.path.isdir(directory):
        hint = f"`sysupctl keygen --server{_dir(directory, SERVER_DIRECTORY)}` makes it"
        raise SysupError(f"cannot authorize {name}: there is no {directory}; {hint}")
    authorized = os.path.join(directory, AUTHORIZED)
    path = os.path.join(authorized, f"{name}.key")
    _make_directory(authorized)
    _refuse_to_replace([path], force)
    _write(path, Certificate(found.public, metadata={"name": name, "role": role}), PUBLIC, 0o644)
    text = [f"{name} may {role}; to end that: rm {path}"]
    if found.secret:
        text.append(f"note: {file} has the secret key, which nobody but its owner should have")
    session().show({"path": path, "role": role, "key": found.public}, text)


def _make_directory(path: str) -> None:
    """Make it with those above it, open to no other writers whatever the umask is."""
    before = os.umask(0o022)
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise SysupError(f"cannot make {path}: {error.strerror}") from None
    finally:
        os.umask(before)


def _refuse_to_replace(paths: list[str], force: bool) -> None:
    for path in paths:
        if os.path.lexists(path) and not force:
            raise SysupError(f"cannot make {path}: it is there already; --force replaces it")


def _write(path: str, certificate: Certificate, remark: str, mode: int) -> None:
    """Put a certificate in place as a whole; it never is more open than it is to be."""
    new = f"{path}.{os.getpid()}.new"
    try:
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(fd, "w", encoding="utf-8") as file:
            file.write(certificates.render(certificate, remark))
            file.flush()
            os.fchmod(fd, mode)
            os.fsync(fd)
        os.rename(new, path)
    except OSError as error:
        raise SysupError(f"cannot write {path}: {error.strerror}") from None
