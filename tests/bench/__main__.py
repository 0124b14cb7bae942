"""`make bench`: sysup and its peers, measured in the same run.

    python -m tests.bench [--quick] [--rounds N] [--peers NAME,...] [SCENARIO...]

circus and supervisord are installed into build/bench; daemontools, runit and s6 take part where
the system has them. The supervisors take turns, round by round, so that what disturbs the machine
disturbs all; printed are the medians over the rounds, and how many times worse than the
best supervisor each is. The bare C loop says what the machine could do. Absolute figures belong
to the day and the machine.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import signal
import statistics
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

from tests.bench.peers import (
    S6,
    Circus,
    Daemontools,
    Peer,
    Reference,
    Runit,
    Supervisord,
    Sysup,
)
from tests.bench.run import Missing
from tests.bench.scenarios import (
    MORE_IS_BETTER,
    NOT_COMPARED,
    QUICK,
    SCENARIOS,
    Figures,
    Scale,
    Tools,
)
from tests.e2e.harness import become_subreaper

HERE = Path(__file__).parent
BUILD = HERE.parents[1] / "build" / "bench"
PACKAGES = ("circus==0.19.0", "supervisor", "setuptools<81")
"""The last for supervisor, which may want its pkg_resources."""

Table = dict[str, list[Figures]]
"""Peer -> figures of each round."""


def compile_tools() -> Tools:
    """Build the C programs. Raises CalledProcessError when they do not compile."""
    BUILD.mkdir(parents=True, exist_ok=True)
    for name in ("child", "verify", "reference"):
        source, target = HERE / f"{name}.c", BUILD / name
        # Static: what a child does before its first instruction is not the supervisor's.
        options = ["-std=c17", "-D_GNU_SOURCE", "-O2", "-static"]
        subprocess.run(["gcc", *options, "-o", target, source], check=True)
    return Tools(BUILD / "child", BUILD / "verify")


def install_peers() -> Path:
    """Install the peers that are Python packages; returns where their programs are."""
    environment = BUILD / "venv"
    stamp = environment / ".ready"
    if not stamp.exists():
        print("installing", *PACKAGES[:2], file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", environment], check=True)
        subprocess.run([environment / "bin/pip", "install", "-q", *PACKAGES], check=True)
        stamp.touch()
    return environment / "bin"


def measure(
    peers: list[Peer], names: list[str], tools: Tools, scale: Scale, rounds: int
) -> dict[str, Table]:
    """All rounds of all scenarios; a supervisor that fails in one has no figures for it."""
    tables: dict[str, Table] = {}
    for name in names:
        table = tables[name] = defaultdict(list)
        taking_part = [peer for peer in peers if peer.one_log or name != "one_log"]
        for turn in range(rounds):
            for peer in taking_part:
                print(f"{name} {turn + 1}/{rounds} {peer.name}", file=sys.stderr)
                try:
                    table[peer.name].append(SCENARIOS[name](peer, tools, scale))
                except Missing as missing:
                    print(f"  {missing}", file=sys.stderr)
        show(name, table)
    return tables


def show(name: str, table: Table) -> None:
    """Print medians, and ratios to the best supervisor."""
    medians: dict[str, Figures] = {
        peer: {key: statistics.median(f[key] for f in rounds) for key in rounds[0]}
        for peer, rounds in table.items()
        if rounds
    }
    print(f"\n{name}: {SCENARIOS[name].__doc__}")
    for number, (peer, figures) in enumerate(medians.items()):
        if number == 0:
            print(f"{'':<12}" + "".join(f"{key:>21}" for key in figures))
        cells = (cell(key, value, best(key, medians)) for key, value in figures.items())
        print(f"{peer:<12}" + "".join(cells))
    print(flush=True)


def best(key: str, medians: dict[str, Figures]) -> float | None:
    """The best figure of any supervisor; None where none is better than another."""
    values = [f[key] for peer, f in medians.items() if peer != Reference.name]
    if key in NOT_COMPARED or not values:
        return None
    return max(values) if key in MORE_IS_BETTER else min(values)


def cell(key: str, value: float, best: float | None) -> str:
    """A figure and, in brackets, how many times worse than the best it is."""
    text = f"{value:,.0f}" if value == int(value) or value >= 1000 else f"{value:.3g}"
    ratio = ""
    if best and value:
        ratio = f"({best / value if key in MORE_IS_BETTER else value / best:.2f}x)"
    return f"{text:>11} {ratio:<9}"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Compare speeds.")
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=", ".join(SCENARIOS))
    parser.add_argument("--quick", action="store_true", help="a sanity pass, on a small scale")
    parser.add_argument("--rounds", type=int, help="(3; with --quick 1)")
    parser.add_argument("--peers", help="names, with commas between them")
    found = parser.parse_args()
    unknown = set(found.scenarios) - SCENARIOS.keys()
    if unknown:
        parser.error(f"no such scenario: {', '.join(sorted(unknown))}")
    return found


def main() -> int:
    args = arguments()
    become_subreaper()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that a run cleans up behind it
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    tools = compile_tools()
    programs = install_peers()
    known: list[Peer] = [
        Sysup(),
        Circus(programs),
        Supervisord(programs),
        Daemontools(),
        Runit(),
        S6(),
        Reference(BUILD),
    ]
    wanted = args.peers.split(",") if args.peers else [peer.name for peer in known]
    peers = [peer for peer in known if peer.found and peer.name in wanted]
    absent = [peer.name for peer in known if not peer.found and peer.name in wanted]
    if absent:
        print("not on this machine:", ", ".join(absent), file=sys.stderr)
    tables = measure(
        peers,
        args.scenarios or list(SCENARIOS),
        tools,
        QUICK if args.quick else Scale(),
        args.rounds or (1 if args.quick else 3),
    )
    result = BUILD / "results.json"
    result.write_text(json.dumps({"kernel": platform.release(), "figures": tables}, indent=1))
    print(f"all rounds are in {result}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
