"""The pump beside the bare C loop (pump_reference.c), in one run: python -m tests.bench.pump

Children write lines of 100 bytes into pipes; the pump, and the loop, read them into one
file. Printed: MB/s from the start of the children to the last byte in the file, and CPU
seconds a GB of the reading process alone. Compare rows of one run only.
"""

from __future__ import annotations

import argparse
import ast
import os
import resource
import select
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from sysup.config import StreamSpec
from sysup.streams import Pump, Sink, open_sink

HERE = Path(__file__).parent
LINE = 100
STAMP = {"time_format": "%Y-%m-%d %H:%M:%S"}
ROTATION = {"max_bytes": 10_000_000, "backup_count": 30}


@dataclass(frozen=True)
class Case:
    """So many children, each so many lines, in writes of `chunk` bytes (0: a line each)."""

    name: str
    children: int
    lines: int
    chunk: int


CASES = (
    Case("1 child, 200 MB, 4 KiB writes", 1, 2_000_000, 4096),
    Case("1 child, 200 MB, a write a line", 1, 2_000_000, 0),
    Case("100 children x 20,000 lines, a write a line", 100, 20_000, 0),
    Case("100 children x 20,000 lines, 4 KiB writes", 100, 20_000, 4096),
)


def read_out(log: str, options: dict[str, object], fds: list[int]) -> None:
    """What the measured process does; prints what pump_reference.c prints."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    pump = Pump()
    sink = open_sink(pump, StreamSpec("FileStream", {"filename": log, **options}), "stdout")
    assert isinstance(sink, Sink)
    for fd in fds:
        pump.add(fd, fd, sink, tail=2048)
    sink.close()
    while pump.places:
        select.select([pump], [], [])
        pump.dispatch()
    now = time.monotonic()
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"{now:.6f} {cpu:.6f}")
    pump.stop(1)


def compile_c(name: str, directory: Path) -> str:
    """Build a program of this directory; returns its path."""
    program = directory / name
    source = HERE / f"{name}.c"
    subprocess.run(["gcc", "-O2", "-D_GNU_SOURCE", "-o", program, source], check=True)
    return str(program)


def measure(case: Case, writer: str, reader: list[str], directory: Path) -> tuple[float, float]:
    """MB/s and CPU seconds a GB of `reader`, which gets the pipes' numbers as arguments."""
    gate, opened = os.pipe()
    pipes = [os.pipe() for _ in range(case.children)]
    arguments = [str(case.lines), str(case.chunk)]
    writers = [
        subprocess.Popen([writer, f"w{n}", *arguments], stdin=gate, stdout=end)
        for n, (_, end) in enumerate(pipes)
    ]
    fds = [begin for begin, _ in pipes]
    reading = subprocess.Popen(
        [*reader, *map(str, fds)], pass_fds=fds, stdout=subprocess.PIPE, text=True
    )
    for pair in pipes:
        os.close(pair[0])
        os.close(pair[1])
    os.close(gate)
    time.sleep(0.5)  # until the reader is ready, however long Python takes to start
    begun = time.monotonic()
    os.close(opened)
    output, _ = reading.communicate()
    for process in writers:
        process.wait()
    ended, cpu = map(float, output.split())
    logs = list(directory.glob("log*"))
    written = sum(log.stat().st_size for log in logs)
    expected = case.children * case.lines * LINE
    if not {"time_format"} & set(" ".join(reader).split("'")) and written != expected:
        raise SystemExit(f"{case.name}: {written} bytes of {expected} arrived")
    for log in logs:
        log.unlink()
    return expected / (ended - begun) / 1e6, cpu / expected * 1e9


def readers(reference: str, log: str) -> dict[str, list[str]]:
    """The programs that are compared."""
    pump = [sys.executable, "-m", "tests.bench.pump", "--read", log]
    return {
        "C loop": [reference, log, "0"],
        "C loop, pause 1 ms": [reference, log, "1000"],
        "pump": [*pump, "{}"],
        "pump, rotation": [*pump, repr(ROTATION)],
        "pump, stamps": [*pump, repr(STAMP)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--read", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.read:
        log, options, *fds = arguments.read
        read_out(log, ast.literal_eval(options), [int(fd) for fd in fds])
        return
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        writer, reference = (compile_c(name, directory) for name in ("writer", "pump_reference"))
        compared = readers(reference, str(directory / "log"))
        for case in CASES:
            results: dict[str, list[tuple[float, float]]] = {name: [] for name in compared}
            for _ in range(arguments.runs):
                for name, reader in compared.items():
                    results[name].append(measure(case, writer, reader, directory))
            print(f"\n{case.name:45}     MB/s  CPU-s/GB")
            for name, figures in results.items():
                speed, cpu = (statistics.median(column) for column in zip(*figures, strict=True))
                print(f"  {name:43} {speed:8.1f}  {cpu:8.2f}", flush=True)


if __name__ == "__main__":
    main()
