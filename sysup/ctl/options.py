"""sysupctl's commands about options: what they are, how they differ, how they change."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

import click

from sysup.client import CallError
from sysup.ctl import render
from sysup.ctl.session import (
    FAILED,
    OK,
    Command,
    complete_option,
    is_well,
    name_argument,
    session,
    wait_option,
)
from sysup.ctl.values import converted

PASS_ON = {"ignore_unknown_options": True}
"""Lets negative numbers be arguments."""

save_option = click.option(
    "--save", is_flag=True, help="Have it outlast the daemon, by a drop-in beside the config."
)


def saved(reply: Mapping[str, Any]) -> list[str]:
    """Where a change was saved, if it was."""
    return [f"saved in {render.clean(reply['saved'])}"] if "saved" in reply else []


def came_up(name: str, info: Mapping[str, Any], reply: Mapping[str, Any]) -> int:
    """Say what became of a watcher that was to be up; if nothing of it is, how it is instead."""
    if not (info.get("started") or info.get("kept")):
        watchers = session().call("status", name=name).get("watchers", {})
        if not all(is_well(watcher, named=True) for watcher in watchers.values()):
            lines = render.status(watchers, processes=False, width=session().width)
            session().show(reply, [*lines, *saved(reply)])
            return FAILED
    session().show(reply, [render.outcome(name, info), *saved(reply)])
    return OK


@click.command(cls=Command)
@name_argument
def options(name: str) -> None:
    """Print all options of a watcher."""
    reply = session().call("options", name=name)
    session().show(reply, render.key_values(reply["options"]))


@click.command(cls=Command)
@name_argument
@click.argument("keys", metavar="KEY...", nargs=-1, required=True, shell_complete=complete_option)
def get(name: str, keys: tuple[str, ...]) -> None:
    """Print some options of a watcher."""
    reply = session().call("get", name=name, keys=list(keys))
    session().show(reply, render.key_values(reply["options"]))


@click.command(cls=Command)
@click.argument("option", required=False)
def globaloptions(option: str | None) -> None:
    """Print the daemon's own options."""
    reply = session().call("globaloptions", option=option)
    session().show(reply, render.key_values(reply["options"]))


@click.command("set", cls=Command, context_settings=PASS_ON)
@name_argument
@click.argument(
    "pairs",
    metavar="KEY VALUE [KEY VALUE]...",
    nargs=-1,
    required=True,
    shell_complete=complete_option,
)
@save_option
@wait_option
def set_(name: str, pairs: tuple[str, ...], save: bool, wait: bool) -> None:
    """Change options of a watcher, until the daemon ends or, with --save, for good.

    "" as VALUE unsets what may be unset. Where processes with the new options fail, the old ones
    run on, and what was set stays: set it back, or see to the cause.

    Several hooks can be set at once: set web hooks before_start:app.check,after_stop:app.clean
    """
    if len(pairs) % 2:
        raise click.UsageError(f"no value for {pairs[-1]}")
    present = session().call("options", name=name)["options"]
    values = converted(zip(pairs[::2], pairs[1::2], strict=True), present)
    reply = session().call(
        "set", name=name, options=values, save=save or None, waiting=wait or None
    )
    session().show(reply, [*render.impacts(reply.get("impacts", {})), *saved(reply)])


@click.command(cls=Command, context_settings={"allow_interspersed_args": False})
@click.option("--start", is_flag=True, help="Start it at once.")
@click.option("--option", "given", metavar="KEY=VALUE", multiple=True, help="An option of it.")
@save_option
@wait_option
@click.argument("name")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def add(
    start: bool,
    given: tuple[str, ...],
    save: bool,
    wait: bool,
    name: str,
    command: tuple[str, ...],
) -> int:
    """Make a watcher, until the daemon ends or, with --save, for good. All options stand before
    NAME.

    COMMAND is the words of the command line, or all of it as one word.
    """
    pairs = []
    for text in given:
        key, sign, value = text.partition("=")
        if not sign:
            raise click.BadParameter(f"{text} is not KEY=VALUE", param_hint="--option")
        pairs.append((key, value))
    reply = session().call(
        "add",
        name=name,
        cmd=command[0] if len(command) == 1 else shlex.join(command),
        options=converted(pairs, {}),
        start=start,
        save=save or None,
        waiting=(start and wait) or None,
    )
    if "started" in reply:
        return came_up(name, reply, reply)
    outcome = "ok" if start else f"{render.clean(name)}: added, and stopped until it is started"
    session().show(reply, [outcome, *saved(reply)])
    return OK


@click.command(cls=Command)
@click.option("--dry-run", is_flag=True, help="Only tell what would be done.")
@wait_option
def reloadconfig(dry_run: bool, wait: bool) -> None:
    """Read the config files again, and do what differs from what they said before.

    A watcher or socket whose section is wrong stays as it is (exit code 1); all else is done.
    Processes that are replaced are waited for, and new ones that fail are told (exit code 1).
    What was changed at run time, which `diff` shows, stays as it is.
    """
    told = {"dry_run": True} if dry_run else {"waiting": wait or None}
    here = session()
    try:
        reply = here.call("reloadconfig", **told)
    except CallError as error:
        if "added" in error.reply and not (here.json or here.prettify):
            here.show(error.reply, render.changes(error.reply))
        raise
    here.show(reply, render.changes(reply) if "added" in reply else "ok")


@click.command(cls=Command)
def diff() -> None:
    """Show how what runs differs from the config files, and what of that is saved."""
    reply = session().call("diff")
    session().show(reply, render.differences(reply))
