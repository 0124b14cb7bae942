"""The properties of a request, read with their types: whatever is wrong is a MessageError."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sysup import config
from sysup.config import Role
from sysup.protocol import MessageError


class Properties:
    """Those of one request.

    Args:
        role: of the peer that asks.
    """

    def __init__(self, values: Mapping[str, Any], role: Role) -> None:
        self._values = values
        self.role = role
        """Of the peer that asks."""

    def __contains__(self, key: str) -> bool:
        return self._values.get(key) is not None

    def _get(self, key: str, kinds: tuple[type, ...], word: str) -> Any:
        if key not in self:
            raise MessageError(f"message invalid '{key}' is missing")
        value = self._values[key]
        if isinstance(value, bool) or not isinstance(value, kinds):
            raise MessageError(f"message invalid '{key}' isn't {word}")
        return value

    def anything(self, key: str) -> Any:
        """Whatever it is; None if it is not there."""
        return self._values.get(key)

    def text(self, key: str) -> str:
        """A string."""
        return str(self._get(key, (str,), "a string"))

    def octets(self, key: str) -> bytes:
        """A string as bytes; those that are no UTF-8 are surrogates in it, as in os.fsdecode."""
        try:
            return self.text(key).encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            raise MessageError(f"message invalid '{key}' has a lone surrogate") from None

    def integer(self, key: str, default: int | None = None) -> int:
        """A whole number."""
        if default is not None and key not in self:
            return default
        return int(self._get(key, (int,), "a whole number"))

    def seconds(self, key: str) -> float | None:
        """A time; circusctl sends text. None if it is not there."""
        if key not in self:
            return None
        try:
            value = float(self._get(key, (int, float, str), "a number"))
        except (ValueError, OverflowError):
            value = -1.0
        if not 0 <= value < 1e9:
            raise MessageError(f"message invalid '{key}' isn't a number of seconds")
        return value

    def number(self, key: str, default: int | None = None) -> int | None:
        """A whole number that may be missing, not below 0."""
        if key not in self:
            return default
        value = self.integer(key)
        if value < 0:
            raise MessageError(f"message invalid '{key}' is below 0")
        return value

    def one_of(self, key: str, *words: str) -> str | None:
        """One of the words; None if it is not there."""
        if key not in self:
            return None
        value = self.text(key)
        if value not in words:
            raise MessageError(f"message invalid '{key}' isn't {' or '.join(words)}")
        return value

    def flag(self, key: str, default: bool = False) -> bool:
        """A truth value; circusctl sends some as text."""
        value = self._values.get(key)
        if value is None:
            return default
        if isinstance(value, str):
            return value.lower() in ("true", "yes", "on", "1")
        return bool(value)

    def strings(self, key: str) -> list[str]:
        """A list of strings."""
        values: list[Any] = self._get(key, (list,), "a list")
        if not all(isinstance(value, str) for value in values):
            raise MessageError(f"message invalid '{key}' isn't a list of strings")
        return values

    def mapping(self, key: str, *, needed: bool = False) -> Mapping[str, Any]:
        """An object; empty if it is not there and not needed."""
        if key not in self and not needed:
            return {}
        values: dict[str, Any] = self._get(key, (dict,), "an object")
        return values

    def signum(self, key: str) -> int:
        """A signal by number or by name, with or without SIG."""
        value = self._get(key, (int, str), "a signal")
        try:
            return config.signal_number(str(value))
        except ValueError:
            raise MessageError(f"message invalid '{key}' isn't a signal: {value}") from None

    def pid(self, key: str = "pid") -> int | None:
        """A process id; circusctl sends text. None if it is not there."""
        if key not in self:
            return None
        value = self._get(key, (int, str), "a process id")
        try:
            return int(value)
        except ValueError:
            raise MessageError(f"message invalid '{key}' isn't a process id") from None
