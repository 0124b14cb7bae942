"""What options mean together: rules that no single option can check.

They hold for a file and for the wire alike, so a broken rule is a Fault, and each caller turns
it into its own kind of complaint.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

from sysup.config.declare import Option
from sysup.config.ini import Level
from sysup.config.kinds import NotYet, nearest
from sysup.config.specs import (
    FAMILIES,
    STREAM_FIELDS,
    TEXT,
    WATCHER_OPTIONS,
    StreamSpec,
    WatcherSpec,
)
from sysup.config.streams import STREAMS
from sysup.config.words import split

V = TypeVar("V")

_CLASS = Option("class", TEXT, "", "the class")
STREAM_OPTIONS = tuple(dict.fromkeys(name for options in STREAMS.values() for name in options))
_SOCKET = re.compile(r"\$\((?:circus|sysup)\.sockets\.([\w.-]+)\)", re.IGNORECASE)
_NOT_FREE = frozenset(("flapping", "backoff", *STREAM_FIELDS, "hooks", "check"))
"""Beginnings of dotted names that are all declared here; others are anybody's."""

ELSEWHERE = {
    **{"command": "cmd", "directory": "working_dir", "user": "uid", "group": "gid"},
    **{"numprocs": "numprocesses", "autorestart": "restart", "exitcodes": "success_codes"},
    **{"startretries": "max_retry", "startsecs": "ready = uptime:SECONDS"},
    **{"stopsignal": "stop_signal", "stopwaitsecs": "graceful_timeout"},
    **{"stopasgroup": "stop_scope", "killasgroup": "stop_scope"},
    **{f"{stream}_logfile": f"{stream}_stream.filename" for stream in ("stdout", "stderr")},
    **{f"{s}_logfile_maxbytes": f"{s}_stream.max_bytes" for s in ("stdout", "stderr")},
    **{f"{s}_logfile_backups": f"{s}_stream.backup_count" for s in ("stdout", "stderr")},
    **{"start_command": "cmd", "stop_signals": "stop_signal"},
    **{"stop_grace_time": "graceful_timeout", "start_grace_time": "ready = uptime:SECONDS"},
}
"""What supervisord and Bluepill call an option."""

_SHELLS = frozenset({"|", "||", "&", "&&", ">", ">>", "<", "2>", "2>&1", "&>"})

LONGEST = (1 << 17) - 1
"""Characters of a command line: Linux takes an argument of no more bytes (MAX_ARG_STRLEN)."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A broken rule; `option` is the one to look at, empty for the section as a whole."""

    option: str
    message: str
    level: Level = Level.ERROR


def fault(option: str, error: ValueError) -> Fault:
    """The fault of an option whose value could not be read."""
    return Fault(option, str(error), Level.STRICT if isinstance(error, NotYet) else Level.ERROR)


def is_free(name: str) -> bool:
    """Whether an unknown option's name shows that it is meant for a hook or plugin."""
    head, dot, _ = name.partition(".")
    return bool(dot) and head not in _NOT_FREE


@cache
def unknown(name: str) -> str:
    """What to say of an option that no watcher has."""
    if name in ("env", "environment"):
        return "unknown option (variables have sections of their own: [env], [env:NAME])"
    if name in ELSEWHERE:
        return f"unknown option (here it is '{ELSEWHERE[name]}')"
    names = [*WATCHER_OPTIONS, *(f"{f.prefix}{n}" for f in FAMILIES for n in f.names)]
    for field in STREAM_FIELDS:
        names += [f"{field}.{option}" for option in ("class", *STREAM_OPTIONS)]
    return f"unknown option{nearest(name, names)}"


def read_stream(
    field: str, given: Mapping[str, V], read: Callable[[Option, V], Any]
) -> tuple[StreamSpec | None, list[Fault]]:
    """The stream that the options after `field.` describe.

    `read` gives the value of one of them, or raises ValueError. No stream is returned when
    there is a fault that keeps it from working.
    """
    faults: list[Fault] = []

    def value(option: Option, name: str) -> Any:
        try:
            return read(option, given[name])
        except ValueError as error:
            faults.append(fault(f"{field}.{name}", error))
            return option.default

    cls = value(_CLASS, "class") if "class" in given else ""
    cls = cls or ("FileStream" if "filename" in given else "")
    rest = [name for name in given if name != "class"]
    if "." in cls:
        free = {name: value(Option(name, TEXT, "", ""), name) for name in rest}
        return StreamSpec(cls, free), faults
    faults += _class_faults(f"{field}.class", cls)
    if cls not in STREAMS:
        names = [f"{field}.{name}" for name in rest if not cls and name not in STREAM_OPTIONS]
        faults += [Fault(name, unknown(name), Level.STRICT) for name in names]
        return None, faults
    options = {name: option.default for name, option in STREAMS[cls].items()}
    for name in rest:
        if name in options:
            options[name] = value(STREAMS[cls][name], name)
        else:
            message = f"{cls} has no such option{nearest(name, options)}"
            faults.append(Fault(f"{field}.{name}", message, Level.STRICT))
    faults += _stream_faults(field, cls, options, given)
    return StreamSpec(cls, options), faults


def _class_faults(option: str, cls: str) -> Iterator[Fault]:
    if not cls:
        yield Fault(option, "missing: give a class, or a filename")
    elif cls not in STREAMS:
        yield Fault(option, f"unknown stream class '{cls}'{nearest(cls, STREAMS)}")


def _stream_faults(
    field: str, cls: str, options: Mapping[str, object], given: Mapping[str, object]
) -> Iterator[Fault]:
    if "filename" in options and options["filename"] is None:
        yield Fault(f"{field}.filename", "missing")
    when = options.get("rotate_when")
    if cls == "TimedRotatingFileStream" and not when and options.get("rotate_at") is None:
        yield Fault(f"{field}.rotate_when", "missing")
    if options.get("rotate_at") is not None and when in ("S", "M", "H", "D"):
        yield Fault(f"{field}.rotate_at", f"a time of day does not go with rotate_when = {when}")
    idle = [name for name in ("max_bytes", "rotate_age") if options.get(name)]
    if idle and "backup_count" not in given and not when and options.get("rotate_at") is None:
        message = "has no effect without backup_count: the file never rotates"
        yield Fault(f"{field}.{idle[0]}", message, Level.WARNING)
    if options.get("rate_burst") and not options.get("rate"):
        yield Fault(f"{field}.rate_burst", "has no effect without rate", Level.WARNING)
    if options.get("format") == "json" and options.get("time_format") not in (None, "iso"):
        message = "the time of a JSON record is ISO 8601"
        yield Fault(f"{field}.time_format", message, Level.WARNING)


def faults(spec: WatcherSpec, sockets: Collection[str] | None) -> Iterator[Fault]:
    """What is wrong with a watcher as a whole; `sockets`: those there are, None: not known."""
    if not spec.cmd.strip():
        yield Fault("cmd", "missing: what is to be run?")
    if spec.singleton and spec.numprocesses > 1:
        yield Fault("numprocesses", "a singleton has 0 or 1")
    if spec.shell_args and not spec.shell:
        yield Fault("shell_args", "has no effect without shell = True", Level.WARNING)
    for name in ("copy_path", "virtualenv"):
        if getattr(spec, name) and not spec.copy_env:
            yield Fault(name, "needs copy_env = True")
    if spec.virtualenv_py_ver and not spec.virtualenv:
        yield Fault("virtualenv_py_ver", "has no effect without virtualenv", Level.WARNING)
    yield from _input_faults(spec)
    yield from _quoting_faults(spec)
    if sockets is not None:
        yield from _socket_faults(spec, sockets)


def _input_faults(spec: WatcherSpec) -> Iterator[Fault]:
    if spec.stdin == "socket" and not spec.stdin_socket:
        yield Fault("stdin_socket", "missing: which socket is stdin = socket?")
    if spec.stdin in ("null", "pipe") and spec.stdin_socket:
        yield Fault("stdin_socket", f"does not go with stdin = {spec.stdin}")
    if spec.pty and spec.close_child_stdout:
        yield Fault("pty", "does not go with close_child_stdout: the terminal is standard output")
    if spec.pty and spec.stdout_stream and spec.stdout_stream.cls == "JournalDirect":
        yield Fault("pty", "does not go with JournalDirect: who reads a terminal is sysupd")


def _quoting_faults(spec: WatcherSpec) -> Iterator[Fault]:
    texts = {"cmd": spec.cmd, "args": spec.args, "shell_args": spec.shell_args}
    for name, text in texts.items():
        if isinstance(text, str) and len(text) > LONGEST:
            yield Fault(name, f"longer than {LONGEST} characters: the kernel takes none so long")
            continue
        if not isinstance(text, str) or (spec.shell and name != "shell_args"):
            continue
        try:
            words = split(text)
        except ValueError as error:
            yield Fault(name, f"cannot split it: {str(error).lower()}")
        else:
            if name == "cmd" and text.strip() and not words[0]:
                yield Fault("cmd", "its first word, the program, is empty")
            yield from _strange_words(name, text, words)


def _strange_words(option: str, text: str, words: Collection[str]) -> Iterator[Fault]:
    """Words that a program seldom wants, but a shell does, or who reads the file."""
    unquoted = {*text.split()}.intersection(words)
    if found := sorted(unquoted & _SHELLS):
        message = f"{found[0]} is an argument here; for a shell to see to it, set shell = yes"
        yield Fault(option, message, Level.WARNING)
    if "#" in unquoted and "\n" not in text:  # an indented one is told of where it is read
        message = "# is an argument here; a comment at the end of a line begins with a blank and ;"
        yield Fault(option, message, Level.WARNING)


def _socket_faults(spec: WatcherSpec, sockets: Collection[str]) -> Iterator[Fault]:
    """Names that are not in the config: systemd may hand over a socket of such a name."""
    for option, names in _named_sockets(spec).items():
        for name in names:
            if name.lower() not in sockets:
                hint = nearest(name, sockets) or "; it has to come from systemd"
                yield Fault(option, f"there is no socket '{name}'{hint}", Level.WARNING)


def named_sockets(spec: WatcherSpec) -> set[str]:
    """The sockets that a watcher can't do without."""
    return {name.lower() for names in _named_sockets(spec).values() for name in names}


def _named_sockets(spec: WatcherSpec) -> dict[str, list[str]]:
    """By option, as they are written."""
    args = spec.args if isinstance(spec.args, str) else " ".join(spec.args)
    texts = {"cmd": spec.cmd, "args": args, "shell_args": spec.shell_args or ""}
    named = {option: _SOCKET.findall(text) for option, text in texts.items()}
    stdin = [spec.stdin_socket] if spec.stdin_socket else []
    return {"stdin_socket": stdin, "listen_fds": list(spec.listen_fds), **named}
