"""The options of a watcher by generation, and what makes processes of each.

A change that needs new processes makes a new generation; the slots of an older one keep its
options until they are gone. Where their output goes, and what becomes of it, is told here too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from typing import Any

from sysup import config
from sysup.board import Board
from sysup.body import Mould
from sysup.config import WatcherSpec
from sysup.protocol import SysupError
from sysup.streams import Losses


class Generations:
    """Those of one watcher.

    Args:
        publish: takes an event about the output, and its fields.
    """

    def __init__(self, board: Board, spec: WatcherSpec, publish: Callable[..., None]) -> None:
        self.newest = 1
        self.losses: dict[str, Counter[str]] = {}
        """By stream: the output that was left out."""
        self._board = board
        self._publish = publish
        self._specs = {1: spec}
        self._moulds: dict[int, Mould] = {}
        self._record: dict[str, Any] | None = None

    @property
    def spec(self) -> WatcherSpec:
        """The newest options."""
        return self._specs[self.newest]

    @property
    def moulds(self) -> list[Mould]:
        """What processes are made by; the newest is the last."""
        return [mould for _, mould in sorted(self._moulds.items())]

    def mould(self, generation: int) -> Mould:
        """What makes the processes of a generation. Raises SysupError when that can't be had."""
        mould = self._moulds.get(generation)
        if mould is None:
            mould = self._moulds[generation] = Mould(
                self._board.setting,
                self._specs[generation],
                on_read_out=self._board.remains.check,
                on_sink=self._on_sink,
                on_loss=self._on_loss,
                on_rotated=lambda path: self._publish("sink_rotated", path=path),
            )
        return mould

    def replace(self, spec: WatcherSpec) -> None:
        """Have the newest generation be of these options."""
        self._specs[self.newest] = spec
        self._record = None

    def begin(self, used: Collection[int]) -> None:
        """Have what is launched from now on be of a generation of its own; `used` have slots."""
        spec = self.spec
        self.newest += 1
        self.replace(spec)
        self.keep(used)

    def record(self) -> dict[str, Any]:
        """What the older ones have that differs from the newest, as JSON can say it."""
        if self._record is None:
            older = {n: spec for n, spec in self._specs.items() if n != self.newest}
            self._record = {str(n): config.difference(self.spec, older[n]) for n in older}
        return self._record

    def restore(self, newest: int, used: Collection[int], record: Mapping[str, Any]) -> None:
        """Number them as another daemon did; `used` are to be there, by its `record`."""
        spec, self.newest = self.spec, newest
        self._specs = {}
        for generation in sorted({newest, *used}):
            self._specs[generation] = spec
            with suppress(SysupError):  # what is only to be said in a file
                own = record.get(str(generation), {})
                self._specs[generation] = config.with_options(spec, own)
        self._record = None

    def keep(self, used: Collection[int]) -> None:
        """Forget old generations that have no slot."""
        for generation in self._specs.keys() - {self.newest, *used}:
            del self._specs[generation]
            self._record = None
            if mould := self._moulds.pop(generation, None):
                mould.close()

    def break_moulds(self) -> None:
        """Later processes are made from the options as they are then."""
        moulds, self._moulds = self._moulds, {}
        for mould in moulds.values():
            mould.close()

    def _on_sink(self, reason: str | None) -> None:
        """Output can't be written, or can again."""
        if reason is None:
            self._publish("sink_recovered")
        else:
            self._publish("sink_failed", reason=reason)

    def _on_loss(self, stream: str, losses: Losses) -> None:
        """Some output was left out."""
        fields: dict[str, Any] = losses._asdict()
        self.losses.setdefault(stream, Counter()).update(fields)
        self._publish("output_lost", stream=stream, **fields)
