"""Kinds of option values: those a supervisor has, and the types they yield."""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sysup.config.kinds import (
    SECONDS,
    WHOLE,
    Flag,
    Kind,
    NotYet,
    Seconds,
    Size,
    Whole,
    between,
    items,
    nearest,
    number_text,
    string,
    whole,
)


class Restart(StrEnum):
    """When a process that ended by itself is started again."""

    ALWAYS = "always"
    ON_FAILURE = "on-failure"
    NEVER = "never"


class Role(StrEnum):
    """What a client may do."""

    READ = "read"
    OPERATE = "operate"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class StopStage:
    """A signal of a stop, and the seconds it is given (None: `graceful_timeout`)."""

    signum: int
    timeout: float | None = None


Limits = tuple[int | None, int | None]
"""Soft and hard limit of a resource; None is infinity."""

RLIMITS = (
    *("as", "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile"),
    *("nproc", "rss", "rtprio", "rttime", "sigpending", "stack"),
)
"""Resources of getrlimit(2), in lower case without RLIMIT_."""

_CAPABILITIES = """
    chown dac_override dac_read_search fowner fsetid kill setgid setuid setpcap linux_immutable
    net_bind_service net_broadcast net_admin net_raw ipc_lock ipc_owner sys_module sys_rawio
    sys_chroot sys_ptrace sys_pacct sys_admin sys_boot sys_nice sys_resource sys_time
    sys_tty_config mknod lease audit_write audit_control setfcap mac_override mac_admin syslog
    wake_alarm block_suspend audit_read perfmon bpf checkpoint_restore
"""
CAPABILITIES = tuple(f"CAP_{name.upper()}" for name in _CAPABILITIES.split())
"""capabilities(7) in the kernel's order: a name's index is the number of its bit."""

SIGNALS = {name.removeprefix("SIG"): int(s) for name, s in signal.Signals.__members__.items()}
_SIGNAL = re.compile(r"(?:SIG)?([A-Z]+[A-Z0-9]*)(?:([+-])(\d{1,2}))?", re.ASCII)


def signal_number(text: str) -> int:
    """The number of a signal given as `TERM`, `SIGTERM`, `15` or `SIGRTMIN+1`.

    Raises ValueError when there is no such signal.
    """
    if match := _SIGNAL.fullmatch(text.upper()):
        name, sign, offset = match.groups()
        if name not in SIGNALS:
            raise ValueError(f"unknown signal '{text}'{nearest(name, SIGNALS)}")
        number = SIGNALS[name] + int(f"{sign}{offset}" if sign else 0)
    elif WHOLE.fullmatch(text):
        number = int(text)
    else:
        raise ValueError(f"'{text}' is not a signal")
    if not 1 <= number <= SIGNALS["RTMAX"]:
        raise ValueError(f"'{text}' is not a signal: there are 1 to {SIGNALS['RTMAX']}")
    return number


def signal_name(number: int) -> str:
    """The shortest text that signal_number reads as `number`."""
    if SIGNALS["RTMIN"] < number < SIGNALS["RTMAX"]:
        return f"RTMIN+{number - SIGNALS['RTMIN']}"
    try:
        return signal.Signals(number).name.removeprefix("SIG")
    except ValueError:  # 32 and 33, which the C library keeps to itself
        return str(number)


def is_loopback(endpoint: str) -> bool:
    """Whether a ZeroMQ endpoint can be reached from this machine alone."""
    if not endpoint.startswith("tcp://"):
        return True
    host = endpoint.removeprefix("tcp://").rpartition(":")[0]
    return host in ("localhost", "[::1]") or bool(re.fullmatch(r"127(\.\d{1,3}){3}", host))


class Account(Kind[str]):
    """A user or group, by name or number; who that is is looked up at each spawn."""

    label = "name or number"

    def text(self, text: str) -> str:
        if text.isdecimal() and text.isascii():
            if len(text) > 10 or int(text) >= 2**32 - 1:  # -1 means "keep" to setresuid(2)
                raise ValueError(f"{text} is too large for an id")
        elif not text or text[0] in "-+" or re.search(r"[\s:/,]", text):
            raise ValueError(f"'{text}' is neither a name nor a number")
        return text

    def wire(self, value: object) -> str:
        return self.text(string(value) if isinstance(value, str) else str(whole(value)))


class Respawn(Kind[Restart]):
    """Circus's boolean for what became a choice of three."""

    label = "boolean"

    def text(self, text: str) -> Restart:
        return Restart.ALWAYS if Flag().text(text) else Restart.NEVER

    def wire(self, value: object) -> Restart:
        return Restart.ALWAYS if Flag().wire(value) else Restart.NEVER

    def plain(self, value: Restart) -> Any:
        return value is not Restart.NEVER


class Processes(Whole):
    """How many processes; later also from the number of CPUs."""

    def text(self, text: str) -> int:
        if text.lower().startswith("auto"):
            raise NotYet
        return super().text(text)


class Capability(Kind[str]):
    """A capability, with or without CAP_."""

    label = "capability"

    def text(self, text: str) -> str:
        name = f"CAP_{text.upper().removeprefix('CAP_')}"
        if name not in CAPABILITIES:
            raise ValueError(f"unknown capability '{text}'{nearest(name, CAPABILITIES)}")
        return name


class Codes(Kind[frozenset[int]]):
    """Ways for a process to end: exit codes, and signals (kept as negative numbers)."""

    label = "list of exit codes and signals"
    takes_empty = True

    def text(self, text: str) -> frozenset[int]:
        return self.wire(text)

    def wire(self, value: object) -> frozenset[int]:
        return frozenset(self._code(item) for item in items(value))

    @staticmethod
    def _code(item: object) -> int:
        if isinstance(item, str) and not WHOLE.fullmatch(item):
            return -signal_number(item)
        code = int(item) if isinstance(item, str) else whole(item)
        return between(code, -SIGNALS["RTMAX"], 255)

    def plain(self, value: frozenset[int]) -> Any:
        return sorted(value)


class Cpus(Kind[frozenset[int]]):
    """Numbers of processors and ranges of them: 0-3,8."""

    label = "list of CPUs"
    most = 4096

    def text(self, text: str) -> frozenset[int]:
        return self.wire(text)

    def wire(self, value: object) -> frozenset[int]:
        cpus: set[int] = set()
        for item in items(value):
            match = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", str(item), re.ASCII)
            if not match:
                raise ValueError(f"'{item}' is neither a CPU nor a range of CPUs")
            first, last = int(match[1]), int(match[2] or match[1])
            if not first <= last < self.most:
                raise ValueError(f"'{item}' is not a range of CPUs below {self.most}")
            cpus.update(range(first, last + 1))
        if not cpus:
            raise ValueError("at least one CPU is needed")
        return frozenset(cpus)

    def plain(self, value: frozenset[int]) -> Any:
        return sorted(value)


class Stages(Kind[tuple[StopStage, ...]]):
    """The signals of a stop, each with its seconds: `QUIT 30 TERM 5 KILL`."""

    label = "signal, or `SIGNAL SECONDS ...`"

    def text(self, text: str) -> tuple[StopStage, ...]:
        stages: list[StopStage] = []
        words = text.split()
        while words:
            signum = signal_number(words.pop(0))
            timed = bool(words) and bool(SECONDS.fullmatch(words[0]))
            stages.append(StopStage(signum, Seconds().text(words.pop(0)) if timed else None))
        if not stages:
            raise ValueError("a signal is needed")
        while len(stages) > 1 and stages[-1].signum == SIGNALS["KILL"]:
            stages.pop()  # SIGKILL always follows the last stage
        return tuple(stages)

    def wire(self, value: object) -> tuple[StopStage, ...]:
        return self.text(string(value) if isinstance(value, str) else str(whole(value)))

    def plain(self, value: tuple[StopStage, ...]) -> Any:
        if len(value) == 1 and value[0].timeout is None:
            return value[0].signum
        return " ".join(
            signal_name(stage.signum)
            + ("" if stage.timeout is None else f" {number_text(stage.timeout)}")
            for stage in value
        )


class Limit(Kind[Limits]):
    """`soft` or `soft:hard`; sizes may be used; empty, -1 and `infinity` are no limit."""

    label = "`LIMIT` or `SOFT:HARD`"
    takes_empty = True

    def text(self, text: str) -> Limits:
        soft, colon, hard = text.partition(":")
        return self._checked(self._one(soft), self._one(hard if colon else soft))

    def wire(self, value: object) -> Limits:
        return self.text(string(value) if isinstance(value, str) else str(whole(value)))

    @staticmethod
    def _one(text: str) -> int | None:
        text = text.strip()
        return None if text.lower() in ("", "-1", "infinity", "unlimited") else Size().text(text)

    @staticmethod
    def _checked(soft: int | None, hard: int | None) -> Limits:
        if hard is not None and (soft is None or soft > hard):
            raise ValueError(f"the soft limit is above the hard limit, {hard}")
        return soft, hard

    def plain(self, value: Limits) -> Any:
        words = ["infinity" if limit is None else str(limit) for limit in value]
        if value[0] != value[1]:
            return ":".join(words)
        return words[0] if value[0] is None else value[0]


class Ready(Kind[str]):
    """What shows that a process is ready."""

    label = "`spawn` \\| `uptime:SECONDS`"
    later = re.compile(r"notify|fd:\d+|tcp:.+:\d+|(?:unix|http|exec|log):.+", re.DOTALL)

    def text(self, text: str) -> str:
        how, _, rest = text.partition(":")
        if how == "uptime":
            return f"uptime:{number_text(Seconds().text(rest))}"
        if self.later.fullmatch(text):
            raise NotYet
        if text != "spawn":
            raise ValueError(f"'{text}' is neither spawn nor uptime:SECONDS")
        return text


class Endpoint(Kind[str]):
    """A ZeroMQ address."""

    label = "`tcp://HOST:PORT` or `ipc://PATH`"

    def text(self, text: str) -> str:
        if re.fullmatch(r"ipc://.+", text):
            return text
        match = re.fullmatch(r"tcp://(\[[0-9a-fA-F:]+\]|[^\s:/\[\]]+):(\d{1,6})", text, re.ASCII)
        if not match:
            raise ValueError(f"'{text}' is neither tcp://HOST:PORT nor ipc://PATH")
        between(int(match[2]), 1, 65535)
        return text
