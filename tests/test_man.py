"""The manual pages: no fault in their form, and nothing is missing."""

from __future__ import annotations

import shutil
import subprocess

import click
import pytest

from docs import man
from sysup.config.specs import DAEMON_OPTIONS, SOCKET_OPTIONS, WATCHER_OPTIONS
from sysup.ctl.program import cli
from sysup.program import main as sysupd

PAGES = man.pages()
PROGRAMS = {
    "mandoc": ["mandoc", "-Tlint", "-W", "warning"],
    "groff": ["groff", "-man", "-Tutf8", "-ww", "-z"],
}


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("program", PROGRAMS)
def test_the_form(name: str, program: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"there is no {program}")
    done = subprocess.run(PROGRAMS[program], input=PAGES[name], capture_output=True, text=True)
    assert done.stdout + done.stderr == ""
    assert done.returncode == 0


def said(name: str) -> str:
    """The text of a page without its fonts."""
    text = PAGES[name]
    for what, plain in (("\\-", "-"), ("\\fB", ""), ("\\fR", ""), ("\\fI", "")):
        text = text.replace(what, plain)
    return text


def test_all_options_of_sysupd() -> None:
    for option in sysupd.params:
        if isinstance(option, click.Option):
            assert all((name in said("sysupd.8")) != option.hidden for name in option.opts)


def test_all_commands_of_sysupctl() -> None:
    for name, command in cli.commands.items():
        assert f"sysupctl {name}" in said("sysupctl.1")
        for option in (param for param in command.params if isinstance(param, click.Option)):
            assert all(name in said("sysupctl.1") for name in option.opts), name


def test_all_options_of_the_config() -> None:
    lines = said("sysup.ini.5").splitlines()
    for table in (DAEMON_OPTIONS, WATCHER_OPTIONS, SOCKET_OPTIONS):
        for option in table.values():
            assert lines[lines.index(option.name) - 1] == ".TP"


@pytest.mark.parametrize(
    ("markdown", "expected"),
    [
        ("Aa. B `c-d`.\n", [".PP", "Aa.", "B \\fBc\\-d\\fR."]),
        ("## see `x`\n\ny\n", ['.SH "SEE X"', "y"]),
        (".x\n", [".PP", "\\&.x"]),
        ("- a\n  b\n- `c`, `d`: e\n", [".IP \\(bu 2", "a b", ".TP", "\\fBc\\fR, \\fBd\\fR", "e"]),
        ("|A|B|C|\n|-|-|-|\n|a|1 \\| 2|c|\n", [".TP", "\\fBa\\fR", "c (b: 1 | 2)"]),
        ("x\n\n    'a\\b\n\n    c\n\ny\n", [".PP", "x", ".PP", ".RS 4", ".nf", "\\(aqa\\eb"]),
        ("[text](there.md) \u00b7\n", [".PP", "text \\[u00B7]"]),
    ],
)
def test_from_markdown(markdown: str, expected: list[str]) -> None:
    assert list(man.troff(markdown))[: len(expected)] == expected


def test_its_day_can_be_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    assert '.TH X 8 1970\\-01\\-02 "sysup' in man.page("x", 8, "y\n").replace("-", "\\-")
