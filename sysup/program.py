"""`sysupd FILE`: run an app in the foreground."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import sys

import click

from sysup import __version__
from sysup.config import Config, ConfigError, Level
from sysup.daemon import CONFIG, Daemon
from sysup.estate import HANDED_OVER, Inheritance, inherited_fds
from sysup.ledger import Ledger
from sysup.log import Log, tell
from sysup.pace import Loop
from sysup.protocol import SysupError
from sysup.source import Files, load, load_again
from sysup.systemd import Notifier, listen_fds
from sysup.upgrade import answer_self_test

EX_CONFIG = 78
"""sysexits.h: something is wrong with the configuration."""
STARTED = 10.0
"""Seconds after which most of what is there will be for long."""
THRESHOLDS = gc.get_threshold()
YOUNG_ALONE = (*THRESHOLDS[:2], 1 << 30)
"""As Python has them, and so that the oldest generation is never looked at (gc.set_threshold)."""
PID_DIGITS = 20
PIDFILE_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("file", type=click.Path())
@click.option("--check", is_flag=True, help="Tell everything that is wrong with FILE, and end.")
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error", "critical"], case_sensitive=False),
    help="The least that is logged (info).",
)
@click.option("--log-output", help="A file, or - for standard error.")
@click.option("--self-test", is_flag=True, hidden=True)
@click.option("--pidfile", help="Write the daemon's process id there.")
@click.version_option(__version__, prog_name="sysupd")
def main(
    file: str,
    check: bool,
    log_level: str | None,
    log_output: str | None,
    self_test: bool,
    pidfile: str | None,
) -> None:
    """Run the processes that FILE describes, until SIGTERM.

    \b
    Signals: TERM, INT, QUIT  stop all and end; once more: without waiting
             HUP              read FILE again and do what differs
             USR1             reopen log files
             USR2             become the program that is installed now
    Exit status: 0 ended as told, 1 cannot run, 2 wrong usage, 78 FILE is wrong;
    with on_give_up = exit, that of the process that was given up.
    """
    occupy_standard_descriptors()
    notifier = Notifier()
    try:
        fds = {**listen_fds(notifier.environ()), **inherited_fds(os.environ)}
        os.environ.pop(HANDED_OVER, None)
        inherited = Inheritance(fds)
        files, loaded = load_or_go_on(file, inherited.ledger)
        if self_test:
            click.echo(answer_self_test(loaded, inherited.ledger))
            return
    except ConfigError as error:
        for problem in error.problems:
            is_warning = problem.level is Level.WARNING
            tell(problem.labelled(), logging.WARNING if is_warning else logging.ERROR)
        sys.exit(EX_CONFIG)
    except SysupError as error:
        tell(f"error: {error}")
        sys.exit(1)
    if check:
        check_out(file, loaded)
        return
    options = loaded.daemon
    level = log_level or ("debug" if options.debug else options.loglevel)
    try:
        own_log = Log(level, log_output or options.logoutput, loaded.app)
        pidfile = pidfile or options.pidfile
        keep_for_good(in_haste=inherited.ledger is not None)
        with asyncio.Runner(loop_factory=Loop) as runner:
            sys.exit(runner.run(run(loaded, own_log, pidfile, files, inherited, notifier)))
    except SysupError as error:
        tell(f"error: {error}")
        sys.exit(1)


def check_out(file: str, loaded: Config) -> None:
    """Tell what is strange about a config that can be used, and what would fail on this machine."""
    from sysup.foresight import foreseen

    for problem in (*loaded.problems, *foreseen(loaded, os.environ)):
        tell(problem.labelled(), logging.WARNING)
    number = len(loaded.watchers)
    if not number:
        tell(
            f"{loaded.path}: warning: it has no [watcher:NAME], so nothing is run", logging.WARNING
        )
    click.echo(f"{file}: ok, {number} watcher{'' if number == 1 else 's'}")


def keep_for_good(*, in_haste: bool = False) -> None:
    """Have the garbage collector not look at what is there now: modules and the config.

    It looks at all else in one go, which the loop waits for. `in_haste` the little garbage that
    there is by now is kept, too.
    """
    if not in_haste:
        gc.collect()
    gc.freeze()


def collect_young_alone() -> None:
    """Have the garbage collector look at nothing but what was made lately.

    Most of what is made while an app starts, or is taken over, is for long: to look at all of it
    again and again takes time in vain. But what a request leaves goes at once.
    """
    gc.set_threshold(*YOUNG_ALONE)
    gc.enable()


def collect_from_now() -> None:
    """The app has started, or was taken over: have the collector look at what comes after that.

    What is kept of a process makes no cycles, and goes without it. So of what there is only the
    young is looked at once more, which may be garbage: all of it would take tens of milliseconds.
    """
    gc.collect(1)
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)


def occupy_standard_descriptors() -> None:
    """Open what is closed of 0, 1 and 2, lest something of ours be taken for a standard stream."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(fd)


def load_or_go_on(file: str, ledger: Ledger | None) -> tuple[Files, Config]:
    """The config: as the daemon before had read it, else of the file.

    Raises ConfigError with all that is wrong.
    """
    if record := ledger.table.get(CONFIG) if ledger else None:
        return load_again(file, record)
    files = Files()
    return files, load(file, files)


async def run(
    loaded: Config,
    own_log: Log,
    pidfile: str | None,
    files: Files,
    inherited: Inheritance,
    notifier: Notifier,
) -> int:
    """Run an app to its end; returns the daemon's exit status."""
    loop = asyncio.get_running_loop()
    daemon = Daemon(loaded, loop, own_log, files, inherited, notifier)
    collect_young_alone()
    loop.call_later(STARTED, collect_from_now)
    if pidfile:
        write_pidfile(pidfile)
    try:
        return await daemon.run()
    finally:
        if pidfile:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(pidfile)


def write_pidfile(path: str) -> None:
    """Say who we are. Raises SysupError when another living process is named there already.

    No link is followed: in a directory that others may write it could lead to any file; nor is
    anybody waited for who holds a lease on it (fcntl(2)). In a container the file that an earlier
    run left may well name our own pid.
    """
    try:
        fd = os.open(path, PIDFILE_FLAGS, 0o644)
        with open(fd, "r+", encoding="ascii", errors="replace") as file:
            holder = file.read(PID_DIGITS).strip()
            alive = holder.isdecimal() and os.path.exists(f"/proc/{holder}")
            if alive and int(holder) != os.getpid():
                raise SysupError(f"cannot write {path}: process {holder} is named there and alive")
            file.seek(0)
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
    except OSError as error:
        raise SysupError(f"cannot write {path}: {error.strerror or error}") from None
