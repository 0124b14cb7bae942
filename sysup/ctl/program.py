"""sysupctl as a whole: its commands in their order, each loaded when somebody wants it.

Each asks the daemon of one app one thing and shows the reply. `session` has what they share,
`render` what they print.
"""

from __future__ import annotations

from contextlib import suppress

import click

from sysup import __version__
from sysup.client import CallError
from sysup.ctl.session import Group, common_options, run, session

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


@click.group(
    cls=Group,
    invoke_without_command=True,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"]},
)
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


cli.add_later("sysup.ctl.look", "status", "show", "list", "numprocesses", "numwatchers")
cli.add_later("sysup.ctl.look", "stats", "dstats", "listsockets", "listen")
cli.add_later("sysup.ctl.options", "options", "get", "globaloptions", "set", "add")
cli.add_later("sysup.ctl.options", "reloadconfig", "diff")
cli.add_later("sysup.ctl.waiting", "wait")
cli.add_later("sysup.ctl.top", "top")
cli.add_later("sysup.ctl.output", "tail")
cli.add_later("sysup.ctl.logs", "logs")
cli.add_later("sysup.ctl.change", "start", "stop", "restart", "reload", "incr", "decr")
cli.add_later("sysup.ctl.change", "signal", "send", "kill", "rm", "upgrade", "quit")
cli.add_later("sysup.ctl.shell", "shell")


@cli.command()
def version() -> None:
    """Print the versions of sysupctl and of the daemon."""
    here = session()
    versions = {"sysupctl": __version__}
    with suppress(CallError):  # none runs, or it is Circus's and doesn't tell
        versions["sysupd"] = here.call("version")["version"]
    here.show(versions, [f"{program} {number}" for program, number in versions.items()])


cli.add_later("sysup.ctl.keygen", "keygen", "authorize")


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a script that makes the shell complete commands, options and watchers.

    \b
    bash, in ~/.bashrc:                   eval "$(sysupctl completion bash)"
    zsh, in ~/.zshrc, after compinit:     eval "$(sysupctl completion zsh)"
    fish, in ~/.config/fish/config.fish:  sysupctl completion fish | source
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None  # Choice lets only the three that click knows pass
    script = kind(cli, {}, "sysupctl", "_SYSUPCTL_COMPLETE").source()
    # Each line is TYPE,TEXT; older versions of click have fish split TEXT at its commas, too.
    click.echo(script.replace('string split "," ', 'string split --max 1 "," '))
