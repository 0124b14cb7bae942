"""A virtual machine, as its test sees it: a systemd on a Linux of its own, all of it emulated.

with image.resume() as machine:
    machine.run(["systemctl", "start", "sysup@shop"])
    machine.journal("-u", "sysup@shop")

It shows what a container cannot: controllers of cgroups, another kernel. It is some ten times
slower than this machine is.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.lab.keeper import die_with

PATIENCE = 120.0
SLACK = 30.0
"""Seconds by which an answer may be late, though a command that is, is ended in there."""
QEMU = "qemu-system-x86_64"
KERNEL, INITRD, DISK, MEMORY = "kernel", "initrd", "disk", "memory"
"""Files of an image."""
OPTIONS = (
    *("-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max"),
    *("-smp", "2", "-m", "768", "-nodefaults", "-nographic", "-no-reboot"),
    *("-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"),
    *("-device", "virtio-rng-pci", "-device", "virtio-serial-pci"),
    *("-device", "virtserialport,chardev=agent,nr=1", "-mon", "chardev=monitor,mode=control"),
    *("-device", "virtio-blk-pci,drive=disk"),
)
"""What it is made of; the same when it is saved and when it is resumed."""
PORT = "/dev/vport1p1"
"""Where its agent finds the other end of our channel."""
APPEND = (
    "console=ttyS0 panic=-1 quiet mitigations=off systemd.show_status=0 cryptomgr.notests"
    " no_timer_check tsc=reliable random.trust_cpu=on"
)


class Broken(Exception):
    """The machine has ended, or does not answer; says what its console said last."""


class Vm:
    """One that runs; a context, at whose end nothing of it is left.

    Its only files are open ones without a name, and it dies with the thread that made it.

    Attributes:
        pid: of QEMU.
        image: what it was made of.

    Args:
        image: a directory with KERNEL, INITRD and DISK, and MEMORY to resume it.
        resume: go on where the image was saved, on a copy of its disk; else boot from the disk,
            and write to it.
    """

    def __init__(self, image: Path, *, resume: bool) -> None:
        self.image = image
        with ExitStack() as ours, ExitStack() as theirs:
            self._channel, there = socket.socketpair()
            ours.enter_context(self._channel)
            theirs.enter_context(there)
            self._monitor, far = socket.socketpair()
            ours.enter_context(self._monitor)
            theirs.enter_context(far)
            self._console = ours.enter_context(tempfile.TemporaryFile())
            snapshot = "on" if resume else "off"
            drive = f"if=none,id=disk,cache=unsafe,format=raw,file={DISK},snapshot={snapshot}"
            self._process = subprocess.Popen(
                [
                    *(QEMU, "-kernel", KERNEL, "-initrd", INITRD, "-append", APPEND),
                    *("-drive", drive),
                    *("-chardev", f"socket,id=agent,fd={there.fileno()}"),
                    *("-chardev", f"socket,id=monitor,fd={far.fileno()}"),
                    *OPTIONS,
                    *(("-incoming", f"exec:cat {MEMORY}") if resume else ()),
                ],
                cwd=image,
                stdin=subprocess.DEVNULL,
                stdout=self._console,
                stderr=self._console,
                pass_fds=[there.fileno(), far.fileno()],
                start_new_session=True,  # a Ctrl-C is for the tests
                preexec_fn=die_with(os.getpid()),
            )
            self.pid = self._process.pid
            self._ours = ours.pop_all()
        self._answers = self._ours.enter_context(self._channel.makefile("rb"))

    def __enter__(self) -> Vm:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Pull its plug."""
        self._process.kill()
        self._process.wait()
        self._ours.close()

    def run(
        self,
        command: Sequence[str],
        *,
        check: bool = True,
        input: str | bytes | None = None,
        timeout: float = PATIENCE,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside, as root, outside of all units; by default it must succeed."""
        data = input.encode() if isinstance(input, str) else input or b""
        request = {"command": list(command), "input": len(data), "timeout": timeout}
        self._channel.settimeout(timeout + SLACK)
        try:
            self._channel.sendall(json.dumps(request).encode() + b"\n" + data)
            answer = json.loads(self._answers.readline())
            out = self._answers.read(answer["out"]).decode()
            err = self._answers.read(answer["err"]).decode()
        except (OSError, ValueError) as error:
            raise Broken(f"{' '.join(command)}: {error or 'no answer'}\n{self.console()}") from None
        status = answer["status"]
        if status is None:
            raise subprocess.TimeoutExpired(command, timeout, out, err)
        if check and status:
            raise AssertionError(f"{' '.join(command)}: exit {status}\n{out}{err}")
        code = status if status >= 0 else 128 - status
        return subprocess.CompletedProcess(command, code, out, err)

    def write(self, inside: str, text: str) -> None:
        """Write a file, and make its directory."""
        self.run(["sh", "-c", 'mkdir -p "${0%/*}" && cat >"$0"', inside], input=text)

    def lay(self, tree: Path) -> None:
        """Lay the files of a tree of ours over those of the machine."""
        packed = subprocess.run(
            ["tar", "--directory", str(tree), "--create", "."], capture_output=True, check=True
        )
        self.run(
            ["tar", "--directory", "/", "--extract", "--no-overwrite-dir"], input=packed.stdout
        )

    def pids(self, command: str) -> set[int]:
        """Processes of the machine, by their command line."""
        found = self.run(["pgrep", "--full", "--exact", command], check=False)
        return {int(line) for line in found.stdout.split()}

    def journal(self, *match: str) -> str:
        """The messages of all entries that match, as journalctl(1) has it: `-u UNIT`, A=B."""
        self.run(["journalctl", "--sync"])
        return self.run(["journalctl", "--quiet", "--output=cat", *match]).stdout

    def console(self) -> str:
        """What it said last before it had a journal, or QEMU of itself."""
        self._console.seek(0)
        return self._console.read()[-3000:].decode(errors="replace")

    def save(self) -> None:
        """Write what it is in the middle of to its image, to be resumed there; it ends."""
        self._channel.settimeout(PATIENCE)
        with self._monitor.makefile("rw") as monitor:
            monitor.readline()  # a greeting

            def ask(name: str, **arguments: Any) -> dict[str, Any]:
                monitor.write(json.dumps({"execute": name, "arguments": arguments}) + "\n")
                monitor.flush()
                while True:
                    answer: dict[str, Any] = json.loads(monitor.readline())
                    if "error" in answer:
                        raise Broken(f"{name}: {answer['error']}")
                    if "return" in answer:
                        return answer["return"] or {}

            ask("qmp_capabilities")
            ask("migrate-set-parameters", **{"max-bandwidth": 1 << 40})
            ask("migrate", uri=f"exec:cat >{MEMORY}")
            while (status := ask("query-migrate").get("status")) != "completed":
                if status in ("failed", "cancelled"):
                    raise Broken(f"cannot be saved: {status}\n{self.console()}")
            ask("quit")
        self._process.wait(PATIENCE)
