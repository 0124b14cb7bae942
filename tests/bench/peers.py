"""The supervisors that are measured: how each is told to run a job, and to end.

Every one gets the least that the job needs and its own defaults for the rest, runs in the
foreground, and has its sockets, logs and pid files in the directory of the run.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Job:
    """So many processes of one command; with a `log`, their output in that one file."""

    command: tuple[str, ...]
    children: int
    log: Path | None = None

    @property
    def line(self) -> str:
        """The command as text; no word of it needs quoting."""
        return " ".join(self.command)


class Peer:
    """A supervisor. Found by its program, in one of `path` or on PATH."""

    name: str
    program: str
    one_log = True
    """Whether it can write what many processes print to one file."""

    def __init__(self, *path: Path) -> None:
        self.path = ":".join([*map(str, path), os.environ["PATH"]])
        self.found = shutil.which(self.program, path=self.path)

    def configure(self, directory: Path, job: Job) -> list[str]:
        """Write what is needed into `directory`; returns the arguments of the program."""
        raise NotImplementedError

    def start(self, directory: Path, job: Job) -> subprocess.Popen[bytes]:
        """Start it on a job; what it says of itself goes to `directory`/out."""
        arguments = self.configure(directory, job)
        with (directory / "out").open("wb") as out:
            return subprocess.Popen(
                [self.program, *arguments],
                cwd=directory,
                env={**os.environ, "PATH": self.path, "SYSUP_RUNTIME_DIR": str(directory)},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )

    def end(self, process: subprocess.Popen[bytes], directory: Path) -> None:
        """Ask it to stop all and exit; returns without waiting."""
        process.send_signal(signal.SIGTERM)


class Sysup(Peer):
    name = "sysup"
    program = "sysupd"

    def __init__(self) -> None:
        super().__init__(Path(sys.executable).parent)

    def configure(self, directory: Path, job: Job) -> list[str]:
        lines = ["[watcher:w]", f"cmd = {job.line}", f"numprocesses = {job.children}"]
        if job.log:
            lines += ["stdout_stream.class = FileStream", f"stdout_stream.filename = {job.log}"]
        return [write(directory / "bench.ini", lines)]


class Circus(Peer):
    name = "circus"
    program = "circusd"

    def configure(self, directory: Path, job: Job) -> list[str]:
        lines = [
            "[circus]",
            f"endpoint = ipc://{directory}/endpoint",
            f"pubsub_endpoint = ipc://{directory}/pubsub",
            "[watcher:w]",
            f"cmd = {job.line}",
            f"numprocesses = {job.children}",
        ]
        if job.log:
            lines += ["stdout_stream.class = FileStream", f"stdout_stream.filename = {job.log}"]
        return [write(directory / "bench.ini", lines)]


class Supervisord(Peer):
    name = "supervisord"
    program = "supervisord"

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
            "stdout_logfile_maxbytes = 0",
            "stderr_logfile = NONE",
        ]
        return ["--nodaemon", "--configuration", write(directory / "bench.conf", lines)]


class Reference(Peer):
    """The bare loop in C: a yardstick, not a competitor."""

    name = "bare C loop"
    program = "reference"

    def configure(self, directory: Path, job: Job) -> list[str]:
        return [str(job.children), str(job.log or "-"), *job.command]


class ServiceDirectories(Peer):
    """A process for each service, and one that scans the directory of services."""

    one_log = False

    def configure(self, directory: Path, job: Job) -> list[str]:
        for number in range(job.children):
            service = directory / "scan" / f"w{number:04}"
            service.mkdir(parents=True)
            script = service / "run"
            write(script, ["#!/bin/sh", f"exec {job.line}"])
            script.chmod(0o755)
        return self.scan(directory / "scan", job.children)

    def scan(self, services: Path, count: int) -> list[str]:
        """The arguments of the scanning program."""
        return [str(services)]


class Daemontools(ServiceDirectories):
    name = "daemontools"
    program = "svscan"

    def end(self, process: subprocess.Popen[bytes], directory: Path) -> None:
        process.send_signal(signal.SIGTERM)  # first, or it starts each supervise again
        services = sorted(map(str, (directory / "scan").iterdir()))
        subprocess.run(["svc", "-dx", *services], env={"PATH": self.path}, check=True)


class Runit(ServiceDirectories):
    name = "runit"
    program = "runsvdir"

    def end(self, process: subprocess.Popen[bytes], directory: Path) -> None:
        process.send_signal(signal.SIGHUP)  # runsvdir(8): SIGTERM would leave all running


class S6(ServiceDirectories):
    name = "s6"
    program = "s6-svscan"

    def scan(self, services: Path, count: int) -> list[str]:
        return [f"-c{max(500, 2 * count)}", str(services)]


def write(path: Path, lines: list[str]) -> str:
    """Write a text file; returns its name."""
    path.write_text("\n".join(lines) + "\n")
    return str(path)
