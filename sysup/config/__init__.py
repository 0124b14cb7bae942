"""Options: one declaration each; INI text in, frozen dataclasses out.

    config = parse("/etc/sysup/app.ini", source=files, environ=os.environ)
    config.watchers["web"].numprocesses

Pure: files come through `Source`, variables through a mapping, and users, groups and sockets
stay names. Way in: specs.py has every option; declare.py says what a declaration carries;
kinds.py and values.py are the types of value; ini.py reads text, load.py makes specs of it;
live.py reads, changes and compares the specs of a running daemon; child.py says what a process
is started with.
"""

from sysup.config.child import Identity, command, environment, search_path
from sysup.config.declare import Impact
from sysup.config.ini import ConfigError, Level, Place, Problem, Source
from sysup.config.live import (
    Changes,
    Delta,
    add,
    changed,
    diff,
    difference,
    discreet,
    get,
    impact,
    keep,
    options,
    unfollowed,
    with_option,
    with_options,
)
from sysup.config.load import Config, Reasons, parse, section
from sysup.config.rules import named_sockets
from sysup.config.saved import amended, saved_options, saved_path
from sysup.config.specs import (
    DaemonSpec,
    FlappingSpec,
    PluginSpec,
    Rlimit,
    SocketSpec,
    StreamSpec,
    WatcherSpec,
)
from sysup.config.values import (
    CAPABILITIES,
    RLIMITS,
    Restart,
    Role,
    StopStage,
    signal_name,
    signal_number,
)

__all__ = [
    "CAPABILITIES",
    "RLIMITS",
    "Changes",
    "Config",
    "ConfigError",
    "DaemonSpec",
    "Delta",
    "FlappingSpec",
    "Identity",
    "Impact",
    "Level",
    "Place",
    "PluginSpec",
    "Problem",
    "Reasons",
    "Restart",
    "Rlimit",
    "Role",
    "SocketSpec",
    "Source",
    "StopStage",
    "StreamSpec",
    "WatcherSpec",
    "add",
    "amended",
    "changed",
    "command",
    "diff",
    "difference",
    "discreet",
    "environment",
    "get",
    "impact",
    "keep",
    "named_sockets",
    "options",
    "parse",
    "saved_options",
    "saved_path",
    "search_path",
    "section",
    "signal_name",
    "signal_number",
    "unfollowed",
    "with_option",
    "with_options",
]
