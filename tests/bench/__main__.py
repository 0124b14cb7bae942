"""`make bench`: sysup and its peers, measured in the same run.

    python -m tests.bench [--quick] [--rounds N] [--peers NAME,...] [--markdown] [SCENARIO...]

Peers are got into build/bench, as far as pip, apt-get and npm can. They take turns, round by
round, so that what disturbs the machine disturbs all; printed are the medians over the rounds,
and how many times worse than the best of them each is. The bare C loop says what the machine
could do. `others' cores` is the processor time that others took meanwhile, the kernel's own
threads among them. Absolute figures belong to the day and the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import signal
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from tests.bench.install import BUILD, compile_tools, install_peers
from tests.bench.peers import Peer, Reference
from tests.bench.run import QUICK, Figures, Missing, Scale, Tools
from tests.bench.scenarios import MORE_IS_BETTER, NOT_COMPARED, SCENARIOS
from tests.e2e.harness import become_subreaper

Table = dict[str, list[Figures]]
"""Peer -> figures of each round."""


def measure(
    name: str, peers: list[Peer], tools: Tools, scale: Scale, rounds: int
) -> dict[str, list[Figures]]:
    """All rounds of a scenario; a peer that fails in one has no figures for it."""
    table: Table = defaultdict(list)
    for turn in range(rounds):
        for peer in peers:
            print(f"{name} {turn + 1}/{rounds} {peer.name}", file=sys.stderr)
            os.sync()  # or this peer waits for the disk that the one before has left to do
            busy, mine, began = busy_time(), own_time(), time.monotonic()
            try:
                figures = SCENARIOS[name].measure(peer, tools, scale)
            except Missing as missing:
                print(f"  {missing}", file=sys.stderr)
                continue
            others = (busy_time() - busy) - (own_time() - mine)
            figures["others' cores"] = max(0.0, others / (time.monotonic() - began))
            table[peer.name].append(figures)
    return table


def busy_time() -> float:
    """Seconds that the processors have worked."""
    user, nice, system, _, _, irq, soft = map(int, Path("/proc/stat").read_text().split()[1:8])
    return (user + nice + system + irq + soft) / os.sysconf("SC_CLK_TCK")


def own_time() -> float:
    """Of these, for this program and all that it has started and that has ended."""
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def show(title: str, table: Table, markdown: bool) -> None:
    """Print medians, and ratios to the best supervisor."""
    medians: dict[str, Figures] = {
        peer: {key: statistics.median(f[key] for f in rounds) for key in rounds[0]}
        for peer, rounds in table.items()
    }
    rows = list(cells(medians))
    if not rows:
        return
    keys = list(next(iter(medians.values())))
    print()
    if markdown:
        print("|", " | ".join([title, *keys]), "|")
        print("|---" + "|---:" * len(keys) + "|")
        for row in rows:
            print("|", " | ".join(row), "|")
    else:
        print(title)
        print(f"{'':<20}" + "".join(f"{key:>19}" for key in keys))
        for peer, *row in rows:
            print(f"{peer:<20}" + "".join(f"{text:>19}" for text in row))
    sys.stdout.flush()


def cells(medians: dict[str, Figures]) -> Iterator[list[str]]:
    """The rows of the table: the peer, then its figures as text."""
    for peer, figures in medians.items():
        name = f"*{peer}*" if peer.startswith(Reference.kind) else peer
        yield [name, *(cell(key, value, best(key, medians)) for key, value in figures.items())]


def best(key: str, medians: dict[str, Figures]) -> float | None:
    """The best figure of any supervisor; None where none is better than another."""
    values = [f[key] for peer, f in medians.items() if not peer.startswith(Reference.kind)]
    if key in NOT_COMPARED or not values:
        return None
    return max(values) if key in MORE_IS_BETTER else min(values)


def cell(key: str, value: float, best: float | None) -> str:
    """A figure and, in brackets, how many times worse than the best it is."""
    text = f"{value:,.0f}" if value == int(value) or value >= 1000 else f"{value:.3g}"
    if best is None or best <= 0 or value <= 0:
        return text
    return f"{text} ({best / value if key in MORE_IS_BETTER else value / best:.2f}x)"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Compare speeds.")
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=", ".join(SCENARIOS))
    parser.add_argument("--quick", action="store_true", help="a sanity pass, on a small scale")
    parser.add_argument("--rounds", type=int, help="(3; with --quick 1)")
    parser.add_argument("--peers", help="names or kinds (sysup, s6-log), with commas between them")
    parser.add_argument("--markdown", action="store_true", help="tables to be pasted")
    found = parser.parse_args()
    unknown = set(found.scenarios) - SCENARIOS.keys()
    if unknown:
        parser.error(f"no such scenario: {', '.join(sorted(unknown))}")
    return found


def choose(scenarios: list[str], wanted: str | None) -> dict[str, list[Peer]]:
    """The peers of each scenario, as far as they are wanted and can be had."""
    names = wanted and {name.strip() for name in wanted.split(",")}
    chosen = {
        scenario: [p for p in SCENARIOS[scenario].peers if not names or {p.name, p.kind} & names]
        for scenario in scenarios
    }
    everybody = [peer for peers in chosen.values() for peer in peers]
    install_peers(peer.install for peer in everybody)
    absent = {peer.kind for peer in everybody if not peer.found()}
    if absent:
        print("not to be had:", ", ".join(sorted(absent)), file=sys.stderr)
    return {name: [p for p in peers if p.kind not in absent] for name, peers in chosen.items()}


def main() -> int:
    args = arguments()
    become_subreaper()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that a run cleans up behind it
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    tools = compile_tools()
    rounds = args.rounds or (1 if args.quick else 3)
    tables: dict[str, Table] = {}
    for name, peers in choose(args.scenarios or list(SCENARIOS), args.peers).items():
        tables[name] = measure(name, peers, tools, QUICK if args.quick else Scale(), rounds)
        title = SCENARIOS[name].title + (" (on a small scale)" if args.quick else "")
        show(title, tables[name], args.markdown)
    if not args.quick:
        result = BUILD / "results.json"
        result.write_text(json.dumps({"kernel": platform.release(), "figures": tables}, indent=1))
        print(f"\nall rounds are in {result}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
