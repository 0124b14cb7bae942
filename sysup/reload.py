"""What a new config asks of a running app: exactly the difference, told or done."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

from sysup import config
from sysup.config import Changes, Config, Delta, WatcherSpec
from sysup.protocol import SysupError
from sysup.sharing import Sharing
from sysup.watcher import Watcher

log = logging.getLogger("sysup")

LIVE_OPTIONS = frozenset({"check_delay", "warmup_delay", "include", "include_dir"})
"""Options of the daemon itself that a reload takes over."""


class App(Protocol):
    """The app, as a reload sees it."""

    config: Config
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
