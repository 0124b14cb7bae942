"""Configs from files in memory, and what is told of them."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase

import pytest

from sysup.config import Config, ConfigError, Level, WatcherSpec, parse

MAIN = "/etc/sysup/app.ini"


class Files:
    """A Source of files in memory; a file that is None cannot be read."""

    def __init__(self, files: Mapping[str, str | None]) -> None:
        self._files = files

    def read(self, path: str) -> str:
        if path not in self._files:
            raise FileNotFoundError(2, "No such file or directory", path)
        text = self._files[path]
        if text is None:
            raise PermissionError(13, "Permission denied", path)
        return text

    def glob(self, pattern: str) -> list[str]:
        depth = pattern.count("/")
        return sorted(
            path for path in self._files if fnmatchcase(path, pattern) and path.count("/") == depth
        )


def load(
    text: str, env: Mapping[str, str] | None = None, more: Mapping[str, str | None] | None = None
) -> Config:
    """The config of a main file; `more` files are named from its directory."""
    files = {f"/etc/sysup/{path}": other for path, other in (more or {}).items()}
    return parse(MAIN, source=Files({MAIN: text, **files}), environ=env or {})


def web(lines: str, env: Mapping[str, str] | None = None, circus: bool = False) -> WatcherSpec:
    """The watcher `web` with further options."""
    head = "[circus]\ncheck_delay = 1\n" if circus else ""
    return load(f"{head}[watcher:web]\ncmd = prog\n{lines}", env).watchers["web"]


def errors(text: str, more: Mapping[str, str | None] | None = None) -> list[str]:
    """What is wrong, without the main file's name."""
    with pytest.raises(ConfigError) as caught:
        load(text, more=more)
    assert str(caught.value)
    problems = caught.value.problems
    return [str(p).removeprefix(f"{MAIN}:") for p in problems if p.level is Level.ERROR]


def warnings(config: Config) -> list[str]:
    """What is strange about it, without the main file's name."""
    return [str(problem).removeprefix(f"{MAIN}:") for problem in config.problems]


def web_errors(lines: str) -> list[str]:
    """What is wrong with options of a watcher, whose first line is number 3."""
    return errors(f"[watcher:web]\ncmd = prog\n{lines}")
