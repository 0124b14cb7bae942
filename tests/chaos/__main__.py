"""`make chaos`: a daemon that is killed, upgraded, stopped and hindered; what became of its app.

    python -m tests.chaos [--quick] [--seed N] [--kills N] [--children N] [--markdown] [SCENARIO...]

Each scenario has a machine of its own, with systemd as PID 1 (tests/lab). Children write numbered
lines; afterwards each line is looked for. The exit status is 1 if one is lost or torn, if a child
was started again, or something else is wrong; 2 if no machine can be had.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from tests.chaos.scenarios import SCENARIOS, run
from tests.chaos.stage import SHORT, Outcome, Scale
from tests.lab import Unavailable
from tests.system.tree import install

HEAD = (
    *("scenario", "kills", "lines", "lost", "torn", "doubled", "out of order"),
    *("children restarted or doubled", "seconds"),
)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=", ".join(SCENARIOS))
    parser.add_argument("--quick", action="store_true", help="on a small scale")
    parser.add_argument("--seed", type=int, help="of all chance (one at random)")
    parser.add_argument("--kills", type=int, help="of the daemon (200)")
    parser.add_argument("--upgrades", type=int, help="(50)")
    parser.add_argument("--children", type=int, help="(100)")
    parser.add_argument("--markdown", action="store_true", help="a table to be pasted")
    found = parser.parse_args()
    if unknown := set(found.scenarios) - SCENARIOS.keys():
        parser.error(f"no such scenario: {', '.join(sorted(unknown))}")
    return found


def scale_of(args: argparse.Namespace) -> Scale:
    """The scale, as far as it was said."""
    scale = SHORT if args.quick else Scale()
    said = {name: getattr(args, name) for name in ("kills", "upgrades", "children")}
    return replace(scale, **{name: number for name, number in said.items() if number})


def cells(name: str, outcome: Outcome, seconds: float) -> list[str]:
    """A row of the table."""
    tally = outcome.tally
    figures = (
        [tally.lines, tally.lost, tally.torn, tally.doubled, tally.disordered]
        if tally
        else ["-"] * 5
    )
    row = [name, outcome.kills, *figures, outcome.again, round(seconds)]
    return [f"{cell:,}" if isinstance(cell, int) else cell for cell in row]


def show(rows: list[list[str]], markdown: bool) -> None:
    """Print the table."""
    if markdown:
        print("|", " | ".join(HEAD), "|")
        print("|---" + "|---:" * (len(HEAD) - 1) + "|")
        for row in rows:
            print("|", " | ".join(row), "|")
        return
    widths = [max(map(len, column)) for column in zip(HEAD, *rows, strict=True)]
    for row in (list(HEAD), *rows):
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))


def main() -> int:
    args = arguments()
    seed = args.seed if args.seed is not None else random.SystemRandom().randrange(10**6)
    scale, rows, is_good = scale_of(args), [], True
    with tempfile.TemporaryDirectory(prefix="sysup-chaos-") as directory:
        tree = Path(directory, "tree")
        install(tree)
        for name in args.scenarios or SCENARIOS:
            print(f"{name} (seed {seed})", file=sys.stderr)
            began = time.monotonic()
            try:
                outcome = run(name, tree, scale, seed)
            except Unavailable as error:
                print(error, file=sys.stderr)
                return 2
            rows.append(cells(name, outcome, time.monotonic() - began))
            is_good = is_good and outcome.is_good
            for note in (*outcome.notes, *outcome.wrong):
                print(f"  {note}", file=sys.stderr)
            if outcome.tally and not outcome.is_good:
                told = [f"{outcome.tally.misnamed} misnamed", *outcome.tally.told[:20]]
                print("  " + "\n  ".join(told), file=sys.stderr)
    show(rows, args.markdown)
    print(f"\n{scale.children} children, seed {seed}: {'good' if is_good else 'NOT GOOD'}")
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
