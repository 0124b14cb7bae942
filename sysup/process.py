from __future__ import annotations
import os, signal, pwd, grp, resource, errno
from dataclasses import dataclass, field
from typing import Any, Mapping, Collection
from sysup._native import ffi, lib
from sysup.protocol import SysupError


@dataclass(frozen=True)
class Launch:
    argv: list
    env: Mapping
    search: str | None = None
    cwd: str | None = None
    fds: Mapping = field(default_factory=dict)
    file: str | None = None
    rlimits: tuple = ()
    uid: int | None = None
    gid: int | None = None
    groups: tuple | None = None
    umask: int | None = None
    nice: int | None = None
    oom_score_adj: int | None = None
    cpus: Any = None
    no_new_privs: bool = False
    capabilities: Any = None


@dataclass
class Process:
    pid: int
    pidfd: int


@dataclass
class Ident:
    uid: int
    gid: int
    groups: tuple
    name: str
    home: str
    shell: str


def identity(uid, gid, groups):
    if uid is None and gid is None:
        return None
    try:
        p = pwd.getpwnam(uid)
    except KeyError:
        raise SysupError(f"cannot find user '{uid}'")
    return Ident(p.pw_uid, p.pw_gid, (), p.pw_name, p.pw_dir, p.pw_shell)


def become_subreaper():
    lib.become_subreaper()


def raise_nofile():
    s, h = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (h, h))
    return s, h


class OS:
    def __init__(self, nofile=None):
        pass

    def spawn(self, l):
        keep = []

        def s(x):
            b = ffi.new("char[]", os.fsencode(x))
            keep.append(b)
            return b

        argv = ffi.new("char*[]", [s(a) for a in l.argv] + [ffi.NULL])
        envp = ffi.new("char*[]", [s(f"{k}={v}") for k, v in l.env.items()] + [ffi.NULL])
        fds = ffi.new("struct spawn_fd[]", [{"from": v, "to": k} for k, v in l.fds.items()])
        r = ffi.new("struct spawn_result*")
        spec = ffi.new(
            "struct spawn_spec*",
            dict(
                file=s(l.file),
                search=s(l.search) if l.search else ffi.NULL,
                argv=argv,
                envp=envp,
                listen_pid=ffi.NULL,
                cwd=s(l.cwd) if l.cwd else ffi.NULL,
                fds=fds,
                n_fds=len(l.fds),
                n_groups=-1,
                uid=-1,
                gid=-1,
                umask=-1,
                nice=-(2**31),
                oom_score_adj=-(2**31),
                flags=1,
                cgroup_fd=-1,
            ),
        )
        rc = lib.spawn(spec, r)
        if rc < 0:
            raise SysupError(
                f"cannot execute {l.file}: {ffi.string(lib.spawn_step_name(r.step)).decode()} {os.strerror(-rc).lower()}"
            )
        return Process(r.pid, r.pidfd)

    def signal(self, p, n):
        try:
            signal.pidfd_send_signal(p.pidfd, n)
            return True
        except ProcessLookupError:
            return False

    def signal_group(self, pid, n):
        try:
            os.killpg(pid, n)
            return True
        except ProcessLookupError:
            return False

    def signal_children(self, p, n, recursive=False):
        pass

    def kill(self, pid):
        try:
            os.kill(pid, 9)
        except ProcessLookupError:
            pass

    def wait(self, p):
        r = os.waitid(os.P_PIDFD, p.pidfd, os.WEXITED | os.WNOHANG)
        if r is None:
            return None
        return r.si_status if r.si_code == os.CLD_EXITED else -r.si_status

    def close(self, p):
        os.close(p.pidfd)

    def leftovers(self, dead, mains):
        return {}

    def reap_strangers(self, mains):
        return 0

    def kill_strangers(self):
        pass

    def set_limit(self, p, name, soft, hard):
        resource.prlimit(p.pid, getattr(resource, "RLIMIT_" + name.upper()), (soft, hard))
