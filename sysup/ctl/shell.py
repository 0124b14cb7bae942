"""sysupctl's `shell`: commands one after the other, with completion and a history."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence

import click

from sysup.ctl.session import OK, USAGE, Command, Group, Session, run, session

DELIMITERS = " \t\n"
LEAVE = ("exit", "bye")
HINT = "exit or Ctrl-D leaves, help tells more"


@click.command(cls=Command)
@click.pass_context
def shell(context: click.Context) -> int:
    """Read commands, and run them: on a terminal with completion (Tab) and history.

    `exit` leaves; `quit` ends the daemon, as everywhere, and asks before. From a pipe each line is
    a command; the exit code is that of the last that did not succeed.
    """
    here = session()
    program = context.find_root().command
    assert isinstance(program, Group)
    program.load_all(context)  # of this version: another one may be installed meanwhile
    given = common_words(here)
    on_terminal = sys.stdin.isatty()
    if on_terminal:
        complete_lines(program, given)
        click.echo(HINT)
    prompt = f"{here.app or here.endpoint or 'sysup'}> " if on_terminal else ""
    code = OK
    while True:
        try:
            line = input(prompt)
        except EOFError:
            if on_terminal:
                click.echo()
            return code
        except KeyboardInterrupt:
            if not on_terminal:
                raise
            click.echo()
            continue
        words = split(line)
        if words is None:
            click.echo("error: a quotation has no end", err=True)
            code = USAGE
        elif words and words[0] in LEAVE:
            return code
        elif words and (not on_terminal or is_meant(words)):
            code = run(program, [*given, *as_command(words)]) or code


def common_words(here: Session) -> list[str]:
    """The common options as they were given, for each command."""
    words = [f"--app={app}" for app in here.apps]
    words += [f"--endpoint={endpoint}" for endpoint in here.endpoints]
    for name, value in (("key", here.key), ("server-key", here.server_key)):
        words += [f"--{name}={value}"] if value is not None else []
    words += [f"--timeout={here.timeout:g}"] if here.timeout is not None else []
    return words + [f"--{name}" for name in ("json", "prettify") if getattr(here, name)]


def split(line: str) -> list[str] | None:
    """The words of a line, as a shell has them; None if a quotation has no end."""
    try:
        return shlex.split(line, comments=True)
    except ValueError:
        return None


def as_command(words: Sequence[str]) -> list[str]:
    """What is to be run: `help X` is `X --help`."""
    if words[0] == "help":
        return [*words[1:2], "--help"]
    return list(words)


def is_meant(words: Sequence[str]) -> bool:
    """Whether somebody who says `quit` does not mean to leave the shell alone."""
    if words[0] != "quit":
        return True
    question = "this ends the daemon and all its processes; `exit` leaves the shell. Go on?"
    try:
        return click.confirm(question)
    except click.Abort:
        click.echo()
        return False


def completions(program: click.Group, given: Sequence[str], line: str) -> list[str]:
    """What the last word of a line may become."""
    from click.shell_completion import ShellComplete

    words = split(line)
    if words is None:
        return []
    typed = words.pop() if words and not line[-1:].isspace() else ""
    finder = ShellComplete(program, {}, "sysupctl", "")
    found = [item.value for item in finder.get_completions([*given, *words], typed)]
    if not words:
        found += [word for word in ("help", LEAVE[0]) if word.startswith(typed)]
    # what a client named a watcher may command a terminal
    return [word for word in found if word.isprintable()]


def complete_lines(program: click.Group, given: Sequence[str]) -> None:
    """Have the Tab key complete."""
    import readline

    found: list[str] = []

    def complete(typed: str, number: int) -> str | None:
        nonlocal found
        if number == 0:
            line = readline.get_line_buffer()[: readline.get_endidx()]
            found = [f"{shlex.quote(word)} " for word in completions(program, given, line)]
        return found[number] if number < len(found) else None

    readline.set_completer(complete)
    readline.set_completer_delims(DELIMITERS)
    readline.parse_and_bind("tab: complete")
