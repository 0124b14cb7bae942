"""What operators see of a watcher's output: its last lines, its files, where its streams go."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from sysup import config
from sysup.config import StreamSpec, WatcherSpec
from sysup.protocol import Incomplete, SysupError, Written
from sysup.stats import Steps
from sysup.streams import Direct, Sink
from sysup.taps import described
from sysup.watcher import Watcher

REOPENED_WITHIN = 3.0
"""Seconds that files have to be opened again; who asked is still there."""


def tails(
    watcher: Watcher, wid: int | None, stream_name: str | None, lines: int
) -> list[dict[str, Any]]:
    """The last lines of each stream, of the last process of a slot where none runs."""
    found = []
    for each, body in watcher.slots.newest.items():
        for stream in body.streams if wid in (None, each) else ():
            if stream_name in (None, stream.name):
                data, at = stream.tail_at()
                found.append(described(stream, each, last_lines(data, lines), at))
    return found


def last_lines(data: bytes, number: int) -> bytes:
    """So many lines from the end; the last one need not be finished."""
    end = len(data) - data.endswith(b"\n")
    begin = end
    for _ in range(number):
        begin = data.rfind(b"\n", 0, begin)
        if begin < 0:
            return data
    return data[begin + 1 :] if number else b""


# ---- files -------------------------------------------------------------------------------


async def reopen(watchers: Iterable[Watcher]) -> dict[str, Any]:
    """Open the watchers' files again by their names; returns the names, as `files`.

    Raises Incomplete when some can't be opened, with those that could.
    """
    found = {sink.name: sink for watcher in watchers for sink in _files(watcher)}
    tried = {name: asyncio.Event() for name in found}
    for name, sink in found.items():
        sink.reopen(tried[name].set)
    with suppress(TimeoutError):
        async with asyncio.timeout(REOPENED_WITHIN):
            for each in tried.values():
                await each.wait()
    failed = []
    for name, sink in sorted(found.items()):
        if not tried[name].is_set():
            failed.append(f"cannot open {name}: that takes longer than {REOPENED_WITHIN:g} s")
        elif sink.failure:
            failed.append(sink.failure)
        else:
            continue
        del found[name]
    files = {"files": sorted(found)}
    if failed:
        raise Incomplete("; ".join(failed), files)
    return files


def rotate(watcher: Watcher) -> list[str]:
    """Rotate the watcher's files now; returns their names. Raises SysupError if it has none."""
    files = {sink.name: sink for sink in _files(watcher)}
    found = {name: sink for name, sink in files.items() if sink.can_rotate}
    if not found:
        reason = "it writes no file"
        if files:
            reason = "its file keeps no backups: set backup_count"
        elif any(_filename(spec) for spec in _specs(watcher).values()):
            reason = "its file is not open"
        raise SysupError(f"cannot rotate {watcher.name}: {reason}")
    for sink in found.values():  # a file of two streams is rotated once
        sink.rotate()
    return sorted(found)


def _files(watcher: Watcher) -> list[Sink]:
    specs = _specs(watcher)
    return [
        sink
        for mould in watcher.slots.generations.moulds
        for name, sink in mould.sinks.items()
        if not isinstance(sink, Direct) and (sink.can_rotate or sink.name == _filename(specs[name]))
    ]


def _specs(watcher: Watcher) -> dict[str, StreamSpec | None]:
    return {"stdout": watcher.spec.stdout_stream, "stderr": watcher.spec.stderr_stream}


def _filename(spec: StreamSpec | None) -> str | None:
    name = spec.options.get("filename") if spec else None
    return None if name is None else str(name)


# ---- all that is known of a watcher ------------------------------------------------------


def status(watchers: Iterable[Watcher], hidden: str | None, processes: bool) -> Steps[Written]:
    """What `status` tells of watchers, by name, and of each of their `processes` if that is wanted.

    `hidden` stands for what these wrote; None: that may be seen.
    """
    texts = []
    for watcher in watchers:
        texts.append(f"{json.dumps(watcher.name)}: {watcher.written(hidden, processes)}")
        yield
    return Written(f"{{{', '.join(texts)}}}")


def show(watcher: Watcher) -> dict[str, Any]:
    """What `status` tells, and the command, changed options, streams and deaths."""
    return {
        "name": watcher.name,
        **watcher.describe(),
        "options": config.changed(watcher.spec),
        "streams": _streams(watcher),
        "deaths": _deaths(watcher),
    }


def _streams(watcher: Watcher) -> list[dict[str, Any]]:
    """Where each stream goes, whether it gets there, and how much came."""
    spec = watcher.spec
    closed = {"stdout": spec.close_child_stdout, "stderr": spec.close_child_stderr}
    return [
        {
            "stream": name,
            "class": stream.cls if stream else None,
            "to": None if closed[name] else _destination(spec, name, stream),
            "failure": _failure(watcher, name),
            "bytes": sum(
                each.bytes_read
                for body in watcher.slots.newest.values()
                for each in body.streams
                if each.name == name
            ),
            **watcher.slots.generations.losses.get(name, {}),
        }
        for name, stream in _specs(watcher).items()
    ]


def _destination(spec: WatcherSpec, name: str, stream: StreamSpec | None) -> str:
    if name == "stderr" and spec.one_terminal:
        return "the terminal of stdout"
    return _filename(stream) or (stream.cls if stream else f"{name} of sysupd")


def _failure(watcher: Watcher, name: str) -> str | None:
    sinks = [
        sink
        for m in watcher.slots.generations.moulds
        for each, sink in m.sinks.items()
        if each == name
    ]
    return next((sink.failure for sink in sinks if sink.failure), None)


def _deaths(watcher: Watcher) -> list[dict[str, Any]]:
    """The last death of each slot."""
    now = watcher.board.loop.time()
    return [
        {
            "wid": wid,
            "pid": body.process.pid,
            "exit_code": death.exit_code,
            "reason": death.reason,
            "ago": round(now - death.time, 3),
            "last_output": body.output or None,
        }
        for wid, body in sorted(watcher.slots.dead.items())
        if (death := body.death)
    ]


def hidden(report: Mapping[str, Any], word: str) -> dict[str, Any]:
    """A report on a watcher with `word` instead of what its processes wrote."""
    lists = {key: report[key] for key in ("processes", "deaths") if key in report}
    return {
        **report,
        **{
            key: [{**row, "last_output": word} if row["last_output"] else row for row in rows]
            for key, rows in lists.items()
        },
    }
