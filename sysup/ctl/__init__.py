"""sysupctl: the commands.

Each asks the daemon of one app one thing and shows the reply. Commands that change something
wait until it is done. `session` has what they share, `render` what they print.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from typing import Any

import click

from sysup import __version__
from sysup.client import CallError, ConnectionLost
from sysup.ctl import options, render
from sysup.ctl.report import report
from sysup.ctl.session import (
    FAILED,
    NOT_RUNNING,
    OK,
    UNREACHABLE,
    Group,
    Session,
    common_options,
    complete_signal,
    complete_watcher,
    is_well,
    maybe_name_argument,
    name_argument,
    run,
    session,
    wait_option,
)
from sysup.protocol import MAX_MESSAGE, event_name, split_topic

TAKEN_OVER_WITHIN = 30.0
"""Seconds within which a new daemon has to answer."""
EPILOG = """\b
Exit codes:
  0  it is done; status: all that is wanted runs
  1  refused, or failed
  2  wrong usage
  3  status: something that is wanted does not run; wait: nor in time
  4  the daemon cannot be reached or did not answer in time; status: no such watcher

Without -a or --endpoint it is the endpoint in SYSUPCTL_ENDPOINT or CIRCUSCTL_ENDPOINT, else the
only running app in SYSUP_RUNTIME_DIR, or in /run/sysup and the user's own runtime directory.
Without --key and --server-key they are the files in SYSUPCTL_KEY and SYSUPCTL_SERVER_KEY.
"""

match_option = click.option(
    "--match",
    type=click.Choice(["glob", "regex", "simple"]),
    help="How NAME means watchers: several by a glob (the default) or regex, or one.",
)


@click.group(cls=Group, invoke_without_command=True, epilog=EPILOG)
@click.version_option(__version__, prog_name="sysupctl", message="%(prog)s %(version)s")
@click.pass_context
def cli(context: click.Context) -> None:
    """Steer sysupd, the process supervisor."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


cli.params += common_options()


def main(args: list[str] | None = None) -> int:
    """Run sysupctl; returns its exit code."""
    return run(cli, args)


# ---- what is -----------------------------------------------------------------------------


@cli.command()
@maybe_name_argument
@click.option("--processes", is_flag=True, help="Show each process, too.")
def status(name: str | None, processes: bool) -> int:
    """Show how the watchers, or one and its processes, are.

    Exits with 0 if all that is wanted runs, 3 if not, 4 if that can't be told.
    """
    here = session()
    if sessions := here.several():
        from sysup.ctl import several

        return several.status(here, sessions, name, processes)
    try:
        reply = here.call("status", name=name)
    except CallError as error:
        here.explain(error)
        return UNREACHABLE
    watchers = reply.get("watchers")
    if watchers is not None:
        used = None if here.json or here.prettify else usage(here, name and next(iter(watchers)))
        here.show(reply, render.status(watchers, processes or name is not None, used))
        if changed := reply.get("changed_files"):
            click.echo(f"hint: {render.changed_files(changed)}", err=True)
        well = all(is_well(watcher, named=name is not None) for watcher in watchers.values())
    else:  # a daemon of Circus
        states = {name: reply["status"]} if name else reply["statuses"]
        here.show(reply, render.key_values(states))
        well = all(state == "active" for state in states.values())
    return OK if well else NOT_RUNNING


def usage(here: Session, name: str | None) -> render.Used | None:
    """What processes take; None where that can't be told."""
    try:
        reply = here.call("stats", name=name)
    except CallError:
        return None
    return render.usages(reply["infos"] if name is None else {name: reply["info"]})


@cli.command()
@name_argument
def show(name: str) -> None:
    """Show all that is known of a watcher."""
    reply = session().call("show", name=name)
    session().show(reply, report(reply["watcher"]))


@cli.command("list")
@maybe_name_argument
def list_(name: str | None) -> int:
    """Print the names of the watchers, or the pids of one."""
    here = session()
    if sessions := here.several():
        from sysup.ctl import several

        return several.names(here, sessions, name)
    reply = here.call("list", name=name)
    here.show(reply, map(render.clean, reply["watchers" if name is None else "pids"]))
    return OK


@cli.command()
@maybe_name_argument
def numprocesses(name: str | None) -> None:
    """Print how many processes there are, or a watcher has."""
    reply = session().call("numprocesses", name=name)
    session().show(reply, str(reply["numprocesses"]))


@cli.command()
def numwatchers() -> None:
    """Print how many watchers there are."""
    reply = session().call("numwatchers")
    session().show(reply, str(reply["numwatchers"]))


@cli.command()
@maybe_name_argument
@click.argument("pid", required=False, type=int)
@click.option("--extended", is_flag=True, help="All that is known, as JSON shows it.")
def stats(name: str | None, pid: int | None, extended: bool) -> int:
    """Show memory and CPU time of processes."""
    here = session()
    if pid is None and (sessions := here.several()):
        from sysup.ctl import several

        return several.stats(here, sessions, name)
    reply = session().call("stats", name=name, process=pid, extended=extended or None)
    if name is None:
        infos = reply["infos"]
    elif pid is None:
        infos = {name: reply["info"]}
    else:
        infos = {name: {str(pid): reply["info"]}}
    here.show(reply, render.stats(infos))
    return OK


@cli.command()
def dstats() -> None:
    """Show memory and CPU time of the daemon itself, and how long it was blocked at most."""
    reply = session().call("dstats")
    info = reply["info"]
    lines = render.stats({"daemon": {str(info.get("pid", 0)): info}})
    session().show(reply, [*lines, *render.blocked(info)])


@cli.command()
def listsockets() -> None:
    """Show the listening sockets that watchers are given."""
    reply = session().call("listsockets")
    session().show(reply, render.sockets(reply["sockets"]))


@cli.command()
@click.argument("topics", metavar="[TOPIC]...", nargs=-1, shell_complete=complete_watcher)
def listen(topics: tuple[str, ...]) -> None:
    """Print events as they happen, until Ctrl-C.

    A TOPIC is the beginning of the topics wanted, as watcher.web.reap, or the name of a watcher.
    With --json each event is a line of JSON.
    """
    here = session()
    with here.client().subscribe([_topic(word) for word in topics] or ["watcher."]) as subscription:
        try:
            for topic, payload in subscription:
                watcher, event = split_topic(topic.encode())
                if not isinstance(payload, dict):
                    payload = {"payload": payload}
                line = {"topic": topic, "watcher": watcher, "event": event, **payload}
                here.show(line, render.event(watcher, event, payload))
        except KeyboardInterrupt:
            return


def _topic(word: str) -> str:
    """The beginning of topics that a word means: Circus's syntax, or a watcher's name."""
    if word.startswith(("watcher.", "stat.")):
        return word
    return f"watcher.{event_name(word)}."


for _command in options.COMMANDS:
    cli.add_command(_command)
cli.add_later(
    wait="sysup.ctl.waiting:wait",
    top="sysup.ctl.top:top",
    tail="sysup.ctl.output:tail",
    logs="sysup.ctl.logs:logs",
)


# ---- what is to be -----------------------------------------------------------------------


def _change(name: str | None, done: str, command: str, wait: bool, **properties: Any) -> int:
    """Have watchers changed as a whole, and say what became of it: `done`, if that is all."""
    here = session()
    reply = here.call(command, name=name, waiting=wait or None, **properties)
    if not wait:
        here.show(reply, "ok")
    elif name is None or not reply.get("info"):
        here.show(reply, f"{render.clean(name)}: {done}" if name else done)
    elif any(reply["info"].values()):
        here.show(reply, render.outcome(name, reply["info"]))
    else:
        return _nothing_runs(name, reply)
    return OK


def _nothing_runs(name: str, reply: dict[str, Any]) -> int:
    """A watcher was to be up, and no process is there: show how it is instead."""
    watchers = session().call("status", name=name).get("watchers", {})
    if all(is_well(watcher, named=True) for watcher in watchers.values()):
        session().show(reply, f"{render.clean(name)}: nothing to do")
        return OK
    session().show(reply, render.status(watchers, processes=False))
    return FAILED


@cli.command()
@maybe_name_argument
@match_option
@wait_option
def start(name: str | None, match: str | None, wait: bool) -> int:
    """Start watchers: all that start by themselves, or those that NAME means."""
    return _change(name, "started", "start", wait, match=match)


@cli.command()
@maybe_name_argument
@match_option
@wait_option
def stop(name: str | None, match: str | None, wait: bool) -> int:
    """Stop watchers: all, or those that NAME means."""
    return _change(name, "stopped", "stop", wait, match=match)


@cli.command()
@maybe_name_argument
@match_option
@wait_option
def restart(name: str | None, match: str | None, wait: bool) -> int:
    """Stop watchers and start them again."""
    return _change(name, "restarted", "restart", wait, match=match)


@cli.command("reload")
@maybe_name_argument
@click.option("--sequential", is_flag=True, help="One process after the other.")
@click.option("--terminate", is_flag=True, help="End the old ones before there are new ones.")
@wait_option
def reload_(name: str | None, sequential: bool, terminate: bool, wait: bool) -> int:
    """Replace processes by new ones, without a gap."""
    graceful = False if terminate else None
    return _change(
        name, "reloaded", "reload", wait, sequential=sequential or None, graceful=graceful
    )


def _scale(command: str, name: str, number: int, save: bool, wait: bool) -> None:
    reply = session().call(command, name=name, nb=number, save=save or None, waiting=wait or None)
    outcome = render.scaled(name, reply) if "numprocesses" in reply else "ok"
    session().show(reply, [outcome, *options.saved(reply)])


@cli.command()
@name_argument
@click.argument("number", metavar="[N]", type=click.IntRange(min=0), default=1)
@options.save_option
@wait_option
def incr(name: str, number: int, save: bool, wait: bool) -> None:
    """Have N more processes (1)."""
    _scale("incr", name, number, save, wait)


@cli.command()
@name_argument
@click.argument("number", metavar="[N]", type=click.IntRange(min=0), default=1)
@options.save_option
@wait_option
def decr(name: str, number: int, save: bool, wait: bool) -> None:
    """Have N fewer processes (1)."""
    _scale("decr", name, number, save, wait)


def _signal(text: str) -> int | str:
    """A signal as the wire has it: a number, or a name."""
    return int(text) if text.isdecimal() else text.upper()


@cli.command("signal")
@name_argument
@click.argument(
    "pid_and_signal",
    metavar="[PID] SIGNAL",
    nargs=-1,
    required=True,
    shell_complete=complete_signal,
)
@click.option("--children", is_flag=True, help="To the children, not the process.")
@click.option("--recursive", is_flag=True, help="To the process and all its descendants.")
def signal_(name: str, pid_and_signal: tuple[str, ...], children: bool, recursive: bool) -> None:
    """Send a signal to the processes of a watcher, or to one."""
    *pids, signum = pid_and_signal
    if len(pids) > 1 or not all(pid.isdecimal() for pid in pids):
        raise click.UsageError("the arguments are NAME [PID] SIGNAL")
    reply = session().call(
        "signal",
        name=name,
        pid=int(pids[0]) if pids else None,
        signum=_signal(signum),
        children=children or None,
        recursive=recursive or None,
    )
    session().show(reply, "ok")


@cli.command()
@name_argument
@click.argument("words", metavar="TEXT...", nargs=-1)
@click.option("--wid", metavar="N", type=int, help="To the process in this slot alone.")
@click.option("--pid", metavar="PID", type=int, help="To this process alone.")
@click.option("--no-newline", is_flag=True, help="Don't end TEXT with a newline.")
@click.option("--eof", is_flag=True, help="End the input after it; TEXT may be left out.")
@wait_option
def send(
    name: str,
    words: tuple[str, ...],
    wid: int | None,
    pid: int | None,
    no_newline: bool,
    eof: bool,
    wait: bool,
) -> None:
    """Write TEXT to the standard input of a watcher's processes, if that is a pipe.

    It goes to all that run, or to none, and ends with a newline. TEXT - is what sysupctl reads
    from its own input. Words that begin with - stand after --. A terminal (pty = yes) takes
    lines of at most 4095 bytes.
    """
    if not words and not eof:
        raise click.UsageError("there is no TEXT")
    # As many bytes as make the request too long, if there are so many, which is then told.
    data = sys.stdin.buffer.read(MAX_MESSAGE) if words == ("-",) else os.fsencode(" ".join(words))
    reply = session().call(
        "send",
        name=name,
        text=data.decode("utf-8", "surrogateescape"),
        wid=wid,
        pid=pid,
        newline=False if no_newline or not words else None,
        eof=eof or None,
        waiting=wait or None,
    )
    session().show(reply, render.sent(name, reply))


@cli.command()
@name_argument
@click.argument("pid", required=False, type=int)
@click.option("--signum", metavar="SIGNAL", shell_complete=complete_signal, help="Ask by this.")
@click.option(
    "--graceful_timeout",
    "--graceful-timeout",
    metavar="SECONDS",
    type=click.FloatRange(min=0),
    help="SIGKILL follows after so long.",
)
@wait_option
def kill(
    name: str, pid: int | None, signum: str | None, graceful_timeout: float | None, wait: bool
) -> None:
    """End the processes of a watcher, or one; new ones take their places."""
    reply = session().call(
        "kill",
        name=name,
        pid=pid,
        signum=None if signum is None else _signal(signum),
        graceful_timeout=graceful_timeout,
        waiting=wait or None,
    )
    session().show(reply, "ok")


@cli.command()
@name_argument
@click.option("--nostop", is_flag=True, help="Leave its processes running, and forget them.")
@wait_option
def rm(name: str, nostop: bool, wait: bool) -> int:
    """Stop a watcher and remove it."""
    return _change(name, "removed", "rm", wait, nostop=nostop or None)


@cli.command()
def upgrade() -> None:
    """Have the daemon become the sysupd that is installed now; all processes run on."""
    here = session()
    reply = here.call("upgrade", waiting=True)
    until = time.monotonic() + TAKEN_OVER_WITHIN
    while time.monotonic() < until:
        with suppress(CallError):  # for a moment nobody is there
            if here.call("version")["takeovers"] > reply["takeovers"]:
                break
        time.sleep(0.02)
    else:
        raise CallError("the new sysupd does not answer: see the daemon's log")
    here.show(reply, f"sysupd {reply['from']} is replaced by {reply['to']}")


@cli.command("quit")
@wait_option
def quit_(wait: bool) -> None:
    """Stop everything, and end the daemon."""
    try:
        reply = session().call("quit", waiting=wait or None)
    except ConnectionLost:  # its last words may be lost, but it is gone
        reply = {"status": "ok"}
    session().show(reply, "stopped" if wait else "ok")


# ---- the program itself ------------------------------------------------------------------

cli.add_later(shell="sysup.ctl.shell:shell")


@cli.command()
def version() -> None:
    """Print the versions of sysupctl and of the daemon."""
    here = session()
    versions = {"sysupctl": __version__}
    with suppress(CallError):  # none runs, or it is Circus's and doesn't tell
        versions["sysupd"] = here.call("version")["version"]
    here.show(versions, [f"{program} {number}" for program, number in versions.items()])


cli.add_later(keygen="sysup.ctl.keygen:keygen", authorize="sysup.ctl.keygen:authorize")


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a script that makes the shell complete commands, options and watchers.

    For bash, in ~/.bashrc: eval "$(sysupctl completion bash)"
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None  # Choice lets only the three that click knows pass
    click.echo(kind(cli, {}, "sysupctl", "_SYSUPCTL_COMPLETE").source())
