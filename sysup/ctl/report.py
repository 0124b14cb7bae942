"""All that is known of a watcher, as text that people read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import click

from sysup.ctl.render import (
    clean,
    count,
    duration,
    key_values,
    last_output,
    lost,
    process_table,
    size,
    state_text,
    troubles,
)


def report(watcher: Mapping[str, Any]) -> list[str]:
    """The state, the command, processes, streams, last deaths, and options that differ."""
    options = dict(watcher["options"])
    command = options.pop("cmd", "")
    return [
        *_head(watcher, command),
        *_section("processes", process_table(watcher["name"], watcher["processes"])),
        *_section("streams", _streams(watcher["streams"])),
        *_section(
            "last deaths", _deaths(watcher["name"], [*watcher["deaths"], *_earlier(watcher)])
        ),
        *_section("options", key_values(options)),
    ]


def _section(title: str, lines: Iterator[str] | list[str]) -> list[str]:
    found = [f"  {line}" for line in lines]
    return ["", click.style(title, bold=True), *found] if found else []


def _head(watcher: Mapping[str, Any], command: object) -> Iterator[str]:
    facts = [f"{watcher['ready']}/{watcher['numprocesses']} ready"]
    if watcher["uptime"] is not None:
        facts.append(f"up {duration(watcher['uptime'])}")
    if watcher["restarts"]:
        facts.append(count(watcher["restarts"], "restart"))
    if watcher["retry_in"] is not None:
        facts.append(f"retry in {duration(watcher['retry_in'])}")
    if watcher["reason"]:
        facts.append(clean(watcher["reason"]))
    name = click.style(clean(watcher["name"]), bold=True)
    yield f"{name} {state_text(watcher['state'])}, {', '.join(facts)}"
    yield f"  {clean(command)}"
    for line in troubles(watcher):
        yield click.style(f"  {line}", fg="red")


def _streams(streams: list[Mapping[str, Any]]) -> Iterator[str]:
    for stream in streams:
        kind = stream["class"]
        where = "closed" if stream["to"] is None else clean(stream["to"])
        kind = "" if kind in (None, stream["to"]) else f" ({clean(kind)})"
        yield f"{clean(stream['stream'])}  {where}{kind}, {size(stream['bytes'])}"
        for line in (stream["failure"] or "").splitlines():
            yield click.style(f"    {clean(line)}", fg="red")
        if words := lost(stream):
            yield click.style(f"    {', '.join(words)}", fg="yellow")


def _earlier(watcher: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Deaths that a daemon before saw, of which only the last words are left."""
    seen = {death["wid"] for death in watcher["deaths"]}
    for process in watcher["processes"]:
        if process.get("last_output") and process["wid"] not in seen:
            yield process


def _deaths(name: str, deaths: list[Mapping[str, Any]]) -> Iterator[str]:
    for death in deaths:
        facts = [clean(death["reason"] or "ended")]
        if death["pid"] is not None:
            facts.insert(0, f"pid {death['pid']}")
        facts.append(
            f"{duration(death['ago'])} ago" if "ago" in death else "under the daemon before"
        )
        yield f"{clean(name)}.{death['wid']}  {', '.join(facts)}"
        for line in last_output(death["last_output"] or ""):
            yield f"    {line}"
