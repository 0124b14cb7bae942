"""The config and what runs: what differs is told or done, and what was set is saved."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

from sysup import config
from sysup.config import Changes, Config, ConfigError, Delta, WatcherSpec
from sysup.protocol import SysupError
from sysup.sharing import Sharing
from sysup.source import Amended, Files, load, write
from sysup.watcher import Watcher

log = logging.getLogger("sysup")

LIVE_OPTIONS = frozenset({"check_delay", "warmup_delay", "include", "include_dir"})
"""Options of the daemon itself that a reload takes over."""


class App(Protocol):
    """The app, as a reload sees it."""

    config: Config
    files: Files
    watchers: dict[str, Watcher]
    sharing: Sharing

    def adopt(self, spec: WatcherSpec) -> Watcher: ...
    async def remove(self, watcher: Watcher, *, nostop: bool) -> None: ...
    def publish(self, watcher: str, event: str, payload: Mapping[str, Any]) -> None: ...


def plan(changes: Changes) -> dict[str, Any]:
    """What has to be done, as `reloadconfig` tells it: watchers that are added, removed and
    changed, with the impact of each option; sockets likewise; options of the daemon itself that
    hold from now on, and those that hold after a restart."""
    return {
        "added": list(changes.added),
        "removed": list(changes.removed),
        "changed": {name: sorted(options) for name, options in changes.changed.items()},
        "impacts": {
            name: {option: str(config.impact(option)) for option in sorted(options)}
            for name, options in changes.changed.items()
        },
        "sockets": _names(changes.sockets),
        "sysup": {
            "now": sorted(changes.daemon & LIVE_OPTIONS),
            "restart": sorted(changes.daemon - LIVE_OPTIONS),
        },
    }


def _names(delta: Delta) -> dict[str, list[str]]:
    return {
        "added": list(delta.added),
        "removed": list(delta.removed),
        "changed": sorted(delta.changed),
    }


async def follow(app: App, changes: Changes, new: Config) -> None:
    """Make the watchers and sockets what the new config says.

    Raises SysupError, with all else done, when a running process can't be given a limit.
    """
    for name in (*changes.removed, *changes.added):  # by `add` there may be one already
        if watcher := app.watchers.get(name.lower()):
            await app.remove(watcher, nostop=False)
    await app.sharing.change(changes.sockets, new.sockets, app.watchers.values())
    fresh = [app.adopt(new.watchers[name]) for name in changes.added]
    for watcher in fresh:
        watcher.save()
        app.publish(watcher.name, "add", {})
    failed, kept = [], {}
    for name, options in changes.changed.items():
        if watcher := app.watchers.get(name.lower()):
            try:
                watcher.apply(new.watchers[name], {config.impact(o) for o in options}, {})
            except SysupError as error:
                failed.append(f"{name} keeps its options: {error}")
                kept[name] = watcher.spec
    # What differs from the file is tried again by the next reload.
    app.config = replace(new, watchers={**new.watchers, **kept})
    starts = [w.start() for w in fresh if w.spec.autostart]
    await asyncio.gather(*starts, return_exceptions=True)
    if failed:
        raise SysupError(f"cannot take all of the config over: {'; '.join(failed)}")


def tell(changes: Changes) -> None:
    """Say in the log what was done."""
    parts = [
        f"{word} {', '.join(names)}"
        for word, names in (
            ("added", changes.added),
            ("removed", changes.removed),
            ("changed", tuple(changes.changed)),
        )
        if names
    ]
    log.info("config reloaded: %s", "; ".join(parts) or "nothing differs")
    if later := sorted(changes.daemon - LIVE_OPTIONS):
        log.warning("changed, but taken over only by a restart of sysupd: %s", ", ".join(later))


# ---- what was set at run time ----------------------------------------------------------------


def save(app: App, watcher: Watcher, options: Mapping[str, Any]) -> str:
    """Have options of a watcher outlast the daemon; returns the file that says so now.

    A watcher that was added at run time is saved whole. Raises SysupError, with nothing
    written, where the file would not say what runs.
    """
    name, known = watcher.name, app.config.watchers.get(watcher.name)
    if known is None:
        options = config.changed(watcher.spec)
    path = config.saved_path(app.config.path)
    text = config.amended(_text(path), name, options)
    try:
        new = load(app.config.path, Amended(path, text))
    except ConfigError as error:
        raise SysupError(f"cannot save: {error}") from None
    spec = new.watchers[name]
    wrong = [key for key in options if config.get(spec, key) != config.get(watcher.spec, key)]
    if wrong:
        raise SysupError(f"cannot save {', '.join(wrong)}: a file would not say the same")
    try:
        write(path, text, like=app.config.path)
        app.files.note(path)
    except OSError as error:
        raise SysupError(f"cannot write {path}: {error.strerror}") from None
    saved = config.with_options(known, options) if known else spec
    app.config = replace(app.config, watchers={**app.config.watchers, name: saved})
    watcher.settle(options)
    return path


def differences(app: App) -> dict[str, Any]:
    """How what runs differs from the config as it was read, and what of that was saved."""
    running = {watcher.name: watcher.spec for watcher in app.watchers.values()}
    known = app.config.watchers
    changed = {}
    for name in sorted(running.keys() & known.keys()):
        if options := config.difference(known[name], running[name]):
            said = config.options(known[name])
            changed[name] = {
                option: {"config": said.get(option), "running": value}
                for option, value in options.items()
            }
    return {
        "changed": changed,
        "added": sorted(running.keys() - known.keys()),
        "removed": sorted(known.keys() - running.keys()),
        "saved": config.saved_options(_text(config.saved_path(app.config.path))),
        "changed_files": app.files.changed(),
    }


def _text(path: str) -> str:
    try:
        return Files().read(path)
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise SysupError(f"cannot read {path}: {error.strerror}") from None
