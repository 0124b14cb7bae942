"""All that is measured, and with whom."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.bench import cli, control, lifecycle, output, recovery
from tests.bench.peers import (
    BACKUPS,
    ROTATE,
    S6,
    Circus,
    Commanded,
    Daemontools,
    Multilog,
    Peer,
    Pm2,
    Reference,
    Runit,
    S6Log,
    Supervisord,
    Svlogd,
    Sysup,
)
from tests.bench.run import Figures, Scale, Tools

MORE_IS_BETTER = frozenset({"MB/s", "light/s", "stats/s"})
NOT_COMPARED = frozenset({"kills", "starts", "files", "others' cores"})


@dataclass(frozen=True)
class Scenario:
    """Something that is measured; `peers` take turns at it. Smaller figures are better, but for
    those in MORE_IS_BETTER."""

    title: str
    measure: Callable[[Peer, Tools, Scale], Figures]
    peers: tuple[Peer, ...]


DAY_TIME = "time_format = %Y-%m-%d %H:%M:%S"
LATE = S6Log.unbounded

SUPERVISORS = (Sysup(), Circus(), Supervisord(), Daemontools(), Runit(), S6(), Reference())
WRITERS = (
    Sysup(),
    Circus(),
    Supervisord(),
    Pm2(),
    S6Log(),
    Multilog(),
    Svlogd(),
    Reference(),
    Reference("+1ms", ("0", "1000")),
)
STAMPING = (
    Sysup("iso", ("time_format = iso",)),
    Sysup("tai64n", ("time_format = tai64n",)),
    Sysup("strftime", (DAY_TIME,)),
    Sysup("prefix", ("format = prefix",)),
    Circus("strftime", (DAY_TIME,)),
    S6Log("tai64n", ("t", *LATE)),
    S6Log("iso", ("T", *LATE)),
    Multilog("tai64n", ("t", *Multilog.unbounded)),
    Svlogd("iso", ("-ttt", "s0")),
)
ROTATING = (
    Sysup("", (f"max_bytes = {ROTATE}", f"backup_count = {BACKUPS}")),
    Circus("", (f"max_bytes = {ROTATE}", f"backup_count = {BACKUPS}")),
    Supervisord("", (f"stdout_logfile_maxbytes = {ROTATE}", f"stdout_logfile_backups = {BACKUPS}")),
    S6Log("", (f"n{BACKUPS}", f"s{ROTATE}")),
    Multilog("", (f"n{BACKUPS}", f"s{ROTATE}")),
    Svlogd("", ("", f"n{BACKUPS}", f"s{ROTATE}")),
    Reference("", (str(ROTATE), "0")),
)
STEADY = (*WRITERS, Sysup("refresh 0.3", ("refresh_time = 0.3",)))
HOLDING = (Sysup(), Circus(), Supervisord())
COMMANDED = (Sysup(), Circus())
WRAPPING = Sysup("", (f"max_bytes = {10 * ROTATE}", "backup_count = 1"))

SCENARIOS = {
    "restart": Scenario(
        "200 children, kill -9 of one; to the first instruction of its replacement",
        lifecycle.restart,
        SUPERVISORS,
    ),
    "idle": Scenario("200 idle children", lifecycle.idle, SUPERVISORS),
    "start_stop": Scenario("200 children", lifecycle.start_stop, SUPERVISORS),
    "start_stop_many": Scenario("1,000 children", lifecycle.start_stop_many, SUPERVISORS),
    "crash_loop": Scenario(
        "a command that fails at once, 20 s with the defaults", lifecycle.crash_loop, SUPERVISORS
    ),
    "cli": Scenario(
        "`status` of 200 children, by a new process each time",
        cli.status,
        (Sysup(), Circus(), Commanded()),
    ),
    "stats": Scenario(
        "`stats` of 1,000 children, and a light request meanwhile",
        control.statistics_of_many,
        COMMANDED,
    ),
    "status": Scenario(
        "`status` of 10 watchers x 100 processes, and of one; 100 log at full speed, in blocks",
        control.status_of_ten,
        (WRAPPING,),
    ),
    "status_lines": Scenario(
        "the same; 100 log at full speed, a write a line",
        control.status_between_lines,
        (WRAPPING,),
    ),
    "status_one": Scenario(
        "`status` of a watcher of 900 processes, and of one of 100 that log at full speed",
        control.status_of_two,
        (WRAPPING,),
    ),
    "requests": Scenario("requests, 200 children", control.requests, COMMANDED),
    "bulk": Scenario("one child, 200 MB, 4 KiB writes", output.bulk, WRITERS),
    "lines": Scenario("one child, 200 MB, a write a line", output.lines, WRITERS),
    "many": Scenario(
        "100 children x 20,000 lines into one file, a write a line", output.many, WRITERS
    ),
    "many_bulk": Scenario(
        "100 children x 20,000 lines into one file, 4 KiB writes", output.many_bulk, WRITERS
    ),
    "stamped": Scenario("one child, 200 MB, a stamp before each line", output.stamped, STAMPING),
    "rotation": Scenario("one child, 200 MB, rotation at 10 MB", output.rotation, ROTATING),
    "steady": Scenario("100 children x 50 lines a second", output.steady, STEADY),
    "recovery": Scenario(
        "1,000 children of two pipes each, and no daemon", recovery.recovery, (Sysup(),)
    ),
    "memory": Scenario("500 and 1,500 children, two pipes each", output.memory, HOLDING),
}
