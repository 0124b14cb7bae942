"""Replies and events as text that people read: tables, lines, colours.

Pure: it returns text. Colours are always in it; whoever prints takes them out where they
are not wanted. What processes wrote and what clients named is shown with its control
characters spelled out, since it could command the terminal it is read on.
"""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import click

COLOURS = {
    "active": "green",
    "running": "green",
    "done": "green",
    "starting": "yellow",
    "stopping": "yellow",
    "backoff": "yellow",
    "flapping": "red",
    "failed": "red",
}
EVENT_COLOURS = {
    "backoff": "yellow",
    "flapping": "red",
    "gave_up": "red",
    "config_error": "red",
    "hook_failure": "red",
    "sink_failed": "red",
    "output_lost": "yellow",
}
TROUBLED = frozenset({"backoff", "flapping", "failed"})
"""States in which the last output tells something."""
ENVELOPE = frozenset({"status", "time", "id"})
"""What every reply has."""
LEAST_COLUMNS = 3
"""Of a table, from the left, that stay however narrow the terminal is."""
OUTPUT_LINES = 5
"""Lines of a process's last output that are shown."""


# ---- words -------------------------------------------------------------------------------


def clean(value: object) -> str:
    """Text with its control characters spelled out, so that it can't command a terminal."""
    text = str(value)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def duration(seconds: float | None) -> str:
    """`3d4h`, `4h05m`, `5m03s`, `42s`, `0.3s`; `-` for None."""
    if seconds is None:
        return "-"
    if 0 < seconds < 1:
        return f"{seconds:.1f}s"
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    days, h = divmod(hours, 24)
    if days:
        return f"{days}d{h}h"
    if hours:
        return f"{h}h{m:02}m"
    return f"{m}m{s:02}s" if minutes else f"{s}s"


def size(number: int) -> str:
    """`0 bytes`, `812 bytes`, `4.0 KiB`, `1.2 MiB`."""
    if number < 1024:
        return count(number, "byte")
    units = ("KiB", "MiB", "GiB", "TiB")
    power = min((number.bit_length() - 1) // 10, len(units))
    return f"{number / 1024**power:.1f} {units[power - 1]}"


def lost(told: Mapping[str, Any]) -> list[str]:
    """`12 lines (340 bytes) dropped`, and the same of those that were suppressed."""
    return [
        f"{count(told[f'{how}_lines'], 'line')} ({size(told.get(f'{how}_bytes', 0))}) {how}"
        for how in ("dropped", "suppressed")
        if told.get(f"{how}_lines")
    ]


UNITS = "KMGTPEZY"


def byte_size(text: object) -> float:
    """The bytes that Circus's `1.46M` means; 0 for what is no size."""
    found = re.fullmatch(rf"(\d+(?:\.\d+)?)([B{UNITS}])", str(text), re.ASCII)
    return float(found[1]) * 1024 ** (f"B{UNITS}".index(found[2])) if found else 0.0


def short_size(number: float) -> str:
    """`812B`, `1.5M`."""
    power = 0
    while number >= 1024 and power < len(UNITS):
        number, power = number / 1024, power + 1
    return f"{number:.1f}{UNITS[power - 1]}" if power else f"{number:.0f}B"


def number(value: object) -> float:
    """A figure; -1 for what is none, as Circus's N/A."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e15:
        return float(value)
    return -1.0


def clock_seconds(value: object) -> float:
    """The seconds of `2:05.25`; -1 for what is no such time."""
    found = re.fullmatch(r"(\d{1,9}):(\d{1,2}(?:\.\d{1,9})?)", str(value), re.ASCII)
    return int(found[1]) * 60 + float(found[2]) if found else -1.0


def count(number: int, noun: str) -> str:
    """`1 process`, `2 processes`, `3 retries`."""
    if number == 1:
        return f"1 {noun}"
    if noun.endswith("y"):
        return f"{number} {noun[:-1]}ies"
    return f"{number} {noun}{'es' if noun.endswith('s') else 's'}"


def exit_text(code: int | None) -> str:
    """What an exit code of an event says; negative ones are signals."""
    if code is None:
        return "exit code unknown"
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines with aligned columns; an empty cell is `-`, so that columns can be counted."""
    cells = [list(header), *([cell or "-" for cell in row] for row in rows)]
    widths = [max(map(_width, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(cell + " " * (w - _width(cell)) for cell, w in zip(row, widths, strict=True))
        for row in cells
    ]
    return [click.style(lines[0].rstrip(), bold=True), *(line.rstrip() for line in lines[1:])]


def fit(
    header: Sequence[str], rows: Sequence[Sequence[str]], width: int
) -> tuple[list[str], list[Sequence[str]], dict[int, str]]:
    """A table as it fits in so many columns: its header, its rows, and what stands below a row,
    by its number from 1, instead of in the last column.

    Given up, as far as need be, are in this order: columns with nothing in them; the last one,
    whose text goes below its row; others from the right.
    """
    columns = range(len(header))
    kept, last = [*columns], columns[-1]
    below: dict[int, str] = {}
    sizes = [max(_width(row[at]) or 1 for row in (header, *rows)) for at in columns]

    def is_too_wide() -> bool:
        return bool(sum(sizes[at] + 2 for at in kept) - 2 > width)

    if is_too_wide():
        kept = [at for at in kept if any(row[at] not in ("", "-") for row in rows)]
    if is_too_wide() and last in kept:
        kept.remove(last)
        below = {
            number: row[last] for number, row in enumerate(rows, 1) if row[last] not in ("", "-")
        }
    while is_too_wide() and len(kept) > LEAST_COLUMNS:
        kept.pop()
    return [header[at] for at in kept], [[row[at] for at in kept] for row in rows], below


def _width(cell: str) -> int:
    return len(click.unstyle(cell))


def key_values(values: Mapping[str, Any]) -> list[str]:
    """`key: value` lines, sorted; what isn't text is shown as JSON."""
    texts = {key: v if isinstance(v, str) else json.dumps(v) for key, v in values.items()}
    return [f"{clean(key)}: {clean(text)}" for key, text in sorted(texts.items())]


def state_text(state: str) -> str:
    """A state in its colour."""
    return click.style(clean(state), fg=COLOURS.get(state, "bright_black"))


# ---- status ------------------------------------------------------------------------------

STATUS_COLUMNS = ("NAME", "STATE", "READY", "PID", "UPTIME", "RESTARTS", "RETRY", "REASON")


USAGE_AT = STATUS_COLUMNS.index("RETRY")
USAGE_COLUMNS = ("CPU%", "MEM")


class Usage(NamedTuple):
    """What a process takes: per cent of a CPU, on average since its start, and bytes."""

    cpu: float
    memory: float


Used = Mapping[tuple[str, int], Usage]
"""What processes take, by watcher and pid."""


def usages(infos: Mapping[str, Mapping[str, Any]]) -> Used:
    """What each process takes, of a reply to `stats`."""
    found = {}
    for name, processes in infos.items():
        for pid, info in processes.items():
            if isinstance(info, Mapping) and pid.isdecimal():
                seconds, age = clock_seconds(info.get("ctime")), number(info.get("age"))
                cpu = 100 * seconds / age if seconds >= 0 and age > 0 else 0.0
                found[name, int(pid)] = Usage(cpu, byte_size(info.get("mem_info1")))
    return found


def status(
    watchers: Mapping[str, Mapping[str, Any]],
    processes: bool,
    used: Used | None = None,
    width: int | None = None,
) -> list[str]:
    """A line for each watcher; below it its `processes` if asked for, and what is wrong.

    `used`: what each process takes, for two columns more. `width`: that of the terminal.
    """
    rows: list[Sequence[str]] = []
    below: dict[int, list[str]] = {}
    for name, watcher in sorted(watchers.items()):
        members = watcher.get("processes", ())
        pids = [(name, process.get("pid")) for process in members]
        rows.append(_with_usage(_watcher_row(name, watcher), pids, used))
        if processes:
            pairs = zip(members, pids, strict=True)
            rows += [_with_usage(_process_row(name, p), [pid], used) for p, pid in pairs]
        below[len(rows)] = [f"    {line}" for line in _trouble(watcher)]
    header = [*STATUS_COLUMNS]
    if used is not None:
        header[USAGE_AT:USAGE_AT] = USAGE_COLUMNS
    if width is not None:
        header, rows, moved = fit(header, rows, width)
        for number, text in moved.items():
            below[number] = [f"    {text}", *below.get(number, ())]
    lines = []
    for number, line in enumerate(table(header, rows)):
        lines += [line, *below.get(number, ())]
    return lines


def _with_usage(row: list[str], pids: Iterable[tuple[str, Any]], used: Used | None) -> list[str]:
    """A row with what these processes take together."""
    if used is None:
        return row
    found = [used[pid] for pid in pids if pid in used]
    cpu, memory = sum(each.cpu for each in found), sum(each.memory for each in found)
    cells = [f"{cpu:.1f}", short_size(memory)] if found else ["", ""]
    return [*row[:USAGE_AT], *cells, *row[USAGE_AT:]]


def _watcher_row(name: str, watcher: Mapping[str, Any]) -> list[str]:
    return [
        clean(name),
        state_text(watcher["state"]),
        f"{watcher.get('ready', '?')}/{watcher.get('numprocesses', '?')}",
        "",
        duration(watcher.get("uptime")),
        str(watcher.get("restarts", "")),
        duration(watcher.get("retry_in")),
        clean(watcher.get("reason") or ""),
    ]


def _process_row(name: str, process: Mapping[str, Any]) -> list[str]:
    return [
        f"  {clean(name)}.{process['wid']}",
        state_text(process["state"]),
        "",
        str(process.get("pid") or ""),
        duration(process.get("uptime")),
        str(process.get("restarts", "")),
        duration(process.get("retry_in")),
        clean(process.get("reason") or ""),
    ]


def process_table(name: str, processes: Iterable[Mapping[str, Any]]) -> list[str]:
    """A line for each process of a watcher; none if it has none."""
    rows = [_process_row(name, process) for process in processes]
    if not rows:
        return []
    ready = STATUS_COLUMNS.index("READY")
    header, *cells = ([*row[:ready], *row[ready + 1 :]] for row in (STATUS_COLUMNS, *rows))
    return table(header, [[row[0].strip(), *row[1:]] for row in cells])


def _trouble(watcher: Mapping[str, Any]) -> Iterator[str]:
    """What to read about a watcher that is not well."""
    yield from (click.style(line, fg="red") for line in troubles(watcher))
    for process in watcher.get("processes", ()):
        if process["state"] in TROUBLED and process.get("last_output"):
            yield from last_output(process["last_output"])
            return  # its siblings mostly say the same


def troubles(watcher: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with a watcher as a whole."""
    yield from map(clean, (watcher.get("problem") or "").splitlines())
    for line in (watcher.get("config_problem") or "").splitlines():
        yield f"keeps its old config: {clean(line)}"


def last_output(text: str) -> Iterator[str]:
    """The last lines a process wrote, marked as its words."""
    for line in text.splitlines()[-OUTPUT_LINES:]:
        yield click.style(f"| {clean(line)}", dim=True)


# ---- what was done -----------------------------------------------------------------------


def outcome(name: str, info: Mapping[str, Any]) -> str:
    """`web: started 812, 813; stopped 700`."""
    words = [
        f"{word} {', '.join(str(pid) for pid in info[word])}"
        for word in ("started", "stopped", "kept")
        if info.get(word)
    ]
    return f"{clean(name)}: {'; '.join(words) or 'nothing to do'}"


EFFECTS = {
    "live": "changed",
    "scale": "changed, and processes started or stopped",
    "limits": "changed, and set on the running processes",
    "reload": "changed, and the processes replaced",
}
"""What the daemon's word for the impact of an option says."""


def impacts(found: Mapping[str, str]) -> list[str]:
    """How each option took effect, `umask: changed, and the processes replaced`."""
    return [f"{clean(key)}: {EFFECTS.get(word, clean(word))}" for key, word in found.items()] or [
        "ok"
    ]


WHAT_FOLLOWS = {
    "live": "used when it is next needed",
    "scale": "processes are started or stopped",
    "limits": "limits are set on what runs",
    "reload": "processes are replaced, gracefully",
}
"""From an option's change, the weakest first."""


def changes(reply: Mapping[str, Any]) -> list[str]:
    """What a reload of the config does, a line each: how, what, and what follows."""
    impacts: Mapping[str, Mapping[str, str]] = reply.get("impacts", {})
    rows = [("add", clean(name), "started if it starts by itself") for name in reply["added"]]
    rows += [("remove", clean(name), "its processes are stopped") for name in reply["removed"]]
    for name, options in reply["changed"].items():
        found = impacts.get(name, {}).values()
        worst = max(found, key=[*WHAT_FOLLOWS].index, default="live")
        rows.append((worst, f"{clean(name)}: {_listed(options)}", WHAT_FOLLOWS[worst]))
    for how, names in reply.get("sockets", {}).items():
        follows = "bound" if how == "added" else "watchers that use it are restarted"
        rows += [("socket", f"{clean(name)} {how}", follows) for name in names]
    for when, names in reply.get("sysup", {}).items():
        follows = "holds from now on" if when == "now" else "holds after a restart of sysupd"
        rows += [("sysup", clean(name), follows) for name in names]
    rows += [("keep", clean(section), "not as in the files") for section in reply.get("kept", ())]
    return table(("", "", ""), rows)[1:] or ["nothing differs from what was read before"]


def differences(reply: Mapping[str, Any]) -> list[str]:
    """How what runs differs from the config: options, a line each, and watchers."""
    rows = [
        (clean(name), clean(option), _listed(both["config"]), _listed(both["running"]))
        for name, options in reply["changed"].items()
        for option, both in options.items()
    ]
    lines = table(("WATCHER", "OPTION", "CONFIG", "RUNNING"), rows) if rows else []
    for word in ("added", "removed"):
        if names := reply[word]:
            lines.append(f"{word} at run time: {', '.join(map(clean, names))}")
    if not lines:
        lines.append("what runs is what the config says")
    if saved := reply["saved"]:
        lines.append(f"saved: {_listed(saved)}")
    return lines


def _listed(value: object) -> str:
    """`a, b`; `a (x, y), b (z)` for an object of lists."""
    if isinstance(value, Mapping):
        return ", ".join(f"{clean(key)} ({_listed(inner)})" for key, inner in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(clean(item) for item in value)
    return "-" if value is None else clean(value)


# ---- figures -----------------------------------------------------------------------------

STATS_COLUMNS = (
    *("NAME", "PID", "USER", "NICE", "RSS", "VSZ"),
    *("CPU%", "MEM%", "CTIME", "AGE", "COMMAND"),
)
STATS_KEYS = ("username", "nice", "mem_info1", "mem_info2", "cpu", "mem", "ctime")


def stats(infos: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A line for each process of each watcher."""
    rows: list[list[str]] = []
    for name, processes in sorted(infos.items()):
        for pid, info in sorted(processes.items(), key=lambda item: int(item[0])):
            rows += _stats_rows(name, pid, info)
    return table(STATS_COLUMNS, rows)


def _stats_rows(name: str, pid: str, info: Any, indent: str = "") -> Iterator[list[str]]:
    """The row of a process and, indented, those of its children."""
    if not isinstance(info, Mapping):  # circusd has a text here for one that is gone
        yield [clean(name), pid, *[""] * (len(STATS_COLUMNS) - 3), clean(info)]
        return
    age = info.get("age")
    wid = f".{info['wid']}" if "wid" in info else ""
    figures = [info.get(key, "") for key in STATS_KEYS]
    yield [
        f"{clean(name)}{wid}",
        pid,
        *("" if figure is None else clean(figure) for figure in figures),
        duration(age) if isinstance(age, (int, float)) else "",
        indent + clean(info.get("cmdline") or ""),
    ]
    for child in info.get("children", ()):
        child_pid = str(child.get("pid", "")) if isinstance(child, Mapping) else ""
        yield from _stats_rows(name, child_pid, child, indent + "  ")


# ---- events ------------------------------------------------------------------------------

_TOLD = frozenset(
    {"time", "wid", "process_pid", "signum", "exit_code"}
    | {"reason", "deaths", "tries", "retry_in", "last_output"}
    | {f"{how}_{what}" for how in ("dropped", "suppressed") for what in ("lines", "bytes")}
)
"""The fields of an event that have words of their own."""


def event(watcher: str, name: str, payload: Mapping[str, Any]) -> list[str]:
    """`12:00:01 web.3 reap pid 812, exit code 1`; below it the last output, if it has any."""
    who = f"{watcher}.{payload['wid']}" if payload.get("wid") is not None else watcher
    what = click.style(clean(name), fg=EVENT_COLOURS.get(name, "cyan"))
    facts = ", ".join(_facts(name, payload))
    line = f"{_clock(payload.get('time'))} {clean(who)} {what} {facts}".rstrip()
    return [line, *(f"    {text}" for text in last_output(payload.get("last_output") or ""))]


def _clock(stamp: object) -> str:
    if not isinstance(stamp, (int, float)):
        return "--:--:--"
    return time.strftime("%H:%M:%S", time.localtime(stamp))


def _facts(name: str, payload: Mapping[str, Any]) -> Iterator[str]:
    if payload.get("process_pid"):
        yield f"pid {clean(payload['process_pid'])}"
    if payload.get("signum"):
        yield f"signal {clean(payload['signum'])}"
    if payload.get("reason"):
        yield clean(payload["reason"])
    elif "exit_code" in payload:
        yield exit_text(payload["exit_code"])
    if name == "gave_up":
        yield f"after {count(payload.get('tries', 0), 'try')}"
    elif payload.get("retry_in"):
        yield count(payload.get("deaths", 0), "death")
        yield f"retry in {duration(payload['retry_in'])}"
    yield from lost(payload)
    for key, value in payload.items():
        if key not in _TOLD:
            yield f"{clean(key)} {clean(value)}"
