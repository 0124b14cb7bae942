"""The benchmarks run end to end. What they measure is nobody's promise, but a whole log is."""

from __future__ import annotations

import subprocess
import sys


def test_a_scenario_on_a_small_scale() -> None:
    command = [sys.executable, "-m", "tests.bench", "--quick", "--markdown"]
    chosen = ["--peers", "sysup,bare C loop", "many_bulk", "rotation"]
    ran = subprocess.run([*command, *chosen], capture_output=True, text=True, timeout=500)
    assert ran.returncode == 0, ran.stderr
    tables = [
        [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
        for table in ran.stdout.strip().split("\n\n")
    ]
    assert [[row[0] for row in table[2:]] for table in tables] == [
        ["sysup", "*bare C loop*", "*bare C loop +1ms*"],
        ["sysup", "*bare C loop*"],
    ]
    for head, _, *rows in tables:
        for row in rows:
            figures = dict(zip(head, row, strict=True))
            assert [figures[name] for name in ("lost", "torn", "out of order")] == ["0"] * 3
            assert figures.get("cut", "0") == "0"


def test_what_a_status_takes() -> None:
    command = [sys.executable, "-m", "tests.bench", "--quick", "--markdown", "--peers", "sysup"]
    ran = subprocess.run([*command, "status"], capture_output=True, text=True, timeout=500)
    assert ran.returncode == 0, ran.stderr
    head, _, row = (line.strip("| ").split(" | ") for line in ran.stdout.strip().splitlines())
    assert (len(row), row[0]) == (len(head), "sysup")
    assert {"all p99 ms", "one p99 ms", "loop blocked ms"} <= {*head}
