"""The config of a running daemon: reading it, changing it, comparing it with a new one.

Shapes are Circus's: `stop_signal` is a number, what is not set is null, a stream's options are
under `stdout_stream_conf`. Types are strict, as in Circus: "3" is not a number.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sysup.config.declare import Impact, Option, declared
from sysup.config.ini import Level
from sysup.config.kinds import Later, NotYet, string
from sysup.config.load import Config, Reasons, section, without
from sysup.config.rules import (
    STREAM_OPTIONS,
    Fault,
    fault,
    faults,
    is_free,
    named_sockets,
    read_stream,
    unknown,
)
from sysup.config.specs import (
    FAMILIES,
    RLIMIT_FAMILY,
    STREAM_FIELDS,
    WATCHER_OPTIONS,
    FlappingSpec,
    Rlimit,
    StreamSpec,
    WatcherSpec,
)
from sysup.config.streams import STREAMS
from sysup.config.values import RLIMITS
from sysup.protocol import MessageError

_CONF = "_conf"  # of stdout_stream_conf, which is Circus's name for what stdout_stream holds


def get(spec: WatcherSpec, key: str) -> Any:
    """The value of an option, as JSON has it. Raises MessageError when there is no such option."""
    if not isinstance(key, str):
        raise MessageError(f"{key!r} is not the name of an option")
    if option := WATCHER_OPTIONS.get(key):
        return option.plain(option.of(spec))
    if key in spec.free:
        return spec.free[key]
    if key.startswith(RLIMIT_FAMILY.prefix) and (name := key[len("rlimit_") :]) in RLIMITS:
        found = [limit for limit in spec.rlimits if limit.name == name]
        return _plain_limit(found[0]) if found else None
    field, dot, name = key.removesuffix(_CONF).partition(".")
    if field in STREAM_FIELDS:
        stream: StreamSpec | None = getattr(spec, field)
        if not dot or name == "class":
            return _plain_stream(stream).get("class") if dot else _plain_stream(stream)
        if stream and name in stream.options:
            value, known = stream.options[name], STREAMS.get(stream.cls, {})
            return known[name].plain(value) if name in known else value
    raise _unknown(key)


def options(spec: WatcherSpec) -> dict[str, Any]:
    """Every option of a watcher as JSON has it, with the free-form ones.

    Of those without machinery so far, only what has a value.
    """
    shown: dict[str, Any] = dict(spec.free)
    for name, option in WATCHER_OPTIONS.items():
        value = option.plain(option.of(spec))
        if value is not None or not isinstance(option.kind, Later):
            shown[name] = value
    for limit in spec.rlimits:
        shown[f"{RLIMIT_FAMILY.prefix}{limit.name}"] = _plain_limit(limit)
    for stream in STREAM_FIELDS:
        shown[f"{stream}{_CONF}"] = _plain_stream(getattr(spec, stream))
    return shown


def discreet(shown: Mapping[str, Any], instead: str) -> dict[str, Any]:
    """Options as `options` and `get` show them, with `instead` for values that may be secrets.

    Those are the ones of environments, and of what only programs of one's own understand:
    free-form options, and those of stream classes that are not ours.
    """
    return {key: _discreet(key, value, instead) for key, value in shown.items()}


def _discreet(key: str, value: Any, instead: str) -> Any:
    field, _, name = key.removesuffix(_CONF).partition(".")
    known = ("class", *STREAM_OPTIONS) if field in STREAM_FIELDS else ()
    if isinstance(value, dict) and (known or key == "env"):
        return {inner: v if inner in known else instead for inner, v in value.items()}
    is_foreign = bool(known and name) and name not in known
    return instead if is_foreign or (is_free(key) and key not in WATCHER_OPTIONS) else value


def changed(spec: WatcherSpec) -> dict[str, Any]:
    """The options of a watcher, as `options` shows them, that differ from the defaults."""
    defaults = options(WatcherSpec(spec.name))
    shown = options(spec)
    return {key: value for key, value in shown.items() if value != defaults.get(key)}


def difference(spec: WatcherSpec, other: WatcherSpec) -> dict[str, Any]:
    """What `with_options` makes `other` of `spec` by, in JSON values."""
    before, after = options(spec), options(other)
    aliases = {name for name, option in WATCHER_OPTIONS.items() if option.alias}
    names = sorted({*before, *after} - aliases)
    return {name: after.get(name) for name in names if before.get(name) != after.get(name)}


def _plain_limit(limit: Rlimit) -> Any:
    return RLIMIT_FAMILY.kind.plain((limit.soft, limit.hard))


def _plain_stream(stream: StreamSpec | None) -> dict[str, Any]:
    """What a file would have to say: defaults are left out."""
    if stream is None:
        return {}
    known = STREAMS.get(stream.cls, {})
    given: dict[str, Any] = {"class": stream.cls}
    for name, value in stream.options.items():
        if name not in known:
            given[name] = value
        elif value != known[name].default:
            given[name] = known[name].plain(value)
    return given


def with_option(spec: WatcherSpec, key: str, value: object) -> WatcherSpec:
    """`spec` with an option set to a JSON value.

    Raises MessageError when there is no such option, the value is of another type or out of
    bounds, or the watcher would not be valid with it.
    """
    return with_options(spec, {key: value})


def with_options(spec: WatcherSpec, values: Mapping[str, object]) -> WatcherSpec:
    """`spec` with several options set, which are checked together; raises as with_option."""
    for key, value in values.items():
        try:
            spec = _with(spec, key, value)
        except ValueError as error:
            raise _complaint(fault(key, error)) from None
    for each in faults(spec, None):
        if each.level is not Level.WARNING:
            raise _complaint(each)
    return spec


def add(
    name: str,
    cmd: object,
    args: object = None,
    options: Mapping[str, object] | None = None,
    *,
    flapping: FlappingSpec | None = None,
) -> WatcherSpec:
    """The watcher that an `add` command describes, its values being JSON.

    `flapping` is the config's default. Raises MessageError as with_option does.
    """
    if not isinstance(name, str) or not name.strip() or not name.isprintable():
        raise MessageError(f"{name!r} cannot be a watcher's name")
    if not isinstance(options, Mapping | None):
        raise MessageError(f"{options!r} is not an object")
    spec = WatcherSpec(name.strip(), flapping=flapping or FlappingSpec())
    return with_options(spec, {**(options or {}), "cmd": cmd, "args": args})


def _with(spec: WatcherSpec, key: str, value: object) -> WatcherSpec:
    if option := WATCHER_OPTIONS.get(key):
        return _with_declared(spec, option, value)
    stream, dot, name = key.removesuffix(_CONF).partition(".")
    if stream in STREAM_FIELDS:
        return _with_stream(spec, stream, {name: value} if dot else value, keep=bool(dot))
    for family in FAMILIES:
        name = key.removeprefix(family.prefix)
        if name == key or (family.names and name not in family.names):
            continue
        read = None if value is None else family.kind.wire(value)
        if family is RLIMIT_FAMILY:
            others = [limit for limit in spec.rlimits if limit.name != name]
            limits = [*others, Rlimit(name, *read)] if read else others
            return replace(spec, rlimits=tuple(sorted(limits, key=lambda limit: limit.name)))
        return spec
    if key == "hooks":  # Circus's form of several hooks at once
        if value:
            raise NotYet
        return spec
    if key not in spec.free and not is_free(key):
        raise _unknown(key)
    return replace(spec, free={**spec.free, key: string(value)})


def _with_declared(spec: WatcherSpec, option: Option, value: object) -> WatcherSpec:
    if option.where == "file":
        raise ValueError("is set in the file alone")
    read = option.wire(value)
    if not option.group:
        return replace(spec, **{option.attr: read})
    inner = replace(getattr(spec, option.group), **{option.attr: read})
    return replace(spec, **{option.group: inner})


def _with_stream(spec: WatcherSpec, field: str, value: object, *, keep: bool) -> WatcherSpec:
    fields: dict[str, Any] = {field: None}
    if not value and not keep:
        return replace(spec, **fields)
    if not isinstance(value, dict):
        raise ValueError(f"{value!r} is not an object")
    before = _plain_stream(getattr(spec, field)) if keep else {}
    stream, found = read_stream(field, {**before, **value}, _read_loosely)
    for each in found:
        if each.level is not Level.WARNING:
            raise _complaint(each)
    fields[field] = stream
    return replace(spec, **fields)


def _read_loosely(option: Option, value: object) -> Any:
    """Circus hands the options of a stream on as they are, so text may be a number."""
    return option.read(string(value)) if isinstance(value, str) else option.wire(value)


def _complaint(fault: Fault) -> MessageError:
    return MessageError(f"{fault.option}: {fault.message}")


def _unknown(key: str) -> MessageError:
    return MessageError(f"unknown key '{key}'{unknown(key).removeprefix('unknown option')}")


def impact(key: str) -> Impact:
    """What a running watcher needs when option `key` changes; of an unknown one, nothing."""
    if option := WATCHER_OPTIONS.get(key):
        return option.impact
    if key.removesuffix(_CONF).partition(".")[0] in STREAM_FIELDS:
        return Impact.RELOAD
    for family in FAMILIES:
        if key.startswith(family.prefix):
            return family.impact
    return Impact.LIVE


@dataclass(frozen=True, slots=True)
class Delta:
    """How the members of one kind differ: names, and of changed ones the options."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed)


@dataclass(frozen=True, slots=True)
class Changes:
    """How a new config differs from an old one."""

    watchers: Delta
    sockets: Delta
    plugins: Delta
    daemon: frozenset[str]
    """Options of the daemon."""

    @property
    def added(self) -> tuple[str, ...]:
        """Watchers that are new."""
        return self.watchers.added

    @property
    def removed(self) -> tuple[str, ...]:
        """Watchers that are gone."""
        return self.watchers.removed

    @property
    def changed(self) -> Mapping[str, frozenset[str]]:
        """Watchers that differ, each with the options that do (as `impact` takes them)."""
        return self.watchers.changed

    def without(self, watchers: Collection[str]) -> Changes:
        """These, but for changed watchers of some names."""
        changed = {name: how for name, how in self.changed.items() if name not in watchers}
        return replace(self, watchers=replace(self.watchers, changed=changed))

    def __bool__(self) -> bool:
        return bool(self.watchers or self.sockets or self.plugins or self.daemon)


def diff(old: Config, new: Config) -> Changes:
    """What has to change for `old` to become `new`."""
    return Changes(
        _delta(old.watchers, new.watchers),
        _delta(old.sockets, new.sockets),
        _delta(old.plugins, new.plugins),
        _differing(old.daemon, new.daemon),
    )


def unfollowed(new: Config, old: Config) -> Reasons:
    """What of `new` is not to be followed, and why: what is broken, and what hangs on it.

    That is a watcher that can't do without a socket which is broken and was not there before;
    and the socket of a watcher that stays as it is, if it were to go.
    """
    if not new.kept:
        return {}
    kept = dict(new.kept)
    bound = {section("socket", name) for name in old.sockets}
    lacking = {key for key in kept if key.startswith("socket:")} - bound
    for name, spec in new.watchers.items():
        if needs := sorted({section("socket", each) for each in named_sockets(spec)} & lacking):
            kept[section("watcher", name)] = tuple(
                f"needs [{key}], which is wrong" for key in needs
            )
    for name, spec in old.watchers.items():
        if section("watcher", name) not in kept:
            continue
        for each in sorted(named_sockets(spec) & old.sockets.keys() - new.sockets.keys()):
            why = f"[{section('watcher', name)}] needs it, and stays as it is"
            kept.setdefault(section("socket", each), (why,))
    return kept


def keep(new: Config, kept: Reasons, old: Config) -> Config:
    """`new`, but for some sections what `old` has of them, be it nothing."""
    rest, before = without(new, kept), without(old, kept)
    watchers = {n: s for n, s in old.watchers.items() if n not in before.watchers}
    sockets = {n: s for n, s in old.sockets.items() if n not in before.sockets}
    return replace(
        rest,
        watchers=dict(sorted({**rest.watchers, **watchers}.items())),
        sockets=dict(sorted({**rest.sockets, **sockets}.items())),
        kept={**new.kept, **kept},
    )


def _delta(old: Mapping[str, Any], new: Mapping[str, Any]) -> Delta:
    return Delta(
        added=tuple(name for name in new if name not in old),
        removed=tuple(name for name in old if name not in new),
        changed={
            name: _differing(old[name], spec)
            for name, spec in new.items()
            if name in old and old[name] != spec
        },
    )


def _differing(old: Any, new: Any) -> frozenset[str]:
    """The names of the options in which two specs of a type differ, given or not."""
    kind: Any = type(new)
    names = {
        name
        for name, option in declared(kind).items()
        if not option.alias and option.of(old) != option.of(new)
    }
    for free in ("free", "options"):
        before, after = getattr(old, free, {}), getattr(new, free, {})
        keys = before.keys() | after.keys()
        names |= {key for key in keys if before.get(key) != after.get(key)}
    if isinstance(new, WatcherSpec):
        changed = {*old.rlimits} ^ {*new.rlimits}
        names |= {f"{RLIMIT_FAMILY.prefix}{limit.name}" for limit in changed}
        names |= {field for field in STREAM_FIELDS if getattr(old, field) != getattr(new, field)}
        if old.python_path != new.python_path:
            names.add("virtualenv")
    return frozenset(names)
