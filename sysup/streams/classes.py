"""Stream classes by their names in a config: the built-in ones, and users' own."""

from __future__ import annotations

import importlib
import random
from collections.abc import Mapping
from typing import Any, Final, Literal

from sysup.config import StreamSpec
from sysup.protocol import SysupError
from sysup.streams.places import MAX_LINE, FileOptions, FilePlace, Place, PythonPlace
from sysup.streams.pump import OnState, Pump, Sink, Style

StreamName = Literal["stdout", "stderr"]

BUILT_IN: Final = ("FileStream", "StdoutStream", "FancyStdoutStream")
COLORS: Final = ("red", "green", "yellow", "blue", "magenta", "cyan", "white")
FIRST_COLOR = 31
"""The terminal's number of the first of them (ECMA-48, SGR)."""
DAY_TIME = "%Y-%m-%d %H:%M:%S"


def _load(cls: str, options: dict[str, object]) -> Any:
    """An object of a user's class; raises SysupError, whatever the user's code raises."""
    module, _, name = cls.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)(**options)
    except (Exception, SystemExit) as error:
        reason = f"{type(error).__name__}: {error}"
        raise SysupError(f"cannot load stream class {cls}: {reason}") from error


def open_sink(
    pump: Pump,
    spec: StreamSpec | None,
    stream_name: StreamName,
    on_state: OnState | None = None,
) -> Sink:
    """Where a stream of a watcher goes; to be closed by `Sink.close`.

    Args:
        spec: None is the daemon's own stdout or stderr.
        on_state: told when the sink fails, and when it works again.

    Raises SysupError if it can never work: an unknown class, one that can't be loaded, a
    missing option. A file that can't be opened is no such case: its failure is told, its
    processes wait, and it is tried again.
    """
    if spec is None:
        fd = 1 if stream_name == "stdout" else 2
        place: Place = FilePlace.lent(pump.places, fd, stream_name, FileOptions())
        return Sink(place, None, on_state)
    if "." in spec.cls:
        target = _load(spec.cls, dict(spec.options))
        place = PythonPlace(pump.places, spec.cls, target, stream_name)
        return Sink(place, None, on_state)
    if spec.cls not in BUILT_IN:
        raise SysupError(f"cannot open {stream_name}_stream: no such class: {spec.cls}")
    return Sink(_file(pump, spec, stream_name), _style(spec), on_state)


def _style(spec: StreamSpec) -> Style | None:
    options: Mapping[str, Any] = spec.options
    time_format = options.get("time_format")
    if spec.cls == "FancyStdoutStream":
        color = COLORS.index(options.get("color") or random.choice(COLORS)) + FIRST_COLOR
        return Style(time_format or DAY_TIME, f"\033[{color}m", "\033[0m")
    return Style(time_format) if time_format else None


def _file(pump: Pump, spec: StreamSpec, stream_name: StreamName) -> FilePlace:
    options: Mapping[str, Any] = spec.options
    form = FileOptions(
        max_bytes=options.get("max_bytes", 0),
        backup_count=options.get("backup_count", 0),
        refresh_time=options.get("refresh_time", 0.0),
        max_line=options.get("max_line", MAX_LINE),
    )
    if spec.cls != "FileStream":
        return FilePlace.lent(pump.places, 1, "stdout", form)
    if not options.get("filename"):
        raise SysupError(f"cannot open {stream_name}_stream: FileStream needs a filename")
    return FilePlace.named(pump.places, options["filename"], form)
