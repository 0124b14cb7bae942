"""The supervisors and loggers that are measured: how each is told to run a job, and to end.

Every one gets the least that the job needs and its own defaults for the rest, runs in the
foreground, and has its sockets, logs and pid files in the directory of the run. A logger
reads the pipe that a shell makes, which all children of the job share.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROTATE = 10_000_000
"""Bytes of a file where logs are rotated."""
BACKUPS = 100


@dataclass(frozen=True)
class Job:
    """So many processes of one command, and the files that their output goes to."""

    command: tuple[str, ...]
    children: int
    log: Path | None = None
    errors: Path | None = None

    @property
    def line(self) -> str:
        """The command as text; no word of it needs quoting."""
        return " ".join(self.command)


class Peer:
    """A supervisor or logger.

    Args:
        label: what tells it from others of its kind, in tables.
        options: to be set beyond what the job needs, in its own words.
    """

    kind: str
    program: str
    install = ""
    """How the benchmark gets it: pip, apt or npm."""

    def __init__(self, label: str = "", options: tuple[str, ...] = ()) -> None:
        self.name = f"{self.kind} {label}".strip()
        self.options = options

    def found(self) -> bool:
        """Whether its program is on PATH."""
        return shutil.which(self.program) is not None

    def configure(self, directory: Path, job: Job) -> list[str]:
        """Write what is needed into `directory`; returns the command to run."""
        raise NotImplementedError

    def start(self, directory: Path, job: Job) -> subprocess.Popen[bytes]:
        """Start it on a job, in a session of its own, as a service has it; what it says of itself
        goes to `directory`/out."""
        command = self.configure(directory, job)
        with (directory / "out").open("wb") as out:
            return subprocess.Popen(
                command,
                cwd=directory,
                env={**os.environ, "SYSUP_RUNTIME_DIR": str(directory)},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

    def status(self, directory: Path) -> list[str]:
        """The command that shows how all children are."""
        raise NotImplementedError

    def end(self, process: subprocess.Popen[bytes], directory: Path) -> None:
        """Ask it to stop all and exit; returns without waiting."""
        process.send_signal(signal.SIGTERM)


class Ini(Peer):
    """sysup and Circus; an option is one of the stream of the log."""

    def configure(self, directory: Path, job: Job) -> list[str]:
        lines = [*self.daemon(directory), "[watcher:w]", f"cmd = {job.line}"]
        lines.append(f"numprocesses = {job.children}")
        for name, path in (("stdout", job.log), ("stderr", job.errors)):
            if path:
                lines.append(f"{name}_stream.class = FileStream")
                lines.append(f"{name}_stream.filename = {path}")
                lines += (f"{name}_stream.{option}" for option in self.options)
        return [self.program, write(directory / "bench.ini", lines)]

    def daemon(self, directory: Path) -> list[str]:
        """The section of the daemon itself."""
        return []

    def endpoint(self, directory: Path) -> str:
        """Where it is commanded."""
        raise NotImplementedError


class Sysup(Ini):
    kind = "sysup"
    program = str(Path(sys.executable).with_name("sysupd"))

    def endpoint(self, directory: Path) -> str:
        return f"ipc://{directory}/bench/control"

    def status(self, directory: Path) -> list[str]:
        """As `make install` has it: an editable installation takes a while to be found."""
        places = [str(ROOT), sysconfig.get_path("purelib")]
        code = f"import sys; sys.path[:0] = {places}; from sysup.ctl import main; sys.exit(main())"
        python = os.path.realpath(sys.executable)
        return [python, "-I", "-c", code, "--endpoint", self.endpoint(directory), "status"]


class Circus(Ini):
    kind = "circus"
    program = "circusd"
    install = "pip"

    def endpoint(self, directory: Path) -> str:
        return f"ipc://{directory}/endpoint"

    def daemon(self, directory: Path) -> list[str]:
        return [
            "[circus]",
            f"endpoint = {self.endpoint(directory)}",
            f"pubsub_endpoint = ipc://{directory}/pubsub",
        ]

    def status(self, directory: Path) -> list[str]:
        return ["circusctl", "--endpoint", self.endpoint(directory), "status"]


class Supervisord(Peer):
    kind = "supervisord"
    program = "supervisord"
    install = "pip"

    def configure(self, directory: Path, job: Job) -> list[str]:
        lines = [
            "[supervisord]",
            f"logfile = {directory}/supervisord.log",
            f"pidfile = {directory}/supervisord.pid",
            f"childlogdir = {directory}",
            f"minfds = {4 * job.children + 200}",
            "[program:w]",
            f"command = {job.line}",
            f"numprocs = {job.children}",
            "process_name = %(program_name)s%(process_num)04d",
            f"stdout_logfile = {job.log or 'NONE'}",
            f"stderr_logfile = {job.errors or 'NONE'}",
            "stderr_logfile_maxbytes = 0",
            *(self.options or ["stdout_logfile_maxbytes = 0"]),
        ]
        lines += self.more(directory)
        return [self.program, "--nodaemon", "-c", write(directory / "bench.conf", lines)]

    def more(self, directory: Path) -> list[str]:
        """Sections besides."""
        return []


class Commanded(Supervisord):
    """With what supervisorctl needs."""

    def more(self, directory: Path) -> list[str]:
        return [
            "[unix_http_server]",
            f"file = {directory}/control",
            "[rpcinterface:supervisor]",
            "supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface",
            "[supervisorctl]",
            f"serverurl = unix://{directory}/control",
        ]

    def status(self, directory: Path) -> list[str]:
        return ["supervisorctl", "-c", str(directory / "bench.conf"), "status"]


class Pm2(Peer):
    """pm2 with the daemon in the foreground."""

    kind = "pm2"
    program = "pm2-runtime"
    install = "npm"

    def configure(self, directory: Path, job: Job) -> list[str]:
        app = {
            "name": "w",
            "script": job.command[0],
            "args": list(job.command[1:]),
            "interpreter": "none",
            "exec_mode": "fork",
            "instances": job.children,
            "merge_logs": True,
            "out_file": str(job.log or "/dev/null"),
            "error_file": str(job.errors or "/dev/null"),
        }
        apps = write(directory / "bench.json", [json.dumps({"apps": [app]})])
        return ["env", f"PM2_HOME={directory}/pm2", self.program, "start", apps]


class Reference(Peer):
    """The bare loop in C: a yardstick, not a competitor. Options: MAX_BYTES PAUSE_US."""

    kind = "bare C loop"
    program = "reference"

    def configure(self, directory: Path, job: Job) -> list[str]:
        options = self.options or ("0", "0")
        return [self.program, str(job.children), str(job.log or "-"), *options, *job.command]


class Logger(Peer):
    """A program that writes what it reads into files of a directory."""

    install = "apt"
    unbounded: tuple[str, ...] = ()
    """Options with which it rotates as late as it can."""

    def configure(self, directory: Path, job: Job) -> list[str]:
        assert job.log
        logger = self.logger(job.log.parent, self.options or self.unbounded)
        children = f"for i in $(seq {job.children}); do {job.line} & done; wait"
        return ["sh", "-c", f"{{ {children}; }} | exec {logger}"]

    def logger(self, logs: Path, options: tuple[str, ...]) -> str:
        """The command line."""
        return " ".join([self.program, *options, str(logs)])


class S6Log(Logger):
    kind = "s6-log"
    program = "s6-log"
    unbounded = ("s268435455",)


class Multilog(Logger):
    kind = "multilog"
    program = "multilog"
    unbounded = ("s16777215", f"n{BACKUPS}")


class Svlogd(Logger):
    """Options: that of the command line, and those for the file `config`."""

    kind = "svlogd"
    program = "svlogd"
    unbounded = ("", "s0")

    def logger(self, logs: Path, options: tuple[str, ...]) -> str:
        write(logs / "config", list(options[1:]))
        return f"{self.program} {options[0]} {logs}"


class ServiceDirectories(Peer):
    """A process for each service, and one that scans the directory of services."""

    install = "apt"

    def configure(self, directory: Path, job: Job) -> list[str]:
        for number in range(job.children):
            service = directory / "scan" / f"w{number:04}"
            service.mkdir(parents=True)
            script = service / "run"
            write(script, ["#!/bin/sh", f"exec {job.line}"])
            script.chmod(0o755)
        return [self.program, *self.scan(directory / "scan", job.children)]

    def scan(self, services: Path, count: int) -> list[str]:
        """The arguments of the scanning program."""
        return [str(services)]


class Daemontools(ServiceDirectories):
    kind = "daemontools"
    program = "svscan"

    def end(self, process: subprocess.Popen[bytes], directory: Path) -> None:
        process.send_signal(signal.SIGTERM)  # first, or it starts each supervise again
        services = sorted(map(str, (directory / "scan").iterdir()))
        subprocess.run(["svc", "-dx", *services], check=True)


class Runit(ServiceDirectories):
    kind = "runit"
    program = "runsvdir"

    def end(self, process: subprocess.Popen[bytes], directory: Path) -> None:
        process.send_signal(signal.SIGHUP)  # runsvdir(8): SIGTERM would leave all running


class S6(ServiceDirectories):
    """Only where the system has it: it looks for its s6-supervise in /usr/bin."""

    kind = "s6"
    program = "/usr/bin/s6-svscan"
    install = ""

    def scan(self, services: Path, count: int) -> list[str]:
        return [f"-c{max(500, 2 * count)}", str(services)]


def write(path: Path, lines: list[str]) -> str:
    """Write a text file; returns its name."""
    path.write_text("\n".join(lines) + "\n")
    return str(path)
