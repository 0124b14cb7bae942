"""Output of the processes: pipes, what reads them, and where it goes.

The pump is a thread in C (pump.h has the theory); no byte passes through Python but those
for a class written in Python. Here live the names of its streams and sinks:

- a `Stream` is one pipe, from `Pump.add` to the call of its `on_eof` (pump.py);
- a `Sink` is one user's way to a place that bytes go to, and says what is done to lines on
  it; `open_sink` makes it (classes.py). Two users of one file, or of the daemon's stdout, hold
  one place, so that lines stay whole and one rotation is one;
- the place closes when nobody holds it and its last stream has ended (places.py; files.py,
  journal.py);
- when a file is rotated by the clock says schedule.py, and what becomes of its backups
  backups.py.

All methods belong to the daemon's loop thread. Events of the pump come through one
descriptor: `loop.add_reader(pump.fileno(), pump.dispatch)`. Callbacks must not raise.
"""

from sysup.streams.classes import QueueStream, Source, StreamName, open_sink
from sysup.streams.journal import Direct, is_own_output
from sysup.streams.pump import Losses, OnEof, OnLoss, OnRotated, OnState, OnTap, Pump, Sink, Stream

__all__ = [
    "Direct",
    "Losses",
    "OnEof",
    "OnLoss",
    "OnRotated",
    "OnState",
    "OnTap",
    "Pump",
    "QueueStream",
    "Sink",
    "Source",
    "Stream",
    "StreamName",
    "is_own_output",
    "open_sink",
]
