"""Print docs/sysupctl.md: every command, from the declarations of sysupctl itself.

python -m docs.sysupctl > docs/sysupctl.md
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterator

import click

from sysup.ctl.logs import Logs
from sysup.ctl.program import cli
from sysup.ctl.session import Command, common_options

HEAD = """\
# sysupctl

Printed from `sysup/ctl/` by `docs/sysupctl.py`; a test compares the two.

    $ sysupctl status
    NAME    STATE     READY  PID  UPTIME  RESTARTS  CPU%  MEM    RETRY  REASON
    broken  flapping  0/1    -    -       3         -     -      7s     exit code 3
        | cannot find the database
    web     active    4/4    -    3d4h    0         12.5  81.3M  -      -

CPU% is the average since the processes were started, as ps(1) has it; `top` shows that of now.

## Which daemon

The first of these that is said:

1. `--endpoint ENDPOINT`, or `-a APP`: the app's socket in its runtime directory;
2. the endpoint in the environment variable `SYSUPCTL_ENDPOINT`, or `CIRCUSCTL_ENDPOINT`;
3. the one app that is running. If several are, they are named, and `-a` chooses.

`-a` and `--endpoint` may be given several times, or `--all` for all apps that run: `status`,
`list` and `stats` then print one table of all, in which names are `APP/NAME`.

Runtime directories are in `/run/sysup` and, for other users than root, first in
`$XDG_RUNTIME_DIR/sysup` (`/tmp/sysup-UID` without that variable). `SYSUP_RUNTIME_DIR` stands in
for all of them. A socket that nobody listens at, or that you may not use, is told at once.

## Over TCP

An app whose config sets `curve_dir` speaks CURVE over TCP: encrypted, and with those alone whose
keys it knows ([security](security.md#keys)). Your own keys are in the first of `--key FILE`, the
file in `SYSUPCTL_KEY`, and `~/.config/sysup/client.key_secret`; the daemon's public key in
`--server-key FILE`, the file in `SYSUPCTL_SERVER_KEY`, `~/.config/sysup/servers/HOST:PORT.key`, and
`~/.config/sysup/server.key`. Without a key of the daemon's it is plain TCP. `keygen` and
`authorize` make these files, and ask no daemon.

## Output

Tables with columns that line up, coloured on a terminal (not with `NO_COLOR` set, nor with
`TERM=dumb`). In a pipe they
are plain; an empty cell is `-`, so columns can be counted, and only the last one has blanks in
it. On a terminal that is too narrow for a table of states, what has nothing in it is left out, the
reason stands below its line, and the columns to the right give way. Control characters in what
processes wrote are spelled out. `--json` prints the daemon's
reply as it came, in one line, also if it is a refusal; `--prettify` indents it. Errors go to
standard error: `error: REASON`.

## Following output

`tail -f` prints each byte once: the last lines, then what follows, also over a restart of a process
or of the daemon. What it can't have is told on standard error, to the byte: `web.1 stdout: 4096
bytes missed`; so it is where a reader is slower than the writer, for no process waits for one. It
needs the app's own socket, as no other carries output. Where a watcher has several streams each
line begins with `NAME.WID stdout | `. Name WID and stream, and a pipe gets its exact bytes.

## Reading the journal

`logs` prints `TIME NAME.WID: TEXT`, or the program and its pid for sysupd and others, and TIME as
`--since` takes it. On a terminal NAME is red for errors, yellow for warnings, and control
characters are spelled out; a pipe gets exact bytes. Further lines of one entry are indented in
both. Without `-n` it is the last 100 entries (also in a pipe: `-n all`), 10 with `-f`, and all if
`--since` or `--until` is said. It asks no daemon, so that the app may be down; without `-a` it is
then the one that is configured in `/etc/sysup` or `~/.config/sysup`. The exit code is 0 also if
there is nothing.

## Watching figures

`top` shows processor time and memory of every process, anew each second, with small graphs of the
last seconds: a full bar of the first is 100 % of a CPU, or what the process needed most if that is
more; of the second the most memory that it had. It needs nothing in the config: the figures come
from the app's own event socket, and are taken only while somebody looks on. Keys sort (`c` cpu,
`m` memory, `t` time, `a` age, `n` name, `p` pid, `u` user), `r` reverses, arrows and `j`, `k`
scroll, `q` ends. The terminal is given back as it was, also after Ctrl-C, SIGTERM and Ctrl-Z. In a
pipe, or with `-n`, it prints plain tables, or with `--json` a line of JSON for each.

## The shell

`shell` reads commands one after the other, with the common options that it was given; on a
terminal with completion and history. `exit` leaves it. `quit` ends the daemon, as everywhere, and
so asks before.

## Waiting

Commands that change something end when it is done, and say what was: up to 600 seconds, or
`--timeout`. `--no-wait` ends when the daemon has accepted the command. If the daemon ends
meanwhile, sysupctl notices. `--waiting`, which circusctl needs for it, is taken, too.

`wait NAME...` ends when watchers are ready, whoever starts them (`--stopped`: when no process is
left), or have failed for good; it looks when something happens, and a restart of the daemon
doesn't end it.

## Exit codes

| Code | Meaning |
|---|---|
| 0 | done; of `status`: all that is wanted runs |
| 1 | refused, or failed; or the reader of the output has gone |
| 2 | wrong usage |
| 3 | of `status`: something that is wanted does not run; of `wait`: it is not so in time |
| 4 | the daemon can't be reached or did not answer in time; of `status`, `wait`: no such watcher |
| 130 | interrupted by Ctrl-C (`listen`, `logs -f` and `tail -f` end with 0) |

A watcher that somebody stopped, or that doesn't start by itself, isn't wanted; asked for by name
it is.

## Coming from circusctl

The command lines of circusctl work, but for `ipython`, `--ssh`, `--help COMMAND` (it is `COMMAND
--help`) and the shell. The exit code of a refusal is 1, not 3. `list` prints a name a line.
`rm --nostop` and `kill --graceful_timeout` do what they say. Also a failure are `signal` and `kill`
of a process that is not there, and `start`, `restart`, `add --start` and `incr` after which the
watcher can't run: how it is, is shown. `listen` finds the event endpoint by
itself.
"""


def page() -> str:
    """The whole page."""
    return "\n".join([HEAD, *_common(), *_commands()])


def _common() -> Iterator[str]:
    yield "## Common options\n"
    yield "Before the command's name or after it.\n"
    yield from _options(common_options())


def _commands() -> Iterator[str]:
    yield "## Commands\n"
    for path, command in _leaves("", cli):
        yield f"### {path}\n"
        yield f"    sysupctl {_usage(path, command)}\n"
        yield f"{_help(command)}\n"
        own = [param for param in command.params if param not in command.common]
        yield from _options([param for param in own if isinstance(param, click.Option)])


def _leaves(path: str, group: click.Group) -> Iterator[tuple[str, Command]]:
    """The commands in a group and those below it, by what is typed for each."""
    for name in list(group.commands):
        command = group.get_command(click.Context(group), name)
        if isinstance(command, Logs):
            assert isinstance(command.reading, Command)
            yield path + name, command.reading
        if isinstance(command, click.Group):
            yield from _leaves(f"{path}{name} ", command)
        else:
            assert isinstance(command, Command)
            yield path + name, command


def _help(command: Command) -> str:
    """A command's help; what click is told not to wrap is code."""
    paragraphs = inspect.cleandoc(command.help or "").split("\n\n")
    return "\n\n".join(
        textwrap.indent(each.removeprefix("\b\n"), "    ") if each.startswith("\b\n") else each
        for each in paragraphs
    )


def _usage(path: str, command: Command) -> str:
    words = [path]
    if any(isinstance(p, click.Option) and p not in command.common for p in command.params):
        words.append("[OPTIONS]")
    for param in command.params:
        if isinstance(param, click.Argument):
            word = param.metavar or f"{param.name or ''}".upper() + "..." * (param.nargs < 0)
            words.append(word if param.required or "[" in word else f"[{word}]")
    return " ".join(words)


def _options(options: list[click.Option]) -> Iterator[str]:
    for option in options:
        names = ", ".join([*option.opts, *option.secondary_opts])
        value = option.metavar or ""
        if isinstance(option.type, click.Choice):
            value = "|".join(option.type.choices)
        yield f"- `{f'{names} {value}'.strip()}`: {option.help}"
    if options:
        yield ""


if __name__ == "__main__":
    print(page(), end="")
