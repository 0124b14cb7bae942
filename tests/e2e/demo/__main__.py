"""The founding examples at work: `python -m tests.e2e.demo`, or `make demo`.

Each act starts a real sysupd, shows what it does, and checks what it shows; the exit status is 1
when something was not so.
"""

from __future__ import annotations

import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import click

from tests.e2e.harness import Daemon, become_subreaper, descendants, until

EXAMPLES = Path(__file__).parents[1]
LINES = 200
"""That one `myprogram` prints."""

CRASHING = """\
[watcher:broken]
cmd = sh -c 'echo cannot find the database; exit 3'
autostart = False
flapping.retry_in = 0.5
max_retry = 2
"""


class Broken(Exception):
    """What is shown here was not so."""


def heading(text: str) -> None:
    click.secho(f"\n{text}", bold=True)


def fact(text: str) -> None:
    click.echo(f"  {text}")


def check(holds: bool, text: str) -> None:
    """Show a fact that must hold."""
    if not holds:
        raise Broken(text)
    click.echo("  " + click.style("ok", fg="green") + f"  {text}")


def shown(text: str) -> None:
    """Show the text of a file, or what a command printed."""
    for line in text.splitlines():
        click.secho(f"      {line}", dim=True)


def sysupctl(daemon: Daemon, *args: str, expect: int = 0) -> str:
    """Run a command before the reader's eyes; returns what it printed."""
    fact(f"$ sysupctl {' '.join(args)}")
    done = daemon.ctl(*args)
    shown(done.stdout + done.stderr)
    if done.returncode != expect:
        raise Broken(f"sysupctl {args[0]} ended with {done.returncode}")
    return done.stdout


# ---- a hundred processes, one log ------------------------------------------------------------


def hundred_processes(directory: Path) -> None:
    heading("100 processes write one log")
    text = (EXAMPLES / "second.ini").read_text()
    shown(text)
    with Daemon(directory, directory, text, "second") as daemon:
        log = directory / "myprogram.log"
        until(
            lambda: log.exists() and log.read_bytes().count(b"\n") >= 100 * LINES,
            f"{100 * LINES} lines in {log}",
        )
        read_log(log.read_text())
        replace_killed(daemon)
        stop(daemon)


def read_log(text: str) -> None:
    """Every line whole, and each process's lines in order."""
    lines: dict[str, list[int]] = defaultdict(list)
    form = re.compile(rf"process (\d+) line (\d+) of {LINES}: the quick brown .* the lazy dog")
    torn = 0
    for line in text.splitlines():
        if match := form.fullmatch(line):
            lines[match[1]].append(int(match[2]))
        else:
            torn += 1
    shown("\n".join(text.splitlines()[:2]))
    check(torn == 0, f"{text.count(chr(10)):,} lines, every one whole")
    check(len(lines) == 100, f"from {len(lines)} processes")
    in_order = all(numbers == list(range(1, LINES + 1)) for numbers in lines.values())
    check(in_order, "none lost, and those of each process in order")


def replace_killed(daemon: Daemon) -> None:
    """SIGKILL some processes, and take the time until each has a successor."""
    heading("kill -9, and there is another")
    delays = []
    events = daemon.events()
    for pid in daemon.pids("myprogram")[:11]:
        killed = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        spawned = events.wait_for_name("spawn")
        delays.append((time.monotonic() - killed) * 1000)
        if len(delays) == 1:
            fact(f"process {pid} killed, {spawned.fields['process_pid']} started")
    delays.sort()
    check(
        statistics.median(delays) < 100,
        f"{len(delays)} processes killed in turn: the event of the new one came after "
        f"{statistics.median(delays):.1f} ms (median; {delays[-1]:.1f} at most)",
    )
    check(len(daemon.pids("myprogram")) == 100, "100 processes run")


# ---- a limit ---------------------------------------------------------------------------------


def limit(directory: Path) -> None:
    heading("A limit, and the same limit changed while the process runs")
    text = (EXAMPLES / "first.ini").read_text()
    shown(text)
    with Daemon(directory, directory, text, "first") as daemon:
        pids = until(lambda: daemon.pids("myprogram"), "a process of myprogram")
        check(open_files(pids[0]) == 500, f"process {pids[0]} may have 500 open files:")
        shown(limits_line(pids[0]))
        sysupctl(daemon, "set", "myprogram", "rlimit_nofile", "300")
        check(open_files(pids[0]) == 300, f"process {pids[0]}, the same, may have 300:")
        shown(limits_line(pids[0]))
        stop(daemon)


def limits_line(pid: int) -> str:
    text = Path(f"/proc/{pid}/limits").read_text()
    return next(line for line in text.splitlines() if line.startswith("Max open files"))


def open_files(pid: int) -> int:
    """The soft limit that the kernel has for a process."""
    return int(limits_line(pid).split()[3])


# ---- a crash loop ----------------------------------------------------------------------------


def crash_loop(directory: Path) -> None:
    heading("A command that cannot work is found out, and given up")
    shown(CRASHING)
    with Daemon(directory, directory, CRASHING, "crashing") as daemon:
        heard = listen(daemon, directory / "events")
        for name in ("flapping", "gave_up"):
            check(f"broken.1 {name}" in heard, f"watcher.broken.{name} was published")
        status = sysupctl(daemon, "status", expect=3)
        check("cannot find the database" in status, "and the status tells why, and ends with 3")
        check(cpu(daemon.pid) < 1, f"sysupd has used {cpu(daemon.pid):.2f} s of CPU in all")
        stop(daemon)


def listen(daemon: Daemon, heard: Path) -> str:
    """Start the broken watcher with `sysupctl listen` at the door; returns what that heard."""
    daemon.call("numwatchers")
    with heard.open("w") as file:
        listener = subprocess.Popen(
            ["sysupctl", "-a", daemon.app, "listen"], env=daemon.env, stdout=file, stderr=file
        )
    try:
        until(lambda: nudge(daemon) and heard.stat().st_size, "a first event heard")
        fact("$ sysupctl listen &")
        sysupctl(daemon, "start", "broken")
        until(lambda: "gave_up" in heard.read_text(), "gave_up heard")
    finally:
        listener.terminate()
        listener.wait()
    text = heard.read_text()
    shown("\n".join(line for line in text.splitlines() if ".updated" not in line))
    return text


def nudge(daemon: Daemon) -> bool:
    """Have an event published, for a listener that may be listening by now."""
    return bool(daemon.call("set", name="broken", options={"warmup_delay": 0}))


def cpu(pid: int) -> float:
    """Seconds of CPU that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# ---- the end ---------------------------------------------------------------------------------


def stop(daemon: Daemon) -> None:
    """SIGTERM: all ends, in order, and nothing is left."""
    count = len(descendants(daemon.pid))
    began = time.monotonic()
    status = daemon.stop()
    took = (time.monotonic() - began) * 1000
    left = descendants(os.getpid())
    check(status == 0 and not left, f"SIGTERM: sysupd and {count} processes gone in {took:.0f} ms")


def main() -> int:
    become_subreaper()
    began = time.monotonic()
    try:
        for act in (hundred_processes, limit, crash_loop):
            with tempfile.TemporaryDirectory(prefix="sysup-") as directory:
                act(Path(directory))
    except (AssertionError, Broken) as error:
        click.echo("  " + click.style("not so:", fg="red") + f" {error}")
        return 1
    heading(f"All of that in {time.monotonic() - began:.1f} s.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
