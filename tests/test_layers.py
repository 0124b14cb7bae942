"""Imports go down only: the house of the design, read from the source.

Every import statement counts, also inside a function and under `if TYPE_CHECKING`: that one
binds nothing at run time, but it binds the reader.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "sysup"

LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"machine", "moves", "policy", "plan", "config", "protocol", "certificates"}),
    frozenset({"process", "streams", "sockets", "stdin", "systemd", "health", "stats"})
    | frozenset({"runtime", "source", "signals", "matching", "ledger", "lot", "keys"}),
    frozenset({"endpoints", "doorman", "guard", "peers", "outside", "events", "taps"})
    | frozenset({"diary", "log", "board", "turns", "meter", "pace", "pulse", "herald"})
    | frozenset({"body", "remains", "generations", "place", "slots", "reach", "watcher"})
    | frozenset({"outputs", "properties", "table", "commands", "control", "serving", "throttle"})
    | frozenset({"estate", "restore", "roster", "sharing", "reload", "upgrade", "foresight"}),
    frozenset({"daemon"}),
    frozenset({"program"}),
    frozenset({"__main__"}),
)
"""From the bottom up. Modules of a layer may import each other, but for the second."""

PURE, SYSTEM = LAYERS[0], LAYERS[1]

OUTSIDE = {
    "__init__": frozenset({"aio", "client"}),
    "aio": frozenset({"client", "discovery", "keyring", "protocol"}),
    "keyring": frozenset({"certificates", "protocol"}),
    "client": frozenset({"discovery", "keyring", "protocol"}),
    "discovery": frozenset({"protocol"}),
    "ctl": frozenset({"certificates", "client", "discovery", "keyring", "protocol"}),
    "plugins": frozenset({"client", "protocol"}),
}
"""Programs that talk to a daemon and load nothing of it: all that each may import."""

KNOW_THE_EXTENSION = frozenset({"process", "streams"})

IMPURE = (
    {"asyncio", "multiprocessing", "random", "secrets", "threading", "time"}
    | {"glob", "io", "os", "pathlib.Path", "shutil", "subprocess", "sys", "tempfile"}
    | {"ctypes", "fcntl", "grp", "pwd", "resource", "select", "selectors", "socket"}
    | {"logging", "zmq"}
)
"""What brings in a clock, chance, a descriptor or the state of the machine."""

IMPURE_CALLS = frozenset({"open", "print", "input"})


def sources() -> Iterator[tuple[str, Path]]:
    """(module, file) of all of sysup; the files of a package count as one module."""
    for path in sorted(ROOT.rglob("*.py")):
        yield path.relative_to(ROOT).with_suffix("").parts[0], path


def imports(source: str, package: tuple[str, ...] = ("sysup",)) -> set[str]:
    """Dotted names of what a file in `package` imports; `from a import b` as a.b."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else ()
            base = ".".join([*above, *filter(None, [node.module])])
            names.update(f"{base}.{alias.name}" for alias in node.names)
    return names


def modules_of_sysup(names: set[str]) -> set[str]:
    """Which modules of sysup are meant by dotted names."""
    return {name.split(".")[1] for name in names if name.startswith("sysup.")} - {"__version__"}


def imports_of(path: Path) -> set[str]:
    """Dotted names of what a file of sysup imports."""
    return imports(path.read_text(), ("sysup", *path.relative_to(ROOT).parent.parts))


FILES = [pytest.param(*found, id=str(found[1].relative_to(ROOT))) for found in sources()]
PURE_FILES = [param for param in FILES if param.values[0] in PURE]


def test_every_module_has_its_place() -> None:
    known = frozenset({"__init__"}).union(*LAYERS, OUTSIDE)
    assert {module for module, _ in sources()} <= known


@pytest.mark.parametrize(("module", "path"), FILES)
def test_imports_go_down(module: str, path: Path) -> None:
    allowed = {module, *OUTSIDE.get(module, ())}
    for level, layer in enumerate(LAYERS):
        if module in layer:
            allowed.update(*LAYERS[:level], layer if layer is not SYSTEM else ())
    if module in KNOW_THE_EXTENSION:
        allowed.add("_native")
    assert modules_of_sysup(imports_of(path)) <= allowed


def test_no_module_needs_itself() -> None:
    needs: dict[str, set[str]] = {}
    for module, path in sources():
        needs.setdefault(module, set()).update(modules_of_sysup(imports_of(path)) - {module})
    while needs:
        free = {module for module, below in needs.items() if not below & needs.keys()}
        assert free, f"these import each other in a circle, or need one that does: {sorted(needs)}"
        for module in free:
            del needs[module]


@pytest.mark.parametrize(("module", "path"), PURE_FILES)
def test_the_core_is_pure(module: str, path: Path) -> None:
    names = imports_of(path)
    assert not (names | {name.split(".")[0] for name in names}) & IMPURE
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    called = {call.func.id for call in calls if isinstance(call.func, ast.Name)}
    assert not called & IMPURE_CALLS


@pytest.mark.parametrize(
    ("source", "package", "module"),
    [
        ("import sysup.daemon", ("sysup",), "daemon"),
        ("from sysup import daemon", ("sysup",), "daemon"),
        ("from sysup.daemon import Daemon", ("sysup",), "daemon"),
        ("def f():\n    from . import daemon", ("sysup",), "daemon"),
        ("from .. import daemon", ("sysup", "config"), "daemon"),
        ("from ..daemon import Daemon", ("sysup", "config"), "daemon"),
        ("from .options import Option", ("sysup", "config"), "config"),
    ],
)
def test_an_import_is_seen_however_it_is_written(
    source: str, package: tuple[str, ...], module: str
) -> None:
    assert modules_of_sysup(imports(source, package)) == {module}
