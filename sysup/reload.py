"""The config and what runs: what differs is told or done, and what was set is saved."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import replace
from typing import Any, Protocol, TypeAlias

from sysup import config
from sysup.config import Changes, Config, ConfigError, Delta, Reasons
from sysup.ledger import Ledger
from sysup.pace import Breath
from sysup.protocol import Incomplete, SysupError
from sysup.roster import Roster
from sysup.sharing import Sharing
from sysup.source import Amended, Files, load, write
from sysup.watcher import Watcher

log = logging.getLogger("sysup")

LIVE_OPTIONS = frozenset({"check_delay", "warmup_delay", "include", "include_dir"})
"""Options of the daemon itself that a reload takes over."""


WAITING = ("reload",)
"""In the ledger: that a reload of the config was asked for, and waits for its turn."""


Work: TypeAlias = Callable[[Callable[[], None]], Awaitable[Mapping[str, Any]]]


class App(Protocol):
    """The app, as a reload sees it."""

    config: Config
    files: Files
    watchers: dict[str, Watcher]
    sharing: Sharing
    roster: Roster

    @property
    def reading(self) -> asyncio.Lock: ...
    @property
    def is_ending(self) -> bool: ...
    def keep_config(self) -> None: ...
    def publish(self, watcher: str, event: str, payload: Mapping[str, Any]) -> None: ...


class Reloads:
    """Reloads of an app, one after the other; who waits for its turn is not lost with the daemon.

    Args:
        work: a reload; it calls what it is given when it has read the files.
        ledger: has the next daemon know that one waits.
    """

    def __init__(self, work: Work, ledger: Ledger) -> None:
        self.alone = asyncio.Lock()
        """Held by what needs that no reload is under way."""
        self.reading = asyncio.Lock()
        self._work = work
        self._ledger = ledger
        self._waiting = 0

    def ask(self) -> Coroutine[Any, Any, Mapping[str, Any]]:
        """Do one when it is its turn; raises as it does."""
        self._waiting += 1
        self._ledger.put(WAITING, True)
        return self._take_turn()

    async def _take_turn(self) -> Mapping[str, Any]:
        async with self.alone:
            self._waiting -= 1
            try:
                return await self._work(self._has_read)
            finally:
                self._has_read()

    def _has_read(self) -> None:
        if not self._waiting:
            self._ledger.drop(WAITING)

    @property
    def waiting(self) -> bool:
        """Whether one is yet to read the files."""
        return self._waiting > 0

    @property
    def left(self) -> bool:
        """Whether one waited for its turn in the daemon before."""
        return not self._waiting and WAITING in self._ledger.table


async def run(app: App, has_read: Callable[[], None]) -> dict[str, Any]:
    """Read the config again, call `has_read`, and do and tell exactly what differs.

    Raises SysupError, with nothing changed, when what is wrong is not of a watcher or socket
    alone; Incomplete, with all else done, when it is, or a running process can't be given a limit.
    """
    async with app.reading:
        before, before_files = app.config, app.files
        new, files, changes = await asyncio.to_thread(read, before, before_files)
        has_read()
        if app.is_ending:
            raise SysupError("cannot reload the config: sysupd is ending")
        app.config, app.files = new, files
    fresh, failed = await follow(app, changes, new)
    # What differs from the file is tried again by the next reload.
    stays = {config.section("watcher", name): why for name, why in failed.items()}
    for name in failed:  # nor do the files say what was saved meanwhile, by which it is known then
        if watcher := app.watchers.get(name.lower()):
            watcher.unsettle(config.difference(new.watchers[name], app.config.watchers[name]))
    files.keep(stays, sections(before), before_files)
    app.config = config.keep(app.config, stays, before)
    mark(app)
    app.keep_config()
    await app.roster.begin(fresh)
    changes = changes.without(failed)
    tell(app, changes)
    return outcome(app.config, await asyncio.to_thread(plan, changes, app.config))


async def dry_run(app: App) -> dict[str, Any]:
    """What `run` would do; raises as it would, but for limits."""

    def look(before: Config, before_files: Files) -> tuple[Config, dict[str, Any]]:
        new, _, changes = read(before, before_files)
        return new, plan(changes, new)

    return outcome(*await asyncio.to_thread(look, app.config, app.files))


def read(before: Config, before_files: Files) -> tuple[Config, Files, Changes]:
    """The config that is to be, and how it differs: what is wrong in it is as it was before.

    Raises SysupError.
    """
    files = Files()
    try:
        new = load(before.path, files, apart=True)
    except ConfigError as error:
        raise SysupError(f"cannot reload the config: {error}") from error
    kept = config.unfollowed(new, before)
    files.keep(kept, sections(before), before_files)
    new = config.keep(new, kept, before)
    return new, files, config.diff(before, new)


def sections(known: Config) -> set[str]:
    """Those of the watchers and sockets of a config."""
    watchers = {config.section("watcher", name) for name in known.watchers}
    return watchers | {config.section("socket", name) for name in known.sockets}


def outcome(new: Config, done: dict[str, Any]) -> dict[str, Any]:
    """What was done, if that is all; else raises Incomplete with it."""
    if new.kept:
        raise Incomplete(f"cannot take all of the config over: {shortfall(new)}", done)
    return done


def shortfall(new: Config) -> str:
    """What of a config is not followed, and why, a line each; empty if all is."""
    there = sections(new)
    lines = []
    for section, why in new.kept.items():
        follows = "stays as it is" if section in there else "is not added"
        lines.append(f"{section.replace(':', ' ', 1)} {follows}: {'; '.join(why)}")
    return "\n".join(lines)


def mark(app: App) -> None:
    """Have each watcher tell whether it follows the config."""
    kept = app.config.watchers_kept
    for name, watcher in app.watchers.items():
        watcher.unfollowed = kept.get(name, ())


def plan(changes: Changes, new: Config) -> dict[str, Any]:
    """What has to be done, as `reloadconfig` tells it: watchers that are added, removed and
    changed, with the impact of each option; sockets likewise; options of the daemon itself that
    hold from now on, and those that hold after a restart; and the sections that are not followed,
    each with its reasons."""
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
        "kept": {section: list(why) for section, why in new.kept.items()},
    }


def _names(delta: Delta) -> dict[str, list[str]]:
    return {
        "added": list(delta.added),
        "removed": list(delta.removed),
        "changed": sorted(delta.changed),
    }


async def follow(app: App, changes: Changes, new: Config) -> tuple[list[Watcher], Reasons]:
    """Make the watchers and sockets what the new config says.

    Returns those that are to be started, and those that stay as they were, by name with the
    reasons, as a running process can't be given a limit.
    """
    for name in (*changes.removed, *changes.added):  # by `add` there may be one already
        if watcher := app.watchers.get(name.lower()):
            await app.roster.remove(watcher, nostop=False)
    await app.sharing.change(changes.sockets, new.sockets, app.watchers.values())
    breath = Breath()
    fresh = []
    for name in changes.added:
        await breath.taken()
        if name.lower() not in app.watchers:  # `add` may have been quicker
            fresh.append(app.roster.adopt(new.watchers[name]))
            fresh[-1].save()
            app.publish(name, "add", {})
    failed: dict[str, tuple[str, ...]] = {}
    for name, options in changes.changed.items():
        await breath.taken()
        if watcher := app.watchers.get(name.lower()):
            spec = app.config.watchers[name]  # also what was saved meanwhile
            try:
                watcher.apply(spec, {config.impact(o) for o in options}, {})
            except SysupError as error:
                failed[name] = (str(error),)
    return fresh, failed


def tell(app: App, changes: Changes) -> None:
    """Say in the log what was done, and also to the subscribers what was not."""
    for section, why in app.config.kept.items():
        kind, _, name = section.partition(":")
        if kind == "watcher":
            app.publish(name, "config_error", {"reason": "; ".join(why)})
        else:
            log.error("socket %s: %s", name, "; ".join(why))
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


async def save(app: App, watcher: Watcher, options: Mapping[str, Any]) -> str:
    """Have options of a watcher outlast the daemon; returns the file that says so now.

    A watcher that was added at run time is saved whole. Raises SysupError, with nothing
    written, where the file would not say what runs.
    """
    async with app.reading:
        return await _save(app, watcher, options)


async def _save(app: App, watcher: Watcher, options: Mapping[str, Any]) -> str:
    name, is_known = watcher.name, watcher.name in app.config.watchers
    if not is_known:
        options = config.changed(watcher.spec)
    path = config.saved_path(app.config.path)

    def amend() -> tuple[str, Config]:
        text = config.amended(_text(path), name, options)
        return text, load(app.config.path, Amended(path, text), apart=True)

    try:
        text, new = await asyncio.to_thread(amend)
    except ConfigError as error:
        raise SysupError(f"cannot save: {error}") from None
    if app.watchers.get(name.lower()) is not watcher:
        raise SysupError(f"cannot save: {name} was removed")
    if why := new.watchers_kept.get(name.lower()) or app.config.watchers_kept.get(name.lower()):
        raise SysupError(f"cannot save: {'; '.join(why)}")
    meant, spec = config.with_options(watcher.spec, options if is_known else {}), new.watchers[name]
    if other := config.difference(meant, watcher.spec):
        raise SysupError(f"cannot save {', '.join(other)}: it was set again meanwhile")
    wrong = [key for key in options if config.get(spec, key) != config.get(watcher.spec, key)]
    if wrong:
        raise SysupError(f"cannot save {', '.join(wrong)}: a file would not say the same")
    try:
        write(path, text, like=app.config.path)
        app.files.note(path)
    except OSError as error:
        raise SysupError(f"cannot write {path}: {error.strerror}") from None
    saved = config.with_options(app.config.watchers[name], options) if is_known else spec
    app.config = replace(app.config, watchers={**app.config.watchers, name: saved})
    watcher.settle(options)
    return path


async def differences(app: App) -> dict[str, Any]:
    """How what runs differs from the config as it was read, and what of that was saved."""
    running = {watcher.name: watcher.spec for watcher in app.watchers.values()}
    known = app.config.watchers
    changed = {}
    breath = Breath()
    for name in sorted(running.keys() & known.keys()):
        if running[name] is known[name]:  # as of most, which need not be compared then
            continue
        await breath.taken()
        if options := config.difference(known[name], running[name]):
            said = config.options(known[name])
            changed[name] = {
                option: {"config": said.get(option), "running": value}
                for option, value in options.items()
            }

    def saved() -> Mapping[str, Any]:
        return config.saved_options(_text(config.saved_path(app.config.path)))

    return {
        "changed": changed,
        "added": sorted(running.keys() - known.keys()),
        "removed": sorted(known.keys() - running.keys()),
        "saved": await asyncio.to_thread(saved),
        "changed_files": app.files.changed(),
    }


def _text(path: str) -> str:
    try:
        return Files().read(path)
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise SysupError(f"cannot read {path}: {error.strerror}") from None
