"""INI text, includes and drop-ins, variables, and the list of what is wrong.

The syntax is Circus's: `name = value` or `name: value`, names case-sensitive; comments in lines
that begin with `#`, `;` or `rem `, and after a value's first semicolon if a blank stands before
it; an indented line continues the value above; `""` is empty. The first definition wins, within
a file and across a file and its includes; drop-ins (APP.d/*.ini) come last and override, as
administrators know them from systemd.

Every value keeps the file and line it came from.
"""

from __future__ import annotations

import fnmatch
import posixpath
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from sysup.protocol import SysupError


class Source(Protocol):
    """Where files come from, so that nothing here touches the system."""

    def read(self, path: str) -> str:
        """The text of a file. Raises OSError, or UnicodeError if it is not text."""

    def glob(self, pattern: str) -> list[str]:
        """The paths that match a pattern as of glob(7), sorted."""


class Level(StrEnum):
    """How bad a problem is."""

    ERROR = "error"
    STRICT = "strict"
    """An error, but a warning in a file of Circus, which let it pass. No Problem has it."""
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Place:
    """Where something stands; line 0 is the file as a whole."""

    file: str
    line: int = 0
    section: str = ""
    option: str = ""


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong with a config, or strange about it."""

    level: Level
    place: Place
    message: str

    @property
    def file(self) -> str:
        """The file it is in."""
        return self.place.file

    @property
    def line(self) -> int:
        """The line it is on; 0: none in particular."""
        return self.place.line

    @property
    def section(self) -> str:
        """The section, without brackets; empty: none in particular."""
        return self.place.section

    @property
    def option(self) -> str:
        """The option; empty: none in particular."""
        return self.place.option

    def __str__(self) -> str:
        return self._text("")

    def labelled(self) -> str:
        """As text; where it is a warning it says so."""
        return self._text(" warning:" if self.level is Level.WARNING else "")

    def _text(self, label: str) -> str:
        where = f"{self.file}:{self.line}:" if self.line else f"{self.file}:"
        section = f" [{self.section}]" if self.section else ""
        option = f" {self.option}:" if self.option else ":" if section else ""
        return f"{where}{label}{section}{option} {self.message}"


class ConfigError(SysupError):
    """A config that cannot be used; `problems` has all its errors and warnings."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        errors = (str(problem) for problem in self.problems if problem.level is Level.ERROR)
        super().__init__("\n".join(errors))


class Report:
    """Gathers problems. `circus` makes warnings of what Circus let pass."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.circus = False
        self.cut: set[Place] = set()
        """The last options of files that end in the middle of a line."""
        self.was_strict = False
        """Whether something is an error that Circus let pass."""

    @property
    def failed(self) -> bool:
        """Whether there is any error."""
        return any(problem.level is Level.ERROR for problem in self.problems)

    def add(self, level: Level, place: Place, message: str) -> None:
        """Add a problem."""
        if level is Level.STRICT:
            level = Level.WARNING if self.circus else Level.ERROR
            self.was_strict |= not self.circus
        self.problems.append(Problem(level, place, message))

    def error(self, place: Place, message: str) -> None:
        """Add an error."""
        self.add(Level.ERROR, place, message)

    def strict(self, place: Place, message: str) -> None:
        """Add an error, or a warning if the file is one of Circus."""
        self.add(Level.STRICT, place, message)

    def warning(self, place: Place, message: str) -> None:
        """Add a warning."""
        self.add(Level.WARNING, place, message)


@dataclass(frozen=True, slots=True)
class Value:
    """The text of an option and where it stands."""

    text: str
    place: Place


@dataclass(slots=True)
class Section:
    """A section with all that files say in it; the place is where it first began."""

    place: Place
    values: dict[str, Value] = field(default_factory=dict)


Sections = dict[str, Section]
"""Sections by name; [circus] goes by the name of `sysup`."""

_HEADER = re.compile(r"\[(.*?)\]\s*(?:[#;].*)?$")
_SEPARATOR = re.compile("[=:]")
_REM = re.compile(r"rem(\s|$)", re.IGNORECASE)


def parse_text(text: str, file: str, report: Report) -> Sections:
    """Read the text of one file; its syntax errors go to `report`."""
    parser = _Parser(file, report)
    for line, raw in enumerate(text.removeprefix("\ufeff").split("\n"), 1):
        if raw.strip() and raw[0] not in "#;" and not _REM.match(raw):
            parser.take(raw, line)
    if text and not text.endswith("\n") and parser.last:
        report.cut.add(parser.last)
    return parser.sections


class _Parser:
    """Reads a file line by line."""

    def __init__(self, file: str, report: Report) -> None:
        self.sections: Sections = {}
        self.last: Place | None = None
        """Of the option that was defined last."""
        self._file = file
        self._report = report
        self._section: Section | None = None
        # Where the value is that an indented line continues. That of a name set twice is in a
        # dictionary of its own, which nobody reads.
        self._values: dict[str, Value] = {}
        self._name = ""

    def take(self, raw: str, line: int) -> None:
        """Read a line that is neither blank nor a comment."""
        section = self._section.place.section if self._section else ""
        place = Place(self._file, line, section)
        if "\0" in raw:
            self._report.error(place, "a NUL byte is not allowed")
        elif raw[0].isspace():
            self._continue(raw.strip(), place)
        elif header := _HEADER.match(raw.rstrip()):
            self._begin(header[1].strip(), place)
        elif self._section is None:
            self._report.error(place, "no section before this line, such as [sysup]")
        else:
            self._define(self._section, raw, place)

    def _begin(self, header: str, place: Place) -> None:
        name = "sysup" if header == "circus" else header
        self._report.circus |= header == "circus"
        new = Section(Place(place.file, place.line, header))
        self._section = self.sections.setdefault(name, new)
        self._name = ""

    def _continue(self, text: str, place: Place) -> None:
        if not self._name:
            self._report.error(place, "an indented line continues a value: there is none above it")
            return
        value = self._values[self._name]
        if text[0] in "#;":
            self._report.warning(value.place, f"line {place.line} is no comment: it is indented")
        self._values[self._name] = Value(f"{value.text}\n{text}", value.place)

    def _define(self, section: Section, raw: str, place: Place) -> None:
        separator = _SEPARATOR.search(raw)
        name = raw[: separator.start()].rstrip() if separator else ""
        if not separator or not name or name[0] == "[":
            self._name = ""
            what = f"'{raw.strip()}' is neither '[section]' nor 'name = value'"
            self._report.error(place, what)
            return
        text = raw[separator.end() :].strip()
        semicolon = text.find(";")
        if semicolon > 0 and text[semicolon - 1].isspace():
            text = text[:semicolon].rstrip()
        self.last = place = Place(place.file, place.line, place.section, name)
        self._name, self._values = name, section.values
        if name in section.values:
            self._values = {}
            line = section.values[name].place.line
            self._report.warning(place, f"ignored: line {line} has set it already")
        self._values[name] = Value("" if text == '""' else text, place)


def read_files(path: str, source: Source, environ: Mapping[str, str], report: Report) -> Sections:
    """The main file, its includes and its drop-ins, merged."""
    main = _read(path, source, report, Place(path))
    sections = main or {}
    seen = {path}
    for file, why in _includes(sections, path, source, Variables(environ), report):
        if file not in seen:
            seen.add(file)
            _merge(sections, _included(file, source, report, why), override=False)
    for file in source.glob(f"{literally(posixpath.splitext(path)[0])}.d/*.ini"):
        _merge(sections, _included(file, source, report, Place(file)), override=True)
    return sections


def _read(file: str, source: Source, report: Report, why: Place) -> Sections:
    what = "it" if why == Place(file) else file
    try:
        return parse_text(source.read(file), file, report)
    except OSError as error:
        report.error(why, f"cannot read {what}: {error.strerror or error}")
    except UnicodeError:
        report.error(why, f"cannot read {what}: it is not UTF-8")
    return {}


def _included(file: str, source: Source, report: Report, why: Place) -> Sections:
    sections = _read(file, source, report, why)
    for name in ("include", "include_dir"):
        daemon = sections.get("sysup")
        if daemon and (value := daemon.values.pop(name, None)):
            report.warning(value.place, "ignored: only the main file includes others")
    return sections


def _includes(
    sections: Sections, path: str, source: Source, variables: Variables, report: Report
) -> Iterable[tuple[str, Place]]:
    """The files that `include` and `include_dir` name, each with the place that says so."""
    values = sections["sysup"].values if "sysup" in sections else {}
    base = posixpath.dirname(path)
    for option, suffix in (("include", ""), ("include_dir", "/*.ini")):
        if option not in values:
            continue
        value = values[option]
        for word in variables.expand(value.text).split():
            pattern = posixpath.join(base, word) + suffix
            if "\0" in pattern:
                report.error(value.place, "a NUL byte is not allowed")
            elif not re.search(r"[*?[]", pattern):
                yield pattern, value.place
            elif found := source.glob(pattern):
                yield from ((file, value.place) for file in found)
            else:
                report.warning(value.place, f"no file matches {pattern}")


def literally(path: str) -> str:
    """A glob pattern that matches `path` alone."""
    return re.sub(r"([*?[])", r"[\1]", path)


def _merge(sections: Sections, more: Sections, *, override: bool) -> None:
    for name, section in more.items():
        known = sections.setdefault(name, section)
        if known is section:
            continue
        for option, value in section.values.items():
            if override or option not in known.values:
                known.values[option] = value


_VARIABLE = re.compile(
    r"\$\((?i:circus|sysup)\.(?i:env)\.([\w.-]+)\)"
    r"|\(\((?i:circus|sysup)\.(?i:env)\.([\w.-]+)\)\)"
)
_ENV_VARIABLE = re.compile(rf"{_VARIABLE.pattern}|\$([A-Z][A-Z0-9_]*)")


class Variables:
    """Values for `$(sysup.env.NAME)`: later mappings overlay earlier ones.

    A name is looked for as it is written, then without regard to case, as in Circus.
    """

    def __init__(self, *layers: Mapping[str, str]) -> None:
        self._layers = layers
        self._by_case: dict[str, str] | None = None

    def get(self, name: str) -> str | None:
        """The value of a variable; None if there is none."""
        for layer in reversed(self._layers):
            if name in layer:
                return layer[name]
        if self._by_case is None:
            self._by_case = {key.lower(): v for layer in self._layers for key, v in layer.items()}
        return self._by_case.get(name.lower())

    def expand(self, text: str) -> str:
        """`text` with its variables replaced, once; unknown ones stay as they are."""
        return _VARIABLE.sub(self._replace, text) if "(" in text else text

    def expand_env(self, text: str) -> str:
        """`text` of an [env] section: `$NAME` is replaced too, and empty if unset."""
        return _ENV_VARIABLE.sub(self._replace_env, text) if "$" in text or "(" in text else text

    def _replace(self, match: re.Match[str]) -> str:
        value = self.get(match[1] or match[2])
        return match[0] if value is None else value

    def _replace_env(self, match: re.Match[str]) -> str:
        if not match[3]:
            return self._replace(match)
        return next((layer[match[3]] for layer in self._layers[::-1] if match[3] in layer), "")


class Environments:
    """The [env] sections: which variables a watcher gets."""

    def __init__(self, sections: Sections, environ: Mapping[str, str]) -> None:
        self._everywhere: dict[str, str] = {}
        self._literal: dict[str, list[int]] = {}
        self._patterns: list[tuple[re.Pattern[str], int]] = []
        self._sections: list[tuple[Section, dict[str, str]]] = []
        variables = Variables(environ)
        for name, section in sections.items():
            if name != "env" and not name.startswith("env:"):
                continue
            values = {
                key: variables.expand_env(value.text).strip()
                for key, value in section.values.items()
            }
            if name == "env":
                self._everywhere = values
            else:
                self._add(name.removeprefix("env:"), section, values)

    def _add(self, patterns: str, section: Section, values: dict[str, str]) -> None:
        # Literal names are looked up, not matched, so that as many sections as watchers cost
        # no square of them.
        index = len(self._sections)
        self._sections.append((section, values))
        for pattern in (word.strip() for word in patterns.split(",")):
            if re.search(r"[*?[]", pattern):
                self._patterns.append((re.compile(fnmatch.translate(pattern)), index))
            else:
                self._literal.setdefault(pattern, []).append(index)

    @property
    def everywhere(self) -> Mapping[str, str]:
        """The variables of [env] itself."""
        return self._everywhere

    def of(self, watcher: str) -> Mapping[str, str]:
        """The variables of a watcher: [env], then its [env:...] in order; later ones win."""
        indexes = set(self._literal.get(watcher, ()))
        indexes.update(index for pattern, index in self._patterns if pattern.match(watcher))
        if not indexes:
            return self._everywhere
        merged = dict(self._everywhere)
        for index in sorted(indexes):
            merged |= self._sections[index][1]
        return merged

    def unused(self, watchers: Iterable[str]) -> Iterable[Place]:
        """Where sections begin that are of no watcher."""
        names = set(watchers)
        used = {index for name in names for index in self._literal.get(name, ())}
        used |= {at for pattern, at in self._patterns if any(map(pattern.match, names))}
        for index, (section, _) in enumerate(self._sections):
            if index not in used:
                yield section.place
