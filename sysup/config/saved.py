"""What was set at run time and is to stay, as the text of a drop-in beside the config."""

from __future__ import annotations

import posixpath
import re
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from sysup.config.ini import Report, parse_text
from sysup.config.specs import STREAM_FIELDS
from sysup.protocol import MessageError

NAME = "90-saved.ini"
HEAD = """\
# Written by sysupd, for `sysupctl set --save` and the like; read after the main file, and free to
# be edited or removed.
"""
_CONF = "_conf"
EMPTY = '""'
_UNSAYABLE = re.compile(r"[\n\r\0]|^\s|\s$|\s;|^;|^\"\"$")


def saved_path(path: str) -> str:
    """The drop-in of the config in a file."""
    return f"{posixpath.splitext(path)[0]}.d/{NAME}"


def amended(text: str, watcher: str, options: Mapping[str, Any]) -> str:
    """The text of a drop-in in which a watcher has these options, in JSON values, as well.

    Raises MessageError for what no file can say.
    """
    sections = {
        name: {option: value.text for option, value in section.values.items()}
        for name, section in parse_text(text, NAME, Report()).items()
    }
    for section, option, value in _lines(watcher, options):
        if any(map(_UNSAYABLE.search, (section, option, value))):
            raise MessageError(f"cannot save {option}: {value!r} can't be said in a file")
        sections.setdefault(section, {})[option] = value
    lines = [HEAD]
    for section, values in sorted(sections.items()):
        lines += [
            f"[{section}]",
            *(f"{option} = {text or EMPTY}" for option, text in values.items()),
        ]
        lines.append("")
    return "\n".join(lines)


def saved_options(text: str) -> dict[str, list[str]]:
    """Which options of which watchers such a text has."""
    found: dict[str, list[str]] = {}
    for name, section in parse_text(text, NAME, Report()).items():
        kind, _, watcher = name.partition(":")
        if kind in ("watcher", "env") and watcher:
            names = list(section.values) if kind == "watcher" else ["env"]
            found[watcher] = sorted({*found.get(watcher, ()), *names})
    return found


def _lines(watcher: str, options: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Sections, options and their texts."""
    section = f"watcher:{watcher}"
    for key, value in options.items():
        name = key.removesuffix(_CONF)
        if key == "env":
            for variable, text in (value or {}).items():
                yield f"env:{watcher}", variable, text
        elif name in STREAM_FIELDS:
            for option, inner in (value or {}).items():
                yield section, f"{name}.{option}", _text(inner)
        elif key == "args" and isinstance(value, list):
            yield section, key, shlex.join(value)
        else:
            yield section, key, _text(value)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return " ".join(map(_text, value))
    return "" if value is None else str(value)
