"""What the documents say of the code, where no generator writes it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sysup.commands import COMMANDS
from sysup.config import Role
from sysup.config.specs import DAEMON_OPTIONS, FAMILIES, WATCHER_OPTIONS
from sysup.config.streams import STREAMS
from sysup.ctl.program import cli
from tests.config_files import load

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("role", list(Role))
def test_the_table_of_roles(role: Role) -> None:
    page = (ROOT / "docs" / "security.md").read_text()
    row = re.search(rf"^\| \*{role}\* \| (.*) \|$", page, re.M)
    assert row
    wanted = sorted(name for name, entry in COMMANDS.items() if entry.role is role)
    assert re.findall(r"`(\w+)`", row[1]) == wanted


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{p.name}" for p in ROOT.glob("docs/*.md"))])
def test_links_lead_somewhere(page: str) -> None:
    path = ROOT / page
    for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text()):
        assert (path.parent / target).exists(), target


BLOCKS = [
    pytest.param(page.name, text, id=f"{page.stem}-{number}")
    for page in (ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")))
    for number, text in enumerate(re.findall(r"^```ini\n(.*?)^```", page.read_text(), re.M | re.S))
]


@pytest.mark.parametrize(("page", "text"), BLOCKS)
def test_a_config_that_is_shown_can_be_used(page: str, text: str) -> None:
    shown = load(text)
    assert shown.watchers
    assert page == "config.md" or not shown.problems


def test_the_way_from_elsewhere_leads_to_options() -> None:
    """What stands alone in the right column as an option or a command is one."""
    page = (ROOT / "docs" / "elsewhere.md").read_text()
    known = {*WATCHER_OPTIONS, *DAEMON_OPTIONS, *STREAMS["FileStream"], *cli.commands}
    known |= {f"{family.prefix}{name}" for family in FAMILIES for name in family.names}
    cells = [row.split(" | ")[1] for row in re.findall(r"^\| (.* \| .*) \|$", page, re.M)]
    words = {word for cell in cells for word in re.findall(r"`([a-z_]+)`", cell)}
    assert words - known <= {"failed", "never", "sysupctl", "exec", "t"}
    assert len(words & known) > 20
