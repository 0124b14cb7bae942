"""What the documents say of the code, where no generator writes it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sysup.commands import COMMANDS
from sysup.config import Role

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
