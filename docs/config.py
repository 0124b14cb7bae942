"""The reference page of all options, from their declarations.

python -m docs.config > docs/config.md
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

from sysup.config.declare import Family, Option
from sysup.config.kinds import Later
from sysup.config.specs import (
    DAEMON_OPTIONS,
    FAMILIES,
    PLUGIN_OPTIONS,
    SOCKET_OPTIONS,
    WATCHER_OPTIONS,
)
from sysup.config.streams import STREAMS

INTRODUCTION = """\
# Configuration

<!-- Made by `python -m docs.config`; edit sysup/config/specs.py instead. -->

`sysupd /etc/sysup/APP.ini` runs what the file says. `sysupd --check FILE` tells all that is
wrong with it, each with file, line, section, option and, for an unknown name, the nearest known
one. It warns of what would fail on this machine as it is: users, directories and programs that are
not there. The exit status is 0 if the file can be used, with warnings or without, and 78 if not.

## Files

```ini
[sysup]
include = conf.d/*.ini

[watcher:web]
cmd = gunicorn --bind fd://$(sysup.sockets.http) app:main
numprocesses = 4
rlimit_nofile = 4096
stdout_stream.filename = /var/log/web.log

[socket:http]
port = 8000

[env:web]
WORKERS_TMP = /run/$USER
```

- `name = value` or `name: value`. Names of options and sections are case-sensitive; watchers and
  sockets must differ by more than case.
- A line that begins with `#`, `;` or `rem ` is a comment; an indented one is not. A value ends at
  its first `;` if a blank stands before that; `#` within a value is data.
- An indented line continues the value above it. `""` is the empty value. Booleans are yes, true,
  on, 1, no, false, off and 0.
- The first definition of an option wins: within a file, and across the main file and its
  includes, where the main file comes first. `include` takes globs and `include_dir` directories
  (their `*.ini`), with blanks between them, relative to the main file; only the main file's count.
  A file that is named must be readable; a glob may match nothing, which is a warning.
- Drop-ins are for overriding: beside `APP.ini`, the files `APP.d/*.ini` are read last, in the order
  of their names, and what a later one says replaces what was said before.
- `[DEFAULT]` feeds every section but `[env]` with the options that the section knows.
- `[circus]` is the same as `[sysup]`, and says that the file was written for Circus: its defaults
  hold where they differ (see below), and unknown options and sections, and options not supported
  yet, are warnings. Otherwise they are errors, but for names with a dot whose beginning is none
  of sysup's (`myplugin.option`): these are free for plugins and hooks.

## Variables

`$(sysup.env.NAME)` or `((sysup.env.NAME))` is replaced in every option, once, and stays as it
is when there is no such variable; `circus` may stand for `sysup`. NAME is looked for as it is
written, then without regard to case: in a watcher's section among the watcher's variables and
then the daemon's; elsewhere among those of `[env]` and then the daemon's; in `[env]` sections
and `include` among the daemon's alone.

In `cmd`, `args` and `shell_args` these are replaced at each start: `$(sysup.wid)`, the number of
the process's slot; `$(sysup.sockets.NAME)`, the descriptor of a socket; `$(sysup.OPTION)`, a
watcher's option, and without a `working_dir` the daemon's; `$(sysup.rlimits.NAME)`, a soft limit.

## Environment

`[env]` is for every watcher and `[env:web,job-*]` for those whose names match; of several, the
later one wins. `$NAME` in a value (upper case) is the daemon's variable, or nothing. Beneath that
lie PATH and LANG of the daemon, and HOME, USER, LOGNAME and SHELL of the user the process runs as;
in a file with `[circus]` nothing does. `copy_env` puts the daemon's whole environment beneath. A
program without a slash is looked for in the PATH of its process, which `virtualenv` begins with its
own programs; if it has none, in that of the daemon.

## When it is read again

`sysupctl reloadconfig`, `systemctl reload` and SIGHUP do exactly what differs. A mistake within the
section of one watcher or socket costs no other: it stays as it is, or is not added if it is new,
and all else is done. `sysupctl status` and `show` say so, by file, line, section and option, until
it is right. The reload itself fails, with what was done and what was not, and so does `--dry-run`.
It also waits for the processes that are new by it, as `reload` does, and fails when those do that
are to replace others (which run on); another reload, which may mend them, need not wait for that.
In doubt more stays, never less:

- A watcher that needs a socket whose new section is wrong stays, too. A socket that only a watcher
  needs which stays is not closed. One that changes does, and restarts the watchers that use it.
- A watcher that stays keeps its environment and its variables as they were. What a new `[env]` does
  wrong it does to an option of a watcher, and it stays with that watcher.
- What is of nobody alone refuses the reload as a whole, and nothing changes: a line that is no line
  of such a file, a file that can't be read, `[sysup]`, `[DEFAULT]`, `[plugin:...]`, unknown
  sections, and a mistake at the end of a file whose last line has no end, as while it is written.

A daemon that takes over, after an upgrade or a crash, goes on with what the one before had read,
whatever the files say by then. A daemon that starts afresh takes all or nothing, and ends with
status 78.

## Reading the tables

Seconds may have a unit (`300ms`, `5s`, `2m`, `1h`, `1d`), and so may sizes (`64K`, `10M`, `2G`).
"On change" is what happens when a running watcher's option is changed, by `set` or by a new
file: *live*: used when it is next needed; *scale*: processes are started or stopped; *limits*:
set on the running processes; *reload*: processes are replaced, gracefully. On the wire, types are
strict (a number is not text), and lists and objects are JSON's.
"""


def page() -> str:
    """The whole page."""
    parts = [
        INTRODUCTION,
        "## [sysup]\n\nThe daemon itself.\n",
        _table(DAEMON_OPTIONS.values(), changes=False),
        "## [watcher:NAME]\n\nA kind of process.\n",
        _table(WATCHER_OPTIONS.values(), changes=True),
        "Options that come in families:\n",
        "\n".join(_families()),
        "### Streams\n",
        "`stdout_stream.OPTION` and `stderr_stream.OPTION` say where output goes; with none, a"
        " process has the daemon's. `class` is one of those below, or a class of your own in"
        " dotted form (`mymodule.MyStream`), which gets the other options as text; `filename`"
        " alone implies FileStream. A change replaces the processes.\n",
        *_streams(),
        "## [socket:NAME]\n\nA listening socket that the daemon binds.\n",
        _table(SOCKET_OPTIONS.values(), changes=False),
        "## [plugin:NAME]\n",
        "Not supported yet, but for `use = circus.plugins.flapping.Flapping`: its options become"
        " the default `flapping.*` of all watchers, as crash loops are looked for without a"
        " plugin.\n",
        _table(PLUGIN_OPTIONS.values(), changes=False),
    ]
    return "\n".join(parts)


def _table(options: Iterable[Option], *, changes: bool) -> str:
    head = ["Option", "Type", "Default", *(["On change"] if changes else []), "Meaning"]
    rows = [head, ["---"] * len(head)]
    for option in options:
        change = [str(option.impact)] if changes else []
        rows.append(
            [f"`{option.name}`", option.kind.label, _default(option), *change, _doc(option)]
        )
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _default(option: Option) -> str:
    def text(value: object) -> str:
        if isinstance(value, str) and value:
            return f"`{value}`"
        return "" if value in ("", None, [], {}) else f"`{json.dumps(value)}`"

    if option.name == "stop_signal":
        return "`TERM`"
    default = text(option.plain(option.default))
    circus = f"; in [circus] `{option.circus}`" if option.circus is not None else ""
    return f"{default or 'none'}{circus}" if circus else default


def _doc(option: Option) -> str:
    notes = []
    if option.alias:
        notes.append("old name of the option above")
    else:
        notes.append(option.doc)
    if option.where == "wire":
        notes.append("on the wire only")
    if option.where == "file":
        notes.append("in files only")
    if isinstance(option.kind, Later):
        notes.append("*not supported yet*")
    return "; ".join(notes)


def _families() -> Iterator[str]:
    for family in FAMILIES:
        yield f"- `{family.prefix}NAME` ({family.kind.label}): {_family_doc(family)}"
    yield ""


def _family_doc(family: Family) -> str:
    names = f" NAME is one of {', '.join(family.names)}." if family.names else ""
    later = "; *not supported yet*" if isinstance(family.kind, Later) else ""
    change = "" if later else f" On change: {family.impact}."
    return f"{family.doc}{later}.{names}{change}"


def _streams() -> Iterator[str]:
    for cls, options in STREAMS.items():
        yield f"#### {cls}\n"
        yield _table(options.values(), changes=False)


if __name__ == "__main__":
    print(page(), end="")
