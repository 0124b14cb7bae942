"""What a process of a watcher is started with: its arguments and its environment."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sysup.config.ini import Variables
from sysup.config.specs import WATCHER_OPTIONS, WatcherSpec
from sysup.config.words import split
from sysup.protocol import SysupError

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where programs are looked for when the daemon itself has no PATH."""

_TOKEN = re.compile(
    r"\$\((?i:circus|sysup)\.([\w.-]+)\)|\(\((?i:circus|sysup)\.([\w.-]+)\)\)", re.ASCII
)


class Identity(NamedTuple):
    """The user a process runs as, as passwd(5) knows it."""

    name: str
    home: str
    shell: str


def command(
    spec: WatcherSpec, wid: int, sockets: Mapping[str, int], directory: str = ""
) -> list[str]:
    """The arguments of the process in slot `wid`, its program first.

    `sockets` are descriptors in the child, by lower-case name; `directory` is the daemon's, for who
    has no `working_dir`. Replaced in `cmd`, `args` and
    `shell_args`: `$(sysup.wid)`, `$(sysup.sockets.NAME)`, `$(sysup.OPTION)`,
    `$(sysup.rlimits.NAME)` and `$(sysup.env.NAME)`, also as `$(circus...)`; what is unknown
    stays as it is. Raises SysupError when the text cannot be split.
    """
    names = _Names(spec, wid, sockets, directory)
    cmd = names.expand(spec.cmd)
    if isinstance(spec.args, str):
        text, args = names.expand(spec.args), None
    else:
        args = [names.expand(arg) for arg in spec.args]
        text = shlex.join(args)
    if spec.shell:
        # The text is the shell's to read, so that what it says of pipes and files holds.
        script = f"{cmd} {text}" if text else cmd
        return ["/bin/sh", "-c", script, *_split("shell_args", names.expand(spec.shell_args or ""))]
    words = [*_split("cmd", cmd), *(_split("args", text) if args is None else args)]
    if not words or not words[0]:
        raise SysupError("cannot run cmd: it is empty")
    return words


def _split(option: str, text: str) -> list[str]:
    try:
        return split(text)
    except ValueError as error:
        raise SysupError(f"cannot split {option}: {str(error).lower()}") from None


class _Names:
    """What names stand for in the command of one process."""

    def __init__(
        self, spec: WatcherSpec, wid: int, sockets: Mapping[str, int], directory: str
    ) -> None:
        self._spec, self._wid, self._sockets, self._directory = spec, wid, sockets, directory
        self._env = Variables(spec.env)

    def expand(self, text: str) -> str:
        return _TOKEN.sub(self._replace, text) if "(" in text else text

    def _replace(self, match: re.Match[str]) -> str:
        value = self._value(match[1] or match[2])
        return match[0] if value is None else value

    def _value(self, name: str) -> str | None:
        lower = name.lower()
        kind, _, rest = lower.partition(".")
        if lower == "wid":
            return str(self._wid)
        if kind == "sockets":
            return str(self._sockets[rest]) if rest in self._sockets else None
        if kind == "env":
            return self._env.get(name.partition(".")[2])
        if kind == "rlimits":
            softs = {limit.name: limit.soft for limit in self._spec.rlimits}
            return _word(softs[rest], "infinity") if rest in softs else None
        option = WATCHER_OPTIONS.get(lower)
        if not option or lower in ("cmd", "args", "shell_args", "env"):
            return None
        nothing = self._directory if lower == "working_dir" else ""
        return _word(option.plain(option.of(self._spec)), nothing)


def _word(value: object, nothing: str) -> str:
    if value is None:
        return nothing
    return " ".join(str(item) for item in value) if isinstance(value, list) else str(value)


def environment(
    spec: WatcherSpec,
    *,
    circus: bool,
    environ: Mapping[str, str],
    identity: Identity | None = None,
    extra: Mapping[str, str] | None = None,
    sys_path: Sequence[str] = (),
) -> dict[str, str]:
    """The environment of a process.

    `environ` and `sys_path` are the daemon's. With `circus` it is what the [env] sections say
    and nothing else; otherwise under that come PATH and LANG of the daemon, and HOME, USER,
    LOGNAME and SHELL of `identity`. `copy_env` puts all of `environ` beneath, and `extra` lies
    on top.
    """
    env = dict(environ) if spec.copy_env else {}
    if not circus:
        env["PATH"] = environ.get("PATH") or PATH
        if environ.get("LANG"):
            env["LANG"] = environ["LANG"]
        if identity:
            env |= {"HOME": identity.home, "SHELL": identity.shell}
            env |= {"USER": identity.name, "LOGNAME": identity.name}
    env |= spec.env
    python_path = list(spec.python_path)
    if spec.copy_path:
        python_path += [path for path in sys_path if path]
    if python_path:
        python_path += [path for path in env.get("PYTHONPATH", "").split(":") if path]
        env["PYTHONPATH"] = ":".join(dict.fromkeys(python_path))
    if spec.virtualenv:
        env["VIRTUAL_ENV"] = spec.virtualenv
        env["PATH"] = ":".join((f"{spec.virtualenv}/bin", env.get("PATH") or PATH))
    return env | dict(extra or {})


def search_path(env: Mapping[str, str], environ: Mapping[str, str]) -> str:
    """Where a process's program is looked for: in its own PATH, as a shell or Python would, and
    without one in that of the daemon's `environ`."""
    return env.get("PATH") or environ.get("PATH") or PATH
