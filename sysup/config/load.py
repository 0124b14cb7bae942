"""From the sections of files to a Config."""

from __future__ import annotations

import posixpath
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from sysup.config.declare import Option
from sysup.config.ini import (
    ConfigError,
    Environments,
    Level,
    Place,
    Problem,
    Report,
    Section,
    Sections,
    Source,
    Value,
    Variables,
    literally,
    read_files,
)
from sysup.config.kinds import nearest
from sysup.config.rules import Fault, fault, faults, is_free, read_stream, unknown
from sysup.config.specs import (
    DAEMON_OPTIONS,
    FAMILIES,
    FLAPPING_OPTIONS,
    PLUGIN_OPTIONS,
    RLIMIT_FAMILY,
    SOCKET_OPTIONS,
    STREAM_FIELDS,
    WATCHER_OPTIONS,
    DaemonSpec,
    FlappingSpec,
    PluginSpec,
    Rlimit,
    SocketSpec,
    WatcherSpec,
)
from sysup.config.values import is_loopback

FLAPPING_PLUGIN = "circus.plugins.flapping.Flapping"
_KINDS = ("watcher", "socket", "plugin", "env")
_APART = ("watcher", "socket")
_ELSEWHERE = {"program": "watcher", "supervisord": "sysup", "eventlistener": "plugin"}
"""What others call a kind of section."""
FOR_CIRCUS = (
    "if it was written for Circus, begin it with a line [circus]: then it is run as Circus would,"
    " and what is unknown or not supported yet is a warning"
)
_ENDPOINTS = ("endpoint", "pubsub_endpoint", "stats_endpoint")

Reasons: TypeAlias = Mapping[str, tuple[str, ...]]
"""Why sections can't be followed, by their names (`section`)."""


@dataclass(frozen=True, slots=True)
class Config:
    """All that files say of an app."""

    app: str
    path: str
    circus: bool
    """Whether Circus's defaults hold: there is a [circus] section."""
    daemon: DaemonSpec
    watchers: Mapping[str, WatcherSpec]
    sockets: Mapping[str, SocketSpec]
    plugins: Mapping[str, PluginSpec]
    flapping: FlappingSpec = field(default_factory=FlappingSpec)
    """What holds for a watcher that says nothing of it."""
    problems: tuple[Problem, ...] = ()
    """Warnings."""
    kept: Reasons = field(default_factory=dict)
    """Sections that are not followed, and why: what they are about is as it was, or is not."""

    @property
    def watchers_kept(self) -> Mapping[str, tuple[str, ...]]:
        """Of them the watchers, by name in lower case."""
        prefix = "watcher:"
        found = self.kept.items()
        return {key.removeprefix(prefix): why for key, why in found if key.startswith(prefix)}


def parse(path: str, *, source: Source, environ: Mapping[str, str], apart: bool = False) -> Config:
    """Read the config in the file `path`, with its includes and drop-ins.

    `environ` is what variables stand for. Raises ConfigError with all that is wrong, and
    nothing else, whatever the files hold.

    With `apart`, what is wrong within the section of one watcher or socket is no reason not to
    have the others: the config is without it, and tells it in `kept`.
    """
    report = Report()
    sections = read_files(path, source, environ, report)
    of_syntax = [*report.problems]
    config = _Loader(path, sections, source, environ, report).config()
    if report.was_strict and "sysup" not in sections and _speaks_of_circus(sections):
        report.warning(Place(path), FOR_CIRCUS)
    report.problems.sort(key=lambda problem: (problem.file != path, problem.file, problem.line))
    kept = _kept(report, of_syntax) if apart else {}
    if report.failed and not kept:
        raise ConfigError(report.problems)
    warnings = tuple(p for p in report.problems if p.level is not Level.ERROR)
    config = replace(config, problems=warnings, kept=kept)
    return without(config, kept) if kept else config


def without(config: Config, sections: Collection[str]) -> Config:
    """A config that says nothing of some sections."""
    watchers = {n: s for n, s in config.watchers.items() if section("watcher", n) not in sections}
    sockets = {n: s for n, s in config.sockets.items() if section("socket", n) not in sections}
    return replace(config, watchers=watchers, sockets=sockets)


def section(kind: str, name: str) -> str:
    """The section of a watcher or socket, as `Config.kept` has it: case does not matter."""
    return f"{kind}:{name.lower()}"


def _kept(report: Report, of_syntax: Collection[Problem]) -> Reasons:
    """The sections to which all errors can be put down, each with its own; none if they can't be.

    Syntax is not a section's: who can't read a line can't say what it is about. Nor is what is
    wrong with the last line of a file that ends in its middle, as one does that is being written:
    sections that are to follow would be taken for removed.
    """
    kept: dict[str, tuple[str, ...]] = {}
    for problem in report.problems:
        if problem.level is not Level.ERROR:
            continue
        kind, _, name = problem.section.partition(":")
        name = name.strip()
        shared = kind not in _APART or not (name and name.isprintable())
        if shared or problem in of_syntax or problem.place in report.cut:
            return {}
        key = section(kind, name)
        kept[key] = (*kept.get(key, ()), str(problem))
    return kept


def _speaks_of_circus(sections: Sections) -> bool:
    values = (value for section in sections.values() for value in section.values.values())
    return any(
        "circus." in value.text or value.place.option.startswith("hooks.") for value in values
    )


class _Loader:
    def __init__(
        self,
        path: str,
        sections: Sections,
        source: Source,
        environ: Mapping[str, str],
        report: Report,
    ) -> None:
        self._path = path
        self._source = source
        self._environ = environ
        self._report = report
        self._defaults = sections.pop("DEFAULT", None)
        self._sections = sections
        self._envs = Environments(sections, environ)
        self._variables = Variables(environ, self._envs.everywhere)

    def config(self) -> Config:
        """Everything; what is wrong goes to the report."""
        self._check_sections()
        self._check_defaults()
        daemon = self._daemon()
        sockets = {spec.name: spec for spec in self._sockets()}
        flapping, plugins = self._plugins()
        named = sorted(self._named("watcher"), key=lambda item: item[0])
        watchers = {
            name: self._watcher(name, section, sockets, flapping) for name, section in named
        }
        for place in self._envs.unused([*watchers, *(f"plugin:{name}" for name in plugins)]):
            self._report.warning(place, "is of no watcher")
        app = posixpath.splitext(posixpath.basename(self._path))[0]
        circus = self._report.circus
        return Config(app, self._path, circus, daemon, watchers, sockets, plugins, flapping)

    # ---- sections

    def _check_sections(self) -> None:
        for name, section in self._sections.items():
            kind, colon, rest = name.partition(":")
            if kind in _KINDS and (rest.strip() or (kind == "env" and not colon)):
                continue
            if name == "sysup":
                continue
            if kind in _KINDS and name != "env":
                self._report.error(section.place, f"needs a name, as in [{kind}:NAME]")
                continue
            kind = _ELSEWHERE.get(kind, kind)
            hint = nearest(kind, ("sysup", "circus", "DEFAULT", *_KINDS))
            self._report.strict(section.place, f"unknown section{hint}")

    def _check_defaults(self) -> None:
        """[DEFAULT] feeds each section with what it knows; what none knows is a mistake."""
        known = {**WATCHER_OPTIONS, **SOCKET_OPTIONS, **PLUGIN_OPTIONS, **DAEMON_OPTIONS}
        for name, value in self._defaults.values.items() if self._defaults else ():
            if name not in known and not self._is_watchers(name):
                self._report.strict(value.place, f"unknown option{nearest(name, known)}")

    @staticmethod
    def _is_watchers(name: str) -> bool:
        """Whether a name that is no option of its own may stand in a watcher's section."""
        prefixes = (*(family.prefix for family in FAMILIES), *(f"{f}." for f in STREAM_FIELDS))
        return name.startswith(prefixes) or is_free(name)

    def _named(self, kind: str) -> Iterable[tuple[str, Section]]:
        """Sections of a kind, by name; a name may differ from another by more than case."""
        seen: dict[str, Section] = {}
        for header, section in self._sections.items():
            before, _, name = header.partition(":")
            name = name.strip()
            if before != kind or not name:
                continue
            if not name.isprintable():
                self._report.error(section.place, "a name is of printable characters, in UTF-8")
                continue
            if not section.values and not self._defaults:
                self._report.warning(section.place, "is empty, and ignored")
                continue
            first = seen.setdefault(name.lower(), section)
            if first is not section:
                where = f"{first.place.file}:{first.place.line}"
                self._report.error(section.place, f"there is a {kind} of this name in {where}")
                continue
            yield name, section

    # ---- options

    def _values(self, table: Mapping[str, Option], section: Section | None) -> dict[str, Value]:
        """The values of a section: of [DEFAULT], what it knows; and its own."""
        values = dict(section.values) if section else {}
        for name, value in self._defaults.values.items() if self._defaults else ():
            if name in table or (table is WATCHER_OPTIONS and self._is_watchers(name)):
                values.setdefault(name, value)
        return values

    def _text(self, value: Value, variables: Variables) -> str:
        text = variables.expand(value.text)
        if "\0" in text:
            self._report.error(value.place, "a NUL byte is not allowed")
            return ""
        return text

    def _read(
        self, table: Mapping[str, Option], values: dict[str, Value], variables: Variables
    ) -> dict[str, Any]:
        """Take the options of `table` out of `values`: the fields of its spec.

        A field that is a dataclass has a dictionary. What could not be read is left out and
        reported.
        """
        found: dict[str, Any] = {}
        fields: dict[tuple[str, str], str] = {}
        for name in [name for name in values if name in table and table[name].where != "wire"]:
            option, value = table[name], values.pop(name)
            other = fields.setdefault((option.group, option.attr), name)
            if other != name:
                self._report.error(value.place, f"is another name of '{other}': give one of them")
                continue
            into = found.setdefault(option.group, {}) if option.group else found
            try:
                into[option.attr] = option.read(self._text(value, variables))
            except ValueError as error:
                self._tell(fault(name, error), {name: value}, value.place)
        return found

    def _tell(self, fault: Fault, values: Mapping[str, Value], section: Place) -> None:
        """Report a fault at the place of its option, or if that is not given, its section's."""
        place = (
            values[fault.option].place
            if fault.option in values
            else replace(section, option=fault.option)
        )
        self._report.add(fault.level, place, fault.message)

    def _refuse(self, values: Mapping[str, Value], names: Iterable[str]) -> None:
        """Report what is left of a section as unknown."""
        for name, value in values.items():
            self._report.strict(value.place, f"unknown option{nearest(name, names)}")

    # ---- kinds of section

    def _daemon(self) -> DaemonSpec:
        section = self._sections.get("sysup")
        values = self._values(DAEMON_OPTIONS, section)
        places = {name: value.place for name, value in values.items()}
        found = self._read(DAEMON_OPTIONS, values, self._variables)
        self._refuse(values, DAEMON_OPTIONS)
        defaults = {o.attr: o.circus for o in DAEMON_OPTIONS.values() if o.circus is not None}
        if not self._report.circus:
            defaults = {}
        if found.get("stats_endpoint"):
            found["statsd"] = True
        spec = DaemonSpec(**{**defaults, **found})
        if spec.curve_dir is not None and "tcp_plain_role" in places:
            message = "has no effect with curve_dir: TCP is not plain then"
            self._report.error(places["tcp_plain_role"], message)
        for name in _ENDPOINTS:
            endpoint = getattr(spec, name)
            if endpoint and name in places and endpoint.startswith("tcp:"):
                self._check_tcp(spec, name, endpoint, places[name])
        return spec

    def _check_tcp(self, spec: DaemonSpec, name: str, endpoint: str, place: Place) -> None:
        if spec.tcp_plain_role is not None or spec.curve_dir is not None:
            return
        if not is_loopback(endpoint):
            message = (
                "plain TCP is served on loopback only; use ipc://, or set curve_dir to keys that"
                " `sysupctl keygen --server` makes; tcp_plain_role opens it to anyone"
            )
            self._report.error(place, message)
        elif name == "endpoint":
            message = (
                "plain TCP is served read-only, for anyone on this machine may connect;"
                " to allow more, set tcp_plain_role = operate or admin"
            )
            self._report.warning(place, message)

    def _sockets(self) -> Iterable[SocketSpec]:
        for name, section in sorted(self._named("socket"), key=lambda item: item[0].lower()):
            values = self._values(SOCKET_OPTIONS, section)
            found = self._read(SOCKET_OPTIONS, values, self._variables)
            self._refuse(values, SOCKET_OPTIONS)
            if found.get("path"):
                found["family"] = "AF_UNIX"
            elif found.get("family") == "AF_UNIX":
                self._report.error(section.place, "an AF_UNIX socket needs a path")
            yield SocketSpec(name.lower(), **found)

    def _plugins(self) -> tuple[FlappingSpec, dict[str, PluginSpec]]:
        """Plugins, but for Circus's detection of crash loops: that is built in here."""
        flapping = FlappingSpec()
        plugins: dict[str, PluginSpec] = {}
        for name, section in sorted(self._named("plugin"), key=lambda item: item[0]):
            values = self._values(PLUGIN_OPTIONS, section)
            use = values.get("use")
            found = self._read(PLUGIN_OPTIONS, values, self._variables)
            if found.get("use") == FLAPPING_PLUGIN:
                flapping = self._flapping(values)
                continue
            if use is None:
                self._report.error(replace(section.place, option="use"), "missing")
            elif "use" in found:
                how = "until then run it by circus-plugin in a watcher, as docs/circus.md shows"
                self._report.strict(use.place, f"not supported yet; {how}")
            options = {key: self._text(value, self._variables) for key, value in values.items()}
            plugins[name] = PluginSpec(name, options=options, **found)
        return flapping, plugins

    def _flapping(self, values: dict[str, Value]) -> FlappingSpec:
        found = self._read(FLAPPING_OPTIONS, values, self._variables)
        for name, value in values.items():
            if name in WATCHER_OPTIONS or self._is_watchers(name):
                message = "has no effect: crash loops are looked for without a plugin"
                self._report.warning(value.place, message)
            else:
                hint = nearest(name, FLAPPING_OPTIONS)
                self._report.strict(value.place, f"unknown option{hint}")
        return FlappingSpec(**found)

    def _watcher(
        self,
        name: str,
        section: Section,
        sockets: Mapping[str, SocketSpec],
        flapping: FlappingSpec,
    ) -> WatcherSpec:
        values = self._values(WATCHER_OPTIONS, section)
        given = dict(values)
        env = self._envs.of(name)
        plain = env is self._envs.everywhere
        variables = self._variables if plain else Variables(self._environ, env)
        fields = self._read(WATCHER_OPTIONS, values, variables)
        fields["env"] = env
        fields["flapping"] = replace(flapping, **fields.pop("flapping", {}))
        if values:
            self._read_families(fields, values, variables)
            self._read_streams(fields, values, variables, section)
            self._read_free(fields, values, variables)
        spec = WatcherSpec(name, **fields)
        for each in faults(spec, sockets):
            self._tell(each, given, section.place)
        if spec.virtualenv:
            spec = replace(spec, python_path=self._python_path(spec, given["virtualenv"].place))
        return spec

    def _read_families(
        self, fields: dict[str, Any], values: dict[str, Value], variables: Variables
    ) -> None:
        rlimits: list[Rlimit] = []
        for family in FAMILIES:
            for name in [name for name in values if name.startswith(family.prefix)]:
                rest = name.removeprefix(family.prefix)
                if not rest or (family.names and rest not in family.names):
                    continue
                value = values.pop(name)
                try:
                    read = family.kind.text(self._text(value, variables))
                except ValueError as error:
                    self._tell(fault(name, error), {name: value}, value.place)
                    continue
                if family is RLIMIT_FAMILY:
                    rlimits.append(Rlimit(rest, *read))
        fields["rlimits"] = tuple(sorted(rlimits, key=lambda limit: limit.name))

    def _read_streams(
        self,
        fields: dict[str, Any],
        values: dict[str, Value],
        variables: Variables,
        section: Section,
    ) -> None:
        def read(option: Option, value: Value) -> Any:
            return option.read(self._text(value, variables))

        for stream in STREAM_FIELDS:
            names = [name for name in values if name.startswith(f"{stream}.")]
            if not names:
                continue
            given = {name: values.pop(name) for name in names}
            options = {name.removeprefix(f"{stream}."): value for name, value in given.items()}
            fields[stream], found = read_stream(stream, options, read)
            for each in found:
                self._tell(each, given, section.place)

    def _read_free(
        self, fields: dict[str, Any], values: Mapping[str, Value], variables: Variables
    ) -> None:
        for name, value in values.items():
            if not is_free(name):
                self._report.strict(value.place, unknown(name))
        fields["free"] = {name: self._text(value, variables) for name, value in values.items()}

    def _python_path(self, spec: WatcherSpec, place: Place) -> tuple[str, ...]:
        """The package directories of a virtual environment and what their .pth files add.

        A line of these that is code (`import ...`) is not run.
        """
        version = spec.virtualenv_py_ver or "*"
        root = literally(spec.virtualenv or "")
        sites = self._source.glob(f"{root}/lib/*{version}/site-packages")
        if len(sites) != 1:
            where = f"lib/python{version}/site-packages"
            what = f"is no virtual environment: there is no {where}"
            if sites:
                what = f"has several {where}: set virtualenv_py_ver"
            self._report.error(place, f"{spec.virtualenv} {what}")
            return ()
        paths = [sites[0]]
        for file in self._source.glob(f"{literally(sites[0])}/*.pth"):
            try:
                lines = self._source.read(file).splitlines()
            except (OSError, UnicodeError):
                self._report.warning(place, f"cannot read {file}")
                continue
            names = (line.strip() for line in lines if not line.startswith(("#", "import")))
            paths += [posixpath.join(sites[0], name) for name in names if name and "\0" not in name]
        return tuple(dict.fromkeys(paths))
