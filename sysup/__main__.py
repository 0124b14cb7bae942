"""`sysupd FILE`: run an app in the foreground."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import logging.handlers
import os
import sys
from typing import ClassVar

import click

from sysup import __version__
from sysup.config import Config, ConfigError
from sysup.daemon import Daemon, load
from sysup.protocol import SysupError

EX_CONFIG = 78
"""sysexits.h: something is wrong with the configuration."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("file", type=click.Path())
@click.option("--check", is_flag=True, help="Tell everything that is wrong with FILE, and end.")
@click.option("--log-level", help="debug, info, warning, error or critical.")
@click.option("--log-output", help="A file, or - for standard error.")
@click.option("--pidfile", help="Write the daemon's process id there.")
@click.version_option(__version__, prog_name="sysupd")
def main(
    file: str, check: bool, log_level: str | None, log_output: str | None, pidfile: str | None
) -> None:
    """Run the processes that FILE describes, until SIGTERM.

    \b
    Signals: TERM, INT, QUIT  stop all and end; once more: without waiting
             HUP              read FILE again and do what differs
             USR1             reopen log files
    Exit status: 0 ended as told, 1 cannot run, 2 wrong usage, 78 FILE is wrong;
    with on_give_up = exit, that of the process that was given up.
    """
    try:
        loaded = load(file)
    except ConfigError as error:
        for problem in error.problems:
            click.secho(
                str(problem), fg="yellow" if problem.level == "warning" else "red", err=True
            )
        sys.exit(EX_CONFIG)
    if check:
        for problem in loaded.problems:
            click.secho(str(problem), fg="yellow", err=True)
        click.echo(f"{file}: ok, {len(loaded.watchers)} watchers")
        return
    options = loaded.daemon
    set_up_log(log_level or options.loglevel or "info", log_output or options.logoutput or "-")
    try:
        sys.exit(asyncio.run(run(loaded, pidfile or options.pidfile)))
    except SysupError as error:
        click.secho(f"error: {error}", fg="red", err=True)
        sys.exit(1)


async def run(loaded: Config, pidfile: str | None) -> int:
    """Run an app to its end; returns the daemon's exit status."""
    daemon = Daemon(loaded, asyncio.get_running_loop())
    if pidfile:
        write_pidfile(pidfile)
    try:
        return await daemon.run()
    finally:
        if pidfile:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(pidfile)


def write_pidfile(path: str) -> None:
    """Say who we are. Raises SysupError when a living process is named there already."""
    try:
        with open(path, "a+", encoding="ascii") as file:
            file.seek(0)
            holder = file.read().strip()
            if holder.isdigit() and os.path.exists(f"/proc/{holder}"):
                raise SysupError(f"cannot write {path}: process {holder} is named there and alive")
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
    except OSError as error:
        raise SysupError(f"cannot write {path}: {error.strerror}") from None


class Formatter(logging.Formatter):
    """`12:00:01 warning web.3: flapping`, the level in colour on a terminal."""

    COLOURS: ClassVar[dict[str, str]] = {
        "WARNING": "yellow",
        "ERROR": "red",
        "CRITICAL": "red",
        "DEBUG": "bright_black",
    }

    def __init__(self, coloured: bool) -> None:
        super().__init__("%(asctime)s %(level)s %(message)s", "%H:%M:%S")
        self._coloured = coloured

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        level = record.levelname.lower()
        colour = self.COLOURS.get(record.levelname)
        record.level = click.style(level, fg=colour) if self._coloured and colour else level
        return super().format(record)


def set_up_log(level: str, output: str) -> None:
    """Send the daemon's own log to standard error (`-`) or a file that may be rotated."""
    handler: logging.Handler
    if output in ("-", "stdout"):
        handler = logging.StreamHandler()
        handler.setFormatter(Formatter(sys.stderr.isatty() and "NO_COLOR" not in os.environ))
    else:
        try:
            handler = logging.handlers.WatchedFileHandler(output)
        except OSError as error:
            raise SysupError(f"cannot log to {output}: {error.strerror}") from None
        handler.setFormatter(Formatter(False))
    logging.basicConfig(level=level.upper(), handlers=[handler])


if __name__ == "__main__":
    main()
