"""Run a command inside a container: `python -IS enter.py LEADER COMMAND...`.

Its standard streams are ours, and so is its exit status (128 + N where signal N ended it); it
dies with us. nsenter(1) would do that, but not let the machine end: to shut down, systemd stops
every process before it kills them, nsenter then stops itself as well, and does not reap the one
it waits for, without which the namespace of its processes cannot end.
"""

import ctypes
import os
import signal
import sys

NEW_NS, NEW_CGROUP, NEW_UTS, NEW_IPC, NEW_PID, NEW_NET = (
    *(0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x20000000, 0x40000000),
)
PR_SET_PDEATHSIG = 1
ENVIRON = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "container": "systemd-nspawn",
}


def main(leader: int, command: list[str]) -> int:
    """Run the command in the namespaces of the process `leader`; returns the exit status."""
    libc = ctypes.CDLL(None, use_errno=True)
    kinds = NEW_NS | NEW_CGROUP | NEW_UTS | NEW_IPC | NEW_PID | NEW_NET
    if libc.setns(os.pidfd_open(leader), kinds):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    pid = os.fork()
    if pid == 0:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != 0:  # outside of its namespace
            os._exit(1)
        os.chdir("/root")
        for signum in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(signum, signal.SIG_DFL)
        # execvpe would import a module, where now none is
        os.execve("/usr/bin/env", ["env", "--", *command], ENVIRON)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
