"""The examples of the library's page do what it says, one after the other, on a real app."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.e2e.conftest import Start
from tests.e2e.harness import PATIENCE

PAGE = Path(__file__).parents[2] / "docs" / "library.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_the_examples(sysupd: Start) -> None:
    blocks = BLOCK.findall(PAGE.read_text())
    assert [kind for kind, _ in blocks] == ["ini", *["python", "text"] * 5]
    (_, ini), *examples = blocks
    daemon = sysupd(ini, app="shop")
    assert daemon.ctl("wait", "web", "--ready").returncode == 0
    for (_, program), (_, printed) in zip(examples[::2], examples[1::2], strict=True):
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=daemon.env,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert (done.stdout, done.returncode) == (printed, 0), f"{program}\n{done.stderr}"
        daemon.ctl("start", "web")
