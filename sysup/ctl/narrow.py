"""Tables on terminals that are too narrow for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import click

LEAST = 3
"""Columns from the left that stay, however narrow it is."""
GAP = 2
EMPTY = frozenset({"", "-"})


class Fitted(NamedTuple):
    """What of a table there is room for."""

    header: list[str]
    rows: list[list[str]]
    below: dict[int, str]
    """What stands below a row, by its number from 1, instead of in the last column."""


def fit(header: Sequence[str], rows: Sequence[Sequence[str]], width: int | None) -> Fitted:
    """A table as it fits in so many columns; None: there is no end of room.

    Given up, as far as need be, are in this order: columns with nothing in them; the last one,
    whose text goes below its row; others from the right.
    """
    columns = range(len(header))
    kept, last, below = [*columns], columns[-1], {}
    sizes = [max(len(click.unstyle(row[at])) or 1 for row in (header, *rows)) for at in columns]

    def is_too_wide() -> bool:
        return width is not None and sum(sizes[at] + GAP for at in kept) - GAP > width

    if is_too_wide():
        kept = [at for at in kept if any(row[at] not in EMPTY for row in rows)]
    if is_too_wide() and last in kept:
        kept.remove(last)
        below = {number: row[last] for number, row in enumerate(rows, 1) if row[last] not in EMPTY}
    while is_too_wide() and len(kept) > LEAST:
        kept.pop()
    return Fitted([header[at] for at in kept], [[row[at] for at in kept] for row in rows], below)
