"""Every option, declared once.

A spec is a frozen dataclass: what a section of a file says, with all defaults filled in. To add
an option, add a field here; nothing else. `Later(...)` marks what is understood but has no
machinery so far: take it away when it has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sysup.config.declare import Family, Impact, declared, group, option
from sysup.config.kinds import (
    Arguments,
    Choice,
    Flag,
    Later,
    Octal,
    Part,
    Seconds,
    Size,
    Text,
    Variables,
    Whole,
    Words,
)
from sysup.config.values import (
    RLIMITS,
    SIGNALS,
    Account,
    Capability,
    Codes,
    Cpus,
    Endpoint,
    Limit,
    Processes,
    Ready,
    Respawn,
    Restart,
    Role,
    Stages,
    StopStage,
)

FLAG = Flag()
TEXT = Text()
PATH = Text(r"(?s).+", "a path")
NAME = Text(r"\S+", "a name")
NAMES = Words(NAME)
FD_NAMES = Words(Text(r"[^\s:]{1,255}", "name without a colon"))
PYTHON_NAME = Text(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", "a dotted Python name")
PORT = Whole(0, 65535)

RELOAD = Impact.RELOAD
LIMITS = Impact.LIMITS


@dataclass(frozen=True, slots=True)
class FlappingSpec:
    """When a process counts as caught in a crash loop, and what is done then."""

    active: bool = option(FLAG, True, "whether crash loops are looked for")
    attempts: int = option(Whole(1), 2, "deaths within `flapping.window` that make a crash loop")
    window: float = option(Seconds(), 1.0, "the time in which those deaths are counted")
    retry_in: float = option(Seconds(), 7.0, "wait before the first retry; doubled at each")
    retry_max: float = option(Seconds(), 300.0, "the longest wait before a retry")
    max_retry: int | None = option(
        Whole(-1), None, "retries before giving up (-1: never); default: `max_retry`"
    )
    scope: str = option(
        Choice("slot", "watcher"), "slot", "what waits: the one process, or the whole watcher"
    )
    on_give_up: str = option(
        Choice("keep", "exit"),
        "keep",
        "after giving up: run on without the process, or end the daemon with its exit code",
        name="on_give_up",
    )


@dataclass(frozen=True, slots=True)
class Rlimit:
    """A limit on a resource; None is infinity."""

    name: str
    soft: int | None
    hard: int | None


@dataclass(frozen=True, slots=True)
class StreamSpec:
    """Where the output of a process goes.

    `options` holds every option of the class with its default if streams.py has the class, and
    the file's text otherwise.
    """

    cls: str
    options: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class WatcherSpec:
    """A kind of process: a [watcher:NAME] section."""

    name: str
    cmd: str = option(
        TEXT, "", "the command; split as a shell would, with variables", impact=RELOAD
    )
    args: str | tuple[str, ...] = option(
        Arguments(),
        "",
        "further arguments, split like `cmd` (a list on the wire is not)",
        impact=RELOAD,
    )
    shell: bool = option(FLAG, False, "run the text of `cmd` by `/bin/sh -c`", impact=RELOAD)
    shell_args: str | None = option(
        TEXT, None, "arguments of the shell's script: `$0`, `$1`, ...", impact=RELOAD
    )
    executable: str | None = option(
        PATH, None, "the program to execute, if it is not the first word of `cmd`", impact=RELOAD
    )
    working_dir: str | None = option(
        PATH, None, "directory of the processes; default: the daemon's", impact=RELOAD
    )
    uid: str | None = option(Account(), None, "user to run as", impact=RELOAD)
    gid: str | None = option(Account(), None, "group to run as; default: the user's", impact=RELOAD)
    groups: tuple[str, ...] | None = option(
        Words(Account()), None, "supplementary groups; default: the user's", impact=RELOAD
    )
    umask: int | None = option(
        Octal(), None, "file mode creation mask; default: the daemon's", impact=RELOAD
    )
    numprocesses: int = option(Processes(0, 100_000), 1, "how many processes", impact=Impact.SCALE)
    singleton: bool = option(FLAG, False, "never more than one process")
    warmup_delay: float = option(Seconds(), 0.0, "pause between the starts of two processes")
    priority: int = option(Whole(), 0, "watchers with a higher one start first and stop last")
    autostart: bool = option(FLAG, True, "start with the daemon")
    on_demand: bool = option(Later(FLAG), False, "start at the first connection to a socket")
    restart: Restart = option(
        Choice(*Restart),
        Restart.ALWAYS,
        "when a process that has ended is started again",
        old=("respawn", Respawn()),
    )
    success_codes: frozenset[int] = option(
        Codes(), frozenset({0}), "exit codes and signals that are no failure"
    )
    restart_prevent: frozenset[int] = option(
        Codes(), frozenset(), "exit codes and signals after which there is no restart"
    )
    backoff_delay: float = option(
        Seconds(), 0.5, "wait before a repeated restart; doubled at each", name="backoff.delay"
    )
    backoff_max: float = option(
        Seconds(), 30.0, "the longest wait before a restart", name="backoff.max"
    )
    backoff_jitter: float = option(
        Part(), 0.1, "part of a wait that is left to chance (0.1: ±10 %)", name="backoff.jitter"
    )
    stable_after: float = option(
        Seconds(), 10.0, "a process that ran so long has all its retries again"
    )
    max_retry: int = option(Whole(-1), 5, "retries before giving up (-1: never)")
    flapping: FlappingSpec = group("flapping.", FlappingSpec)
    graceful_timeout: float = option(
        Seconds(), 30.0, "from the stop signal to SIGKILL, and of a stage without a time"
    )
    stop_signal: tuple[StopStage, ...] = option(
        Stages(),
        (StopStage(SIGNALS["TERM"]),),
        "how to ask a process to stop; in stages: `QUIT 30 TERM 5 KILL`",
    )
    stop_children: bool = option(FLAG, False, "send `stop_signal` to the children too")
    stop_scope: str = option(
        Choice("tree", "group", "main"),
        "tree",
        "whose end a stop awaits, by force if need be: all descendants, the process group, "
        "the process alone",
    )
    send_hup: bool = option(FLAG, False, "reload by SIGHUP instead of new processes")
    drain_timeout: float = option(
        Seconds(), 1.0, "how long output is awaited from pipes still open after the end"
    )
    max_age: int = option(Whole(0), 0, "replace a process after so many seconds (0: never)")
    max_age_variance: int = option(
        Whole(0), 30, "seconds up to which chance adds to `max_age`, once per process"
    )
    copy_env: bool = option(FLAG, False, "pass on the daemon's whole environment", impact=RELOAD)
    copy_path: bool = option(
        FLAG, False, "pass on the daemon's `sys.path` as PYTHONPATH", impact=RELOAD
    )
    virtualenv: str | None = option(
        PATH, None, "a Python virtual environment to run in", impact=RELOAD, where="file"
    )
    virtualenv_py_ver: str | None = option(
        Text(r"\d+\.\d+", "a Python version (such as 3.11)"),
        None,
        "which Python of the virtual environment, if it has several",
        impact=RELOAD,
        where="file",
    )
    use_sockets: bool = option(FLAG, False, "pass on all sockets of the file", impact=RELOAD)
    stdin_socket: str | None = option(
        NAME, None, "the socket to be the standard input", impact=RELOAD
    )
    listen_fds: tuple[str, ...] = option(
        FD_NAMES,
        (),
        "sockets to pass on as systemd does: descriptors from 3 on, with LISTEN_FDS, "
        "LISTEN_FDNAMES and LISTEN_PID, sd_listen_fds(3)",
        impact=RELOAD,
    )
    stdin: str | None = option(
        Choice("null", "pipe", "socket"),
        None,
        "what standard input is: /dev/null, a pipe that `sysupctl send` writes to, the "
        "`stdin_socket`; default: as `stdin_socket` and `close_child_stdin` say",
        impact=RELOAD,
    )
    close_child_stdin: bool = option(FLAG, True, "standard input is /dev/null", impact=RELOAD)
    close_child_stdout: bool = option(FLAG, False, "standard output is /dev/null", impact=RELOAD)
    close_child_stderr: bool = option(FLAG, False, "standard error is /dev/null", impact=RELOAD)
    pty: bool = option(
        FLAG,
        False,
        "standard output is a terminal of its own, so that programs don't hold output back; so "
        "is standard error, unless it has a stream that differs from that of standard output, "
        "and standard input with `stdin = pipe`; 80 by 24, no echo, not the controlling terminal",
        impact=RELOAD,
    )
    nice: int | None = option(Whole(-20, 19), None, "scheduling priority", impact=RELOAD)
    oom_score_adj: int | None = option(
        Whole(-1000, 1000), None, "how readily the kernel kills it for memory", impact=RELOAD
    )
    cpu_affinity: frozenset[int] | None = option(
        Cpus(), None, "CPUs to run on (`0-3,8`)", impact=RELOAD
    )
    no_new_privileges: bool = option(
        FLAG, False, "set-user-ID programs gain nothing", impact=RELOAD
    )
    capabilities: tuple[str, ...] | None = option(
        Words(Capability()), None, "keep only these; empty: none", impact=RELOAD
    )
    ready: str = option(Ready(), "spawn", "what shows that a process is ready")
    ready_timeout: float = option(Seconds(), 30.0, "a process not ready by then is stopped")
    env: Mapping[str, str] = option(
        Variables(), {}, "the environment; in a file: [env] sections", impact=RELOAD, where="wire"
    )
    after: tuple[str, ...] = option(Later(NAMES), (), "watchers to be ready before this starts")
    requires: tuple[str, ...] = option(Later(NAMES), (), "as `after`, and this stops with them")
    env_file: str | None = option(Later(PATH), None, "a file of variables", impact=RELOAD)
    env_dir: str | None = option(Later(PATH), None, "a file per variable", impact=RELOAD)
    credential: tuple[str, ...] = option(Later(NAMES), (), "secrets to pass on", impact=RELOAD)
    memory_max: int | None = option(Later(Size()), None, "memory of the tree", impact=LIMITS)
    memory_high: int | None = option(Later(Size()), None, "memory to be slowed at", impact=LIMITS)
    cpu_quota: str | None = option(
        Later(Text(r"\d+(\.\d+)?%", "a percentage")), None, "CPU time of the tree", impact=LIMITS
    )
    cpu_weight: int | None = option(
        Later(Whole(1, 10000)), None, "share of the CPUs (100 is usual)", impact=LIMITS
    )
    pids_max: int | None = option(Later(Whole(1)), None, "processes in the tree", impact=LIMITS)
    io_weight: int | None = option(
        Later(Whole(1, 10000)), None, "share of the disks (100 is usual)", impact=LIMITS
    )
    # Of families, and what is derived at parse time:
    rlimits: tuple[Rlimit, ...] = ()
    stdout_stream: StreamSpec | None = None
    stderr_stream: StreamSpec | None = None
    hooks: Mapping[str, str] = field(default_factory=dict)
    free: Mapping[str, str] = field(default_factory=dict)
    python_path: tuple[str, ...] = ()
    """Where `virtualenv` keeps its packages."""

    @property
    def one_terminal(self) -> bool:
        """Whether standard error is the terminal that standard output is."""
        apart = self.close_child_stderr or self.stderr_stream not in (None, self.stdout_stream)
        return self.pty and not apart


RLIMIT_FAMILY = Family(
    "rlimit_",
    RLIMITS,
    Limit(),
    "limit on a resource; empty or `infinity`: none; sizes may be used (`rlimit_as = 1G`)",
    LIMITS,
)
HOOK_NAMES = (
    *("before_start", "after_start", "before_spawn", "after_spawn", "before_signal"),
    *("after_signal", "before_stop", "after_stop", "before_reap", "after_reap"),
    *("extended_stats", "on_crash", "on_give_up"),
)
FAMILIES = (
    RLIMIT_FAMILY,
    Family(
        "hooks.",
        HOOK_NAMES,
        Later(
            Text(
                r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+(\s*,\s*(?i:yes|no|true|false|on|off|0|1))?",
                "a dotted Python name, with `, true` after it if it may fail",
            )
        ),
        "a Python function to call; `, true`: what it raises does no harm",
    ),
    Family("check.", (), Later(TEXT), "a health check"),
    Family("notify_", (), Later(TEXT), "messages from the processes"),
)
STREAM_FIELDS = ("stdout_stream", "stderr_stream")


@dataclass(frozen=True, slots=True)
class SocketSpec:
    """A listening socket that the daemon binds: a [socket:NAME] section."""

    name: str
    host: str = option(TEXT, "localhost", "address to bind")
    port: int = option(PORT, 8080, "port to bind; 0: any free one")
    family: str = option(
        Choice("AF_INET", "AF_INET6", "AF_UNIX"), "AF_INET", "address family; AF_UNIX with `path`"
    )
    type: str = option(
        Choice("SOCK_STREAM", "SOCK_DGRAM", "SOCK_SEQPACKET", "SOCK_RAW", "SOCK_RDM"),
        "SOCK_STREAM",
        "type of the socket",
    )
    proto: str | None = option(NAME, None, "protocol, by its name in /etc/protocols")
    path: str | None = option(PATH, None, "path of a Unix socket; removed on close")
    umask: int | None = option(Octal(), None, "file mode creation mask for `path`")
    replace: bool = option(FLAG, False, "remove a stale `path` first")
    backlog: int = option(Whole(0, 2**31 - 1), 2048, "connections that may wait to be accepted")
    interface: str | None = option(Later(NAME), None, "network interface to bind to")
    so_reuseport: bool = option(Later(FLAG), False, "a socket of its own for each process")
    blocking: bool = option(FLAG, False, "whether the socket blocks")


@dataclass(frozen=True, slots=True)
class PluginSpec:
    """A program that listens to events and commands the app: a [plugin:NAME] section."""

    name: str
    use: str = option(PYTHON_NAME, "", "the plugin's class (required)")
    priority: int = option(Whole(), 1, "as in a watcher")
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DaemonSpec:
    """The daemon itself: the [sysup] section, or [circus]."""

    include: str | None = option(TEXT, None, "further files (globs) to read")
    include_dir: str | None = option(TEXT, None, "directories whose `*.ini` are read")
    check_delay: float = option(
        Seconds(None), 5.0, "seconds between two looks at ages and at what events cannot tell"
    )
    endpoint: str | None = option(
        Endpoint(),
        None,
        "further address for commands; TCP on loopback only, but with `curve_dir`",
        circus="tcp://127.0.0.1:5555",
    )
    pubsub_endpoint: str | None = option(
        Endpoint(), None, "further address for events", circus="tcp://127.0.0.1:5556"
    )
    stats_endpoint: str | None = option(
        Endpoint(),
        None,
        "further address for statistics; named, it switches `statsd` on",
        circus="tcp://127.0.0.1:5557",
    )
    curve_dir: str | None = option(
        Text(r"(?s)/.*", "an absolute path"),
        None,
        "directory of keys, as `sysupctl keygen --server` makes it: then TCP endpoints speak CURVE "
        "only, encrypted and with those alone whose keys are in its `authorized`",
    )
    tcp_plain_role: Role | None = option(
        Choice(*Role), None, "what anyone who can reach a plain TCP endpoint may do"
    )
    endpoint_owner: str | None = option(Account(), None, "owner of an `ipc://` endpoint")
    statsd: bool = option(FLAG, False, "publish statistics at `stats_endpoint`, too")
    multicast_endpoint: str | None = option(
        Later(Text(r"udp://[^\s/]+:\d+", "udp://GROUP:PORT")), None, "discovery by multicast"
    )
    umask: int | None = option(Octal(), None, "file mode creation mask of the daemon")
    warmup_delay: float = option(Seconds(), 0.0, "pause between the starts of two watchers")
    httpd: bool = option(Later(FLAG), False, "run the web console")
    httpd_host: str | None = option(Later(TEXT), None, "address of the web console")
    httpd_port: int | None = option(Later(PORT), None, "port of the web console")
    debug: bool = option(FLAG, False, "log at level debug")
    debug_gc: bool = option(Later(FLAG), False, "report what Python's collector cannot free")
    pidfile: str | None = option(PATH, None, "file for the daemon's process id")
    loglevel: str = option(
        Choice("debug", "info", "warning", "error", "critical"), "info", "what to log"
    )
    logoutput: str = option(TEXT, "-", "file to log to, or `syslog://...`; `-`: standard error")
    loggerconfig: str | None = option(Later(PATH), None, "file that configures Python's logging")
    fqdn_prefix: str | None = option(Later(TEXT), None, "name put before the host's")
    ready_when: str = option(
        Choice("loaded", "started", "ready"),
        "ready",
        "when systemd is told that the app is up: the config is loaded; all that starts by itself "
        "was started; it is ready, or known not to become so for now",
    )
    runtime_dir: str | None = option(
        Text(r"(?s)/.*", "an absolute path"), None, "directory of the control sockets"
    )


WATCHER_OPTIONS = declared(WatcherSpec)
FLAPPING_OPTIONS = declared(FlappingSpec)
SOCKET_OPTIONS = declared(SocketSpec)
PLUGIN_OPTIONS = declared(PluginSpec)
DAEMON_OPTIONS = declared(DaemonSpec)
