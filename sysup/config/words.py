"""Splits text into words as a shell does, and shlex.split, in time that grows with its length.

shlex puts each word together character by character, which for one of 300,000 takes more than a
second in which nothing else is done.
"""

from __future__ import annotations

import re

_PART = r"""[^ \t\r\n'"\\]++|'[^']*+'|"(?:[^"\\]|\\.)*+"|\\."""
_WORD = re.compile(f"(?:{_PART})++", re.DOTALL)
_PARTS = re.compile(_PART, re.DOTALL)
_WHOLE = re.compile(rf"(?:[ \t\r\n]++|{_PART})*+", re.DOTALL)
_QUOTING = re.compile(r"""['"\\]""")
_ESCAPED = re.compile(r'\\(["\\])')


def split(text: str) -> list[str]:
    """The words of a text. Raises ValueError for a quotation or an escape without an end."""
    whole = _WHOLE.match(text)
    if whole is not None and whole.end() < len(text):
        raise ValueError(_what_is_missing(text[whole.end() :]))
    words: list[str] = _WORD.findall(text)
    return [_plain(word) for word in words] if _QUOTING.search(text) else words


def _plain(word: str) -> str:
    """A word without what quotes it."""
    return "".join(map(_unquoted, _PARTS.findall(word))) if _QUOTING.search(word) else word


def _unquoted(part: str) -> str:
    match part[0]:
        case "'":
            return part[1:-1]
        case '"':
            return _ESCAPED.sub(r"\1", part[1:-1]) if "\\" in part else part[1:-1]
        case "\\":
            return part[1:]
        case _:
            return part


def _what_is_missing(rest: str) -> str:
    """In shlex's words; `rest` begins with what has no end."""
    backslashes = len(rest) - len(rest.rstrip("\\"))
    dangling = rest == "\\" or (rest[0] == '"' and backslashes % 2 == 1)
    return "No escaped character" if dangling else "No closing quotation"
