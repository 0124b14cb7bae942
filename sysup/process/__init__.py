"""The narrow seam to the operating system: processes are made, signalled, awaited, found.

A process is held by its pidfd, so a signal never meets a stranger that got its number. What
only has a number (groups, limits, what a dead process left behind) says why that
is harmless.

All of a process's tree is to die with it, but a process may leave its session (setsid) and
its parent (a double fork). It can't leave two things: the daemon is a subreaper
(prctl(2)), so an orphan becomes our child, wherever it was; and the environment it began with
stays in /proc/PID/environ, where `MARKER` tells whose it is. What is found by neither, a
descendant that cleaned its environment and left the session, is killed when the daemon ends.
Where cgroups are ours to make, each process has one (cgroups.py), and nothing leaves that.

Tests of the modules above replace `OS` as a whole.
"""

from sysup.process.cgroups import Cgroup, Cgroups
from sysup.process.identity import Identity, identity
from sysup.process.launch import CAPABILITIES, RLIMITS, Birth, Launch, Launcher, Process, SpawnError
from sysup.process.own import (
    become_subreaper,
    own_directory,
    raise_nofile,
    set_nice,
    take_precedence,
)
from sysup.process.system import MARKER, OS, Unclear, Unreaped
from sysup.process.terminal import open_terminal

__all__ = [
    "CAPABILITIES",
    "MARKER",
    "OS",
    "RLIMITS",
    "Birth",
    "Cgroup",
    "Cgroups",
    "Identity",
    "Launch",
    "Launcher",
    "Process",
    "SpawnError",
    "Unclear",
    "Unreaped",
    "become_subreaper",
    "identity",
    "open_terminal",
    "own_directory",
    "raise_nofile",
    "set_nice",
    "take_precedence",
]
