"""What people type for an option, as the JSON that a daemon wants.

The wire is strict (`"3"` is not a number) and a client doesn't know the daemon's options, so
it looks at the value which an option has now. Where that tells nothing (null, or no such
option yet) what looks like a number, a truth value or JSON is one. What doesn't fit is sent
as the text it is: the daemon says best what is wrong with it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

TEXT_OPTIONS = frozenset(
    {"cmd", "args", "shell_args", "executable", "working_dir", "uid", "gid", "groups", "umask"}
    | {"virtualenv", "virtualenv_py_ver", "stdin_socket", "cpu_affinity"}
    | {"success_codes", "restart_prevent"}
)
"""Options whose values are text, or lists written as text, even where they look like a number."""

FAMILIES = ("stdout_stream.", "stderr_stream.", "hooks.")
"""Beginnings of dotted names that are no free-form ones, though a watcher may not show them."""

WORDS = {
    **dict.fromkeys(("true", "yes", "on"), True),
    **dict.fromkeys(("false", "no", "off"), False),
}


def converted(pairs: Iterable[tuple[str, str]], present: Mapping[str, Any]) -> dict[str, Any]:
    """Options as typed, as a request has them.

    Args:
        pairs: names and typed values.
        present: the values that the watcher's options have now; empty if there is no watcher.
    """
    values = {}
    for key, text in pairs:
        # A dotted name that the watcher hasn't got is a free-form one, and those are text.
        free = present and key not in present and "." in key and not key.startswith(FAMILIES)
        values[key] = text if free else convert(key, text, present.get(key))
    return values


def convert(key: str, text: str, present: object = None) -> Any:
    """The JSON value that `text` means for option `key`, whose value is `present` now."""
    if key == "hooks":
        return _members(text, ":")
    if key == "env" or isinstance(present, dict):
        return _members(text, "=")
    if key.startswith("rlimit_"):
        return _literal(text, (int,))
    if isinstance(present, bool):
        return {**WORDS, "1": True, "0": False}.get(text.lower(), text)
    if isinstance(present, (int, float)):
        return _literal(text, (int, float))
    if isinstance(present, list):
        return _literal(text, (list,))
    if isinstance(present, str) or key in TEXT_OPTIONS:
        return text
    if text.lower() in WORDS:
        return WORDS[text.lower()]
    return _literal(text, (int, float, str, list, dict))


def _literal(text: str, kinds: tuple[type, ...]) -> Any:
    """`text` read as JSON if that gives one of `kinds`; as it is, otherwise."""
    try:
        value = json.loads(text, parse_constant=_finite, parse_float=_finite)
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, kinds) and not isinstance(value, bool) else text


def _finite(text: str) -> float:
    """A number; Python reads Infinity, NaN and 1e999, which JSON can't send, as numbers too."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


def _members(text: str, sign: str) -> Any:
    """An object, written as JSON or as `A=1,B=2` (`sign` being `=`)."""
    if text.lstrip().startswith("{"):
        return _literal(text, (dict,))
    members = [item.partition(sign) for item in text.split(",") if item.strip()]
    if not all(found for _, found, _ in members):
        return text
    return {key.strip(): value.strip() for key, _, value in members}
