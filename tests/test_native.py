"""The C code without Python, under the compilers' sanitizers.

Each tests/native/NAME.c is a program of its own: linked with all of _native, run without
arguments, it exits 0 when all it checks holds. All run under the address and undefined behaviour
sanitizers; those whose name begins with `stress` use threads and run under the thread sanitizer
as well. Those whose name begins with `fuzz` draw their input by chance, and here from libFuzzer,
which looks for what leads to code that was not reached before. crash_calls traces its processes,
thousands of them, and is run without sanitizers.
"""

from __future__ import annotations

import os
import platform
import runpy
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIBRARY = sorted(ROOT.glob("_native/*.c"))
CRASH_CALLS = ROOT / "tests/native/crash_calls.c"
PROGRAMS = sorted({*ROOT.glob("tests/native/*.c")} - {CRASH_CALLS})
WARNINGS: str = runpy.run_path(str(ROOT / "_native/build.py"))["WARNINGS"]

SANITIZERS = {
    "address": "-fsanitize=address,undefined -fno-sanitize-recover=all",
    "thread": "-fsanitize=thread",
}
NO_SANITIZER = "no"
OPTIONS = {
    "ASAN_OPTIONS": "detect_stack_use_after_return=1:strict_string_checks=1",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1:second_deadlock_stack=1",
}


def build(program: Path, sanitizer: str, directory: Path) -> Path:
    """Compile a test program with the library; returns the executable."""
    executable = directory / f"{program.stem}-{sanitizer}"
    flags = f"{WARNINGS} -Werror -O1 -g -fno-omit-frame-pointer -pthread"
    flags = f"{flags} {SANITIZERS.get(sanitizer, '')}"
    compiler = os.environ.get("CC", "gcc")
    sources = [str(path) for path in [program, *LIBRARY]]
    done = subprocess.run(
        [compiler, *shlex.split(flags), f"-I{ROOT / '_native'}", "-o", str(executable), *sources],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return executable


def run(executable: Path, directory: Path, *arguments: str) -> None:
    """Run a test program in a directory of its own; a sanitizer's report is a failure."""
    # Without randomised addresses: the thread sanitizer of gcc 12 refuses the wider
    # randomisation (vm.mmap_rnd_bits) that kernels since 6.6 are configured with.
    done = subprocess.run(
        ["setarch", platform.machine(), "--addr-no-randomize", str(executable), *arguments],
        cwd=directory,
        env={**os.environ, **OPTIONS},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=500,
    )
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}"


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.stem)
def test_memory(program: Path, tmp_path: Path) -> None:
    run(build(program, "address", tmp_path), tmp_path)


def test_children_beside_us(tmp_path: Path) -> None:
    """Under a sanitizer they don't run beside us, as it takes notes of the thread whose memory
    they have."""
    program = ROOT / "tests/native/spawn_test.c"
    run(build(program, NO_SANITIZER, tmp_path), tmp_path)


@pytest.mark.parametrize(
    "program",
    [p for p in PROGRAMS if p.stem.startswith("stress")],
    ids=lambda program: program.stem,
)
def test_threads(program: Path, tmp_path: Path) -> None:
    run(build(program, "thread", tmp_path), tmp_path)


@pytest.fixture(scope="module")
def crash_calls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(CRASH_CALLS, NO_SANITIZER, tmp_path_factory.mktemp("crash"))


@pytest.mark.parametrize(
    "place", ["common", "rotated", "selected", "entries", "runs", "lent", "terminals"]
)
def test_a_kill_at_each_call(place: str, crash_calls: Path, tmp_path: Path) -> None:
    run(crash_calls, tmp_path, place)


FUZZ_SECONDS = 10


@pytest.mark.skipif(not shutil.which("clang"), reason="libFuzzer comes with clang")
@pytest.mark.parametrize(
    "program",
    [p for p in PROGRAMS if p.stem.startswith("fuzz")],
    ids=lambda program: program.stem,
)
def test_any_input(program: Path, tmp_path: Path) -> None:
    """For FUZZ_SECONDS; what fails is printed in base64, to be kept as a test."""
    executable = tmp_path / program.stem
    flags = "-std=c17 -D_GNU_SOURCE -DLIBFUZZER -O1 -g -pthread -fsanitize=fuzzer,address,undefined"
    sources = [str(path) for path in [program, *LIBRARY]]
    subprocess.run(
        ["clang", *flags.split(), f"-I{ROOT / '_native'}", "-o", str(executable), *sources],
        check=True,
    )
    run(executable, tmp_path, f"-max_total_time={FUZZ_SECONDS}", "-max_len=600")


FAULTS = {
    "address": """
#include <stdlib.h>
int main(void) {
    volatile size_t size = 8;
    char *bytes = calloc(1, size);
    return bytes ? bytes[size] : 0;
}
""",
    "thread": """
#include <pthread.h>
static int n;
static void *count(void *unused) { n++; return unused; }
int main(void) {
    pthread_t thread;
    if (pthread_create(&thread, NULL, count, NULL)) return 0;
    n++;
    pthread_join(thread, NULL);
}
""",
}


@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_a_fault_is_found(sanitizer: str, tmp_path: Path) -> None:
    """The sanitizers work on this machine, and what they report fails a test."""
    program = tmp_path / "fault.c"
    program.write_text(FAULTS[sanitizer])
    executable = build(program, sanitizer, tmp_path)
    with pytest.raises(AssertionError, match=f"{sanitizer.capitalize()}Sanitizer"):
        run(executable, tmp_path)
