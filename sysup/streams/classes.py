"""Stream classes by their names in a config: the built-in ones, and users' own."""

from __future__ import annotations

import importlib
import json
import logging
import queue
import random
import sys
from collections.abc import Mapping
from typing import Any, Final, Literal, NamedTuple

from sysup._native import lib
from sysup.config import StreamSpec
from sysup.config.streams import COLORS, DAY_TIME, MAX_LINE, STREAMS
from sysup.protocol import SysupError
from sysup.streams import journal
from sysup.streams.files import FileOptions, FilePlace
from sysup.streams.owner import owner_ids
from sysup.streams.packing import available
from sysup.streams.places import Place, PythonPlace
from sysup.streams.pump import OnLoss, OnRotated, OnState, Pump, Sink, Work
from sysup.streams.schedule import Schedule

log = logging.getLogger("sysup.streams")

StreamName = Literal["stdout", "stderr"]

FIRST_COLOR: Final = 31
"""The terminal's number of the first of them (ECMA-48, SGR)."""
QUEUE_RECORDS: Final = 10_000


class QueueStream(queue.Queue[dict[str, Any]]):
    """Circus's class for programs that embed it: what comes is got by `get`.

    Of records that nobody gets only the newest are kept.
    """

    def __call__(self, data: dict[str, Any]) -> None:
        """Take a record."""
        while self.qsize() >= QUEUE_RECORDS:
            self.get_nowait()
        self.put_nowait(data)

    def close(self) -> None:
        """There is nothing to do."""


class Source(NamedTuple):
    """Whose output it is; an empty watcher: the daemon's own."""

    stream: StreamName
    watcher: str = ""
    app: str = ""
    to_journal: bool = False
    """Whether the journal is where it goes without a class."""
    import_path: tuple[str, ...] = ()
    """Where a class of one's own may be, beside the places of other modules."""

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.watcher} {self.stream}".strip()


def open_sink(
    pump: Pump,
    spec: StreamSpec | None,
    source: Source | StreamName,
    on_state: OnState | None = None,
    on_loss: OnLoss | None = None,
    on_rotated: OnRotated | None = None,
) -> Sink | journal.Direct:
    """Where a stream of a watcher goes; to be closed by its `close`.

    Args:
        spec: None is the journal for a source that says so, else the daemon's stdout or
            stderr.
        on_state: told when the sink fails, and when it works again.
        on_loss: told how many lines were left out.
        on_rotated: told that the file has one backup more.

    Raises SysupError if it can never work: an unknown class, one that can't be loaded, a
    missing option, an unknown owner. A file that can't be opened is no such case: its
    failure is told, its processes wait, and it is tried again.
    """
    if isinstance(source, str):
        source = Source(source)
    opening = _Opening(pump, _present(spec, source), source)
    if opening.cls == "JournalDirect":
        return opening.direct()
    return Sink(opening.place(), opening.work(), on_state, on_loss, on_rotated)


def _present(spec: StreamSpec | None, source: Source) -> StreamSpec:
    """What is opened in the end: the default, or what stands in where there is no journal."""
    if spec is None and source.to_journal:
        return StreamSpec("JournalStream", _defaults("JournalStream"))
    if spec is None:
        return StreamSpec("", {})
    entries = spec.cls == "JournalStream" and spec.options.get("fields", True)
    if spec.cls.startswith("Journal") and not journal.is_there("socket" if entries else "stdout"):
        _say_once(f"there is no journal ({journal.DIRECTORY}): its output goes to stdout")
        kept = {name: spec.options.get(name) for name in STREAMS["StdoutStream"]}
        given = {name: value for name, value in kept.items() if value is not None}
        return StreamSpec("StdoutStream", {**_defaults("StdoutStream"), **given})
    return spec


def _defaults(cls: str) -> dict[str, object]:
    return {name: option.default for name, option in STREAMS[cls].items()}


_said: set[str] = set()


def _say_once(text: str) -> None:
    if text not in _said:
        _said.add(text)
        log.warning("%s", text)


def _load(cls: str, options: dict[str, object], import_path: tuple[str, ...]) -> Any:
    """An object of a user's class; raises SysupError, whatever the user's code raises.

    Only now is its directory one to import from, and the last: who may write there, while the
    daemon is root, is to be asked for no other module, such as one that is not installed.
    """
    module, _, name = cls.rpartition(".")
    sys.path += [path for path in dict.fromkeys(import_path) if path not in sys.path]
    try:
        return getattr(importlib.import_module(module), name)(**options)
    except (Exception, SystemExit) as error:
        reason = f"{type(error).__name__}: {error}"
        raise SysupError(f"cannot load stream class {cls}: {reason}") from error


class _Opening:
    """A stream's options, and whose it is: the place that follows, and the work."""

    def __init__(self, pump: Pump, spec: StreamSpec, source: Source) -> None:
        self.cls = spec.cls
        self._places = pump.places
        self._options: Mapping[str, Any] = spec.options
        self._source = source

    def _get(self, name: str, default: Any = None) -> Any:
        value = self._options.get(name)
        return default if value is None else value

    # ---- where

    def place(self) -> Place:
        """The place, opened or shared."""
        match self.cls:
            case "":
                fd = 1 if self._source.stream == "stdout" else 2
                return FilePlace.lent(self._places, fd, self._source.stream, FileOptions())
            case "StdoutStream" | "FancyStdoutStream":
                return FilePlace.lent(self._places, 1, "stdout", self._file_options())
            case "FileStream" | "WatchedFileStream" | "TimedRotatingFileStream":
                return self._file()
            case "JournalStream":
                head = None if self._get("fields", True) else self._header()
                return journal.JournalPlace.open(self._places, self._options, head)
            case "QueueStream":
                return self._python("QueueStream", QueueStream())
        if "." in self.cls:
            made = _load(self.cls, dict(self._options), self._source.import_path)
            return self._python(self.cls, made)
        raise SysupError(f"cannot open {self._source.stream}_stream: no such class: {self.cls}")

    def direct(self) -> journal.Direct:
        """The journal's own stream."""
        return journal.Direct(self._options, self._source.stream, self._identifier())

    def _header(self) -> str:
        return journal.header(self._options, self._source.stream, self._identifier())

    def _identifier(self) -> str:
        return str(self._get("identifier", self._source.watcher or "sysupd"))

    def _python(self, name: str, target: Any) -> Place:
        buffer = self._get("buffer", 0) if "." not in self.cls else 0
        source = self._source.watcher, self._source.stream
        return PythonPlace(self._places, name, target, source, buffer)

    def _file(self) -> Place:
        filename = self._get("filename")
        if not filename:
            what = f"{self._source.stream}_stream"
            raise SysupError(f"cannot open {what}: {self.cls} needs a filename")
        compress = self._get("compress")
        if compress and (reason := available(compress)):
            raise SysupError(f"cannot compress {filename}: {reason}")
        return FilePlace.named(self._places, filename, self._file_options())

    def _file_options(self) -> FileOptions:
        owner, group = owner_ids(self._get("owner"), self._get("group"))
        return FileOptions(
            max_bytes=self._get("max_bytes", 0),
            backup_count=self._get("backup_count", 0),
            refresh_time=self._get("refresh_time", 0.0),
            buffer=self._get("buffer", 0),
            owner=owner,
            group=group,
            mode=self._get("mode"),
            rotate_age=self._get("rotate_age", 0.0),
            schedule=Schedule.of(self._options),
            compress=self._get("compress"),
            fsync=self._get("fsync", "never"),
            fsync_interval=self._get("fsync_interval", 1.0),
        )

    # ---- how

    def work(self) -> Work:
        """What is done to its lines."""
        rate = self._get("rate")
        patterns = [*self._get("select", ()), *self._get("deselect", ())]
        if "." in self.cls:  # its options are the class's own
            return Work(lib.FORMAT_RECORD, name=self._source.name)
        form, label, fields = self._form()
        return Work(
            form,
            name=self._source.name,
            label=label,
            patterns=patterns,
            rate=(rate.lines, rate.seconds, self._get("rate_burst", rate.lines)) if rate else None,
            drop=self._get("on_full") == "drop",
            max_line=self._get("max_line", MAX_LINE),
            **fields,
        )

    def _form(self) -> tuple[int, Any, dict[str, Any]]:
        """The form of a line, what stands before it, and what goes with the form."""
        time_format, form = self._get("time_format"), self._get("format", "raw")
        gap = " " if time_format else ""
        if self.cls == "FancyStdoutStream":
            color = COLORS.index(self._get("color") or random.choice(COLORS)) + FIRST_COLOR
            colours = {"before": f"\033[{color}m", "after": "\033[0m"}
            stamp = {"time_format": time_format or DAY_TIME}
            return lib.FORMAT_PREFIX, lambda wid, pid: f" [{pid}] | ", {**colours, **stamp}
        if self.cls == "JournalStream":
            return lib.FORMAT_RECORD, self._fields, self._entry()
        if self.cls == "QueueStream":
            return lib.FORMAT_RECORD, lambda wid, pid: "", {}
        if form == "json":
            return (
                lib.FORMAT_JSON,
                self._members,
                {"time_format": "iso", **self._note(self._members)},
            )
        if form == "prefix":
            watcher = self._source.watcher or "sysupd"
            label = lambda wid, pid: f"{gap}{watcher}.{wid}[{pid}]: "  # noqa: E731
            return lib.FORMAT_PREFIX, label, {"time_format": time_format, "note_label": gap}
        if time_format:
            stamp = {"time_format": time_format, "note_label": " | "}
            return lib.FORMAT_PREFIX, lambda wid, pid: f" [{pid}] | ", stamp
        return lib.FORMAT_RAW, lambda wid, pid: "", {}

    def _note(self, label: Any) -> dict[str, str]:
        return {"note_label": label(None, None)}

    def _entry(self) -> dict[str, Any]:
        return {
            "priority": journal.priority(self._options, self._source.stream),
            "level_prefix": bool(self._get("level_prefix", True)),
            **self._note(self._fields),
        }

    def _members(self, wid: int | None, pid: int | None) -> str:
        """Of a JSON record, after its time."""
        source = self._source
        who = {"app": source.app, "watcher": source.watcher, "wid": wid, "pid": pid}
        members = {name: value for name, value in who.items() if value not in ("", None)}
        members["stream"] = source.stream
        return "," + json.dumps(members, ensure_ascii=False, separators=(",", ":"))[1:-1]

    def _fields(self, wid: int | None, pid: int | None) -> str:
        """Of a journal entry, but for its priority and message."""
        source = self._source
        known = {
            "SYSUP_APP": source.app,
            "SYSUP_WATCHER": source.watcher,
            "SYSUP_WID": wid,
            "SYSUP_STREAM": source.stream,
            "SYSLOG_IDENTIFIER": self._identifier(),
            "SYSLOG_PID": pid,
        }
        return journal.fields(
            **{name: value for name, value in known.items() if value not in ("", None)}
        )
