"""What of a config this machine can't do as it is now: users, directories and programs that are
not there.

Each may yet come before the app is started, or be there where it is, so these are warnings.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping

from sysup.config import Config, Level, Place, Problem, WatcherSpec, command, environment
from sysup.config import search_path as path_of
from sysup.process import identity, own_directory
from sysup.protocol import SysupError


def foreseen(config: Config, environ: Mapping[str, str]) -> Iterator[Problem]:
    """What will fail when the watchers are started; `environ` is the daemon's."""
    for name, spec in config.watchers.items():
        for option, message in _of(spec, config.circus, environ):
            place = Place(config.path, section=f"watcher:{name}", option=option)
            yield Problem(Level.WARNING, place, message)


def _of(spec: WatcherSpec, circus: bool, environ: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    try:
        identity(spec.uid, spec.gid, spec.groups)
    except SysupError as error:
        yield "uid" if spec.uid else "gid", str(error)
    yield from _of_streams(spec)
    if spec.working_dir and _is_missing(spec.working_dir):
        yield "working_dir", f"there is no directory {spec.working_dir}"
        return  # programs and arguments may be relative to it
    try:
        program = spec.executable or command(spec, 1, {}, own_directory(environ))[0]
    except SysupError as error:
        yield "cmd", str(error)
        return
    env = environment(spec, circus=circus, environ=environ)
    if "/" not in program:
        if not shutil.which(program, path=path_of(env, environ)):
            yield "cmd", f"there is no program {program} in the PATH"
        return
    path = os.path.join(spec.working_dir or "", program)
    if _is_missing(path):
        yield "cmd", f"there is no program {path}"
    elif not (os.access(path, os.X_OK) and os.path.isfile(path)):
        yield "cmd", f"{path} can't be executed"


def _of_streams(spec: WatcherSpec) -> Iterator[tuple[str, str]]:
    for name, stream in (("stdout", spec.stdout_stream), ("stderr", spec.stderr_stream)):
        path = stream.options.get("filename") if stream and "." not in stream.cls else None
        parent = os.path.dirname(str(path)) if path else ""
        if parent and _is_missing(parent):
            yield f"{name}_stream.filename", f"there is no directory {parent}"


def _is_missing(path: str) -> bool:
    """Whether a path is known not to be there; what we may not see may be."""
    try:
        os.stat(path)
    except PermissionError:
        return False
    except (OSError, ValueError):
        return True
    return False
