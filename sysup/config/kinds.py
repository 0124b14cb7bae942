"""Kinds of option values: those any program has.

A kind knows one type of value in its three forms: text (an INI file), JSON (the wire, where
types are strict: "3" is not a number) and the Python value in between. Every reading raises
ValueError with a reason that a user understands, and NotYet for what is understood but has no
machinery so far. The kinds that only a supervisor has are in values.py.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Generic, TypeVar

T = TypeVar("T")
S = TypeVar("S", bound=str)
N = TypeVar("N", int, float)

WHOLE = re.compile(r"[+-]?\d{1,18}", re.ASCII)
SECONDS = re.compile(
    r"([+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:e[+-]?\d+)?)\s*(ms|s|m|h|d)?", re.ASCII | re.IGNORECASE
)
_UNITS = {None: 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE = re.compile(r"(\d{1,15})\s*([KMGT]?)(?:i?B)?", re.ASCII | re.IGNORECASE)
_SIZES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_LONGEST = 1e9
"""Seconds (31 years): keeps every deadline far from where floats and kernels overflow."""


class NotYet(ValueError):
    """The value is right, but nothing here can act on it so far."""

    def __init__(self) -> None:
        super().__init__("not supported yet")


def nearest(name: str, names: Iterable[str]) -> str:
    """` (did you mean 'x'?)` for the name most like `name`, or nothing if none is like it."""
    by_case = {known.lower(): known for known in names}
    found = difflib.get_close_matches(name.lower(), by_case, n=1, cutoff=0.7)
    return f" (did you mean '{by_case[found[0]]}'?)" if found else ""


def one_of(name: str, names: Collection[str], what: str) -> str:
    """`name` if it is one of `names`; else ValueError naming the nearest."""
    if name not in names:
        raise ValueError(f"unknown {what} '{name}'{nearest(name, names)}")
    return name


def string(value: object) -> str:
    """`value` if it is text that a process can be given; ValueError otherwise."""
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not a string")
    if "\0" in value:
        raise ValueError("a NUL byte is not allowed")
    try:
        value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise ValueError("not valid Unicode") from None
    return value


def items(value: object) -> list[object]:
    """The members of a JSON list, or the words of text."""
    if isinstance(value, str):
        return list(string(value).replace(",", " ").split())
    if not isinstance(value, list):
        raise ValueError(f"{value!r} is not a list")
    return value


def whole(value: object) -> int:
    """`value` if it is a whole number (and no boolean); ValueError otherwise."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{value!r} is not a whole number")
    if abs(value) >= 10**18:
        raise ValueError("the number is too large")
    return value


def between(value: N, low: float | None, high: float | None) -> N:
    """`value` if it is within the bounds; ValueError otherwise."""
    if low is not None and value < low:
        raise ValueError(f"{value} is less than {low}")
    if high is not None and value > high:
        raise ValueError(f"{value} is more than {high}")
    return value


def number_text(value: float) -> str:
    """`value` as a person writes it, which reads back as the same number."""
    return str(int(value)) if value == int(value) else repr(value)


class Kind(Generic[T]):
    """One type of value; `label` is its name in the reference page."""

    label = "text"
    takes_empty = False
    """Whether empty text is a value of its own; else it unsets an option that can be unset."""

    def text(self, text: str) -> T:
        """The value of INI text."""
        raise NotImplementedError

    def wire(self, value: object) -> T:
        """The value of a JSON value. Text is read as in a file, unless a kind is stricter."""
        return self.text(string(value))

    def plain(self, value: T) -> Any:
        """The value as JSON has it; `wire` reads it back."""
        return value


class Text(Kind[str]):
    """Any text, or text of one shape."""

    def __init__(self, pattern: str = "", what: str = "") -> None:
        self.pattern = re.compile(pattern, re.ASCII) if pattern else None
        self.what = what
        self.label = what.removeprefix("a ").removeprefix("an ") or "text"

    def text(self, text: str) -> str:
        if self.pattern and not self.pattern.fullmatch(text):
            raise ValueError(f"'{text}' is not {self.what}")
        return text


class Flag(Kind[bool]):
    """Yes or no."""

    label = "boolean"
    words: Mapping[str, bool] = {
        **dict.fromkeys(("yes", "true", "on", "1"), True),
        **dict.fromkeys(("no", "false", "off", "0"), False),
    }

    def text(self, text: str) -> bool:
        try:
            return self.words[text.lower()]
        except KeyError:
            raise ValueError(f"'{text}' is neither yes nor no") from None

    def wire(self, value: object) -> bool:
        if not isinstance(value, bool):
            raise ValueError(f"{value!r} is not a boolean")
        return value


class Whole(Kind[int]):
    """A whole number within bounds."""

    def __init__(self, low: int | None = None, high: int | None = None) -> None:
        self.low, self.high = low, high
        self.label = "number" if low is None else f"number from {low}"
        if high is not None:
            self.label += f" to {high}"

    def text(self, text: str) -> int:
        if not WHOLE.fullmatch(text):
            raise ValueError(f"'{text}' is not a whole number")
        return self.wire(int(text))

    def wire(self, value: object) -> int:
        return between(whole(value), self.low, self.high)


class Seconds(Kind[float]):
    """A time span: seconds, or with a unit (300ms, 5s, 2m, 1h, 1d)."""

    label = "seconds"

    def __init__(self, low: float | None = 0) -> None:
        self.low = low

    def text(self, text: str) -> float:
        match = SECONDS.fullmatch(text)
        if not match:
            raise ValueError(f"'{text}' is not a number of seconds")
        unit = match[2].lower() if match[2] else None
        return self.wire(float(match[1]) * _UNITS[unit])

    def wire(self, value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{value!r} is not a number")
        if not abs(value) <= _LONGEST:  # so that NaN is refused too
            raise ValueError(f"{value} is not a number of seconds below {_LONGEST:.0e}")
        return float(between(value, self.low, None))


class Part(Kind[float]):
    """A part of a whole."""

    label = "number from 0 to 1"

    def text(self, text: str) -> float:
        if not re.fullmatch(r"\d{1,9}(\.\d{0,18})?|\.\d{1,18}", text, re.ASCII):
            raise ValueError(f"'{text}' is not a number")
        return self.wire(float(text))

    def wire(self, value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{value!r} is not a number")
        if not 0 <= value <= 1:
            raise ValueError(f"{value} is not between 0 and 1")
        return float(value)


class Size(Kind[int]):
    """Bytes, or with a unit of 1024 (64K, 10M, 2G)."""

    label = "size"

    def __init__(self, low: int = 0, high: int | None = None) -> None:
        self.low, self.high = low, high

    def text(self, text: str) -> int:
        match = _SIZE.fullmatch(text)
        if not match:
            raise ValueError(f"'{text}' is not a size (such as 1048576 or 10M)")
        return between(int(match[1]) * _SIZES[match[2].upper()], self.low, self.high)

    def wire(self, value: object) -> int:
        if isinstance(value, str):
            return self.text(string(value))
        return between(whole(value), self.low, self.high)


class Octal(Kind[int]):
    """Permission bits in octal. Text on the wire too, where a number would be ambiguous."""

    label = "octal"

    def text(self, text: str) -> int:
        if not re.fullmatch(r"(0o)?[0-7]{1,4}", text):
            raise ValueError(f"'{text}' is not an octal mode (such as 022)")
        return int(text, 8)

    def plain(self, value: int) -> Any:
        return f"{value:03o}"


class Choice(Kind[S]):
    """One of a few words, in any case."""

    def __init__(self, *values: S) -> None:
        self.values = {value.lower(): value for value in values}
        self.label = " \\| ".join(f"`{value}`" for value in values)

    def text(self, text: str) -> S:
        try:
            return self.values[text.lower()]
        except KeyError:
            names = ", ".join(self.values.values())
            raise ValueError(f"'{text}' is not one of {names}") from None

    def plain(self, value: S) -> Any:
        return str(value)


class Words(Kind[tuple[str, ...]]):
    """Words with blanks or commas between them; each is of `kind`."""

    takes_empty = True

    def __init__(self, kind: Kind[str]) -> None:
        self.kind = kind
        self.label = f"list of {kind.label}"

    def text(self, text: str) -> tuple[str, ...]:
        return self.wire(text)

    def wire(self, value: object) -> tuple[str, ...]:
        return tuple(self.kind.wire(item) for item in items(value))

    def plain(self, value: tuple[str, ...]) -> Any:
        return list(value)


class Variables(Kind[Mapping[str, str]]):
    """An environment, as an object of strings; in a file it has sections of its own."""

    label = "object"

    def wire(self, value: object) -> Mapping[str, str]:
        if not isinstance(value, dict):
            raise ValueError(f"{value!r} is not an object")
        for name in value:
            if not name or "=" in name:
                raise ValueError(f"'{name}' cannot be the name of a variable")
        return {string(name): string(text) for name, text in value.items()}

    def plain(self, value: Mapping[str, str]) -> Any:
        return dict(value)


class Arguments(Kind[str | tuple[str, ...]]):
    """Text to be split like a shell's, or on the wire a list that is taken as it is."""

    def text(self, text: str) -> str:
        return text

    def wire(self, value: object) -> str | tuple[str, ...]:
        if value is None:
            return ""
        return tuple(string(item) for item in value) if isinstance(value, list) else string(value)

    def plain(self, value: str | tuple[str, ...]) -> Any:
        return list(value) if isinstance(value, tuple) else value


class Later(Kind[T]):
    """A kind whose machinery is not there: what it would do nothing with, it refuses."""

    def __init__(self, kind: Kind[T]) -> None:
        self.kind, self.label, self.takes_empty = kind, kind.label, kind.takes_empty

    def text(self, text: str) -> T:
        return self._off(self.kind.text(text))

    def wire(self, value: object) -> T:
        return self._off(self.kind.wire(value))

    @staticmethod
    def _off(value: T) -> T:
        if value:
            raise NotYet
        return value

    def plain(self, value: T) -> Any:
        return self.kind.plain(value)
