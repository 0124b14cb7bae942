"""The virtual machine that tests resume, made once and kept in the user's cache.

It has the file system of the containers on a disk, and that Debian's kernel. It was booted, and
saved as soon as it was up: to boot it takes ten times as long as to go on from there.
"""

from __future__ import annotations

import lzma
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from tests.lab import rootfs
from tests.lab.container import Unavailable
from tests.lab.rootfs import CannotBuild
from tests.lab.vm import APPEND, DISK, INITRD, KERNEL, OPTIONS, PORT, QEMU, Broken, Vm

AGENT = Path(__file__).with_name("agent.py")
BOOT_WITHIN = 300.0
MODULES = (
    *("virtio_ring", "virtio", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_pci"),
    *("virtio_blk", "virtio_console"),
)
"""What the kernel needs to find its disk and our channel, in this order, and may have built in."""
FETCH = """set -e
export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
cd "$1"
depends=$(apt-cache depends linux-image-cloud-amd64)
mkdir fetched && cd fetched
apt-get -qq download ${depends##*Depends: } busybox-static
for package in *.deb; do dpkg-deb --extract "$package" .; done
"""
INIT = f"""#!/bin/busybox sh
b=/bin/busybox
$b mount -t devtmpfs dev /dev
for module in {" ".join(MODULES)}; do [ ! -e /$module.ko ] || $b insmod /$module.ko; done
until [ -b /dev/vda ]; do $b sleep 0.05; done
$b mount -t ext4 /dev/vda /mnt || $b poweroff -f
exec $b switch_root /mnt /sbin/init
"""
SERVICE = f"""[Unit]
Description=Runs the commands of a test
[Service]
ExecStart=/usr/bin/python3 -IS /usr/local/lib/lab-agent {PORT}
Environment=HOME=/root LANG=C.UTF-8 PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin
KillMode=process
TimeoutStopSec=1
"""
MASKED = (
    *("getty@.service", "serial-getty@.service", "modprobe@.service", "systemd-udevd.service"),
    *("systemd-udevd-control.socket", "systemd-udevd-kernel.socket", "systemd-pstore.service"),
    *("systemd-udev-trigger.service", "kmod-static-nodes.service", "dev-hugepages.mount"),
    *("sys-kernel-debug.mount", "sys-kernel-tracing.mount", "sys-kernel-config.mount"),
    *("sys-fs-fuse-connections.mount", "proc-sys-fs-binfmt_misc.automount", "dev-mqueue.mount"),
    *("systemd-modules-load.service", "systemd-update-utmp.service"),
    *("systemd-update-utmp-runlevel.service", "systemd-ask-password-wall.path"),
    *("systemd-ask-password-console.path",),
)
"""What takes long to start, and is for hardware and for people."""
WARM_UP = "import _cffi_backend, asyncio, click, ctypes, json, logging, sdnotify, zmq"
"""What is better in its memory already when it is resumed."""
SIZE = "2G"


def resume() -> Vm:
    """The machine as it was saved; the image is made if it is not there as it should be.

    Raises Unavailable.
    """
    try:
        with rootfs.kept(f"vm-{rootfs.SUITE}", recipe(), _build) as image:
            machine = Vm(image, resume=True)
            try:
                machine.run(["date", "--set", datetime.now(UTC).isoformat()])
            except BaseException:
                machine.close()
                raise
    except (CannotBuild, Broken) as error:
        raise Unavailable(f"there is no virtual machine: {error}") from None
    return machine


def recipe() -> str:
    """All that it depends on. Raises CannotBuild where none can be had."""
    if platform.machine() != "x86_64":
        raise CannotBuild("it would be one of x86-64, and this machine is not")
    if os.geteuid() != 0:
        raise CannotBuild("only root can make its disk")
    for program in (QEMU, "mkfs.ext4"):
        if shutil.which(program) is None:
            raise CannotBuild(f"there is no {program}")
    version = subprocess.run([QEMU, "--version"], capture_output=True, text=True, check=True)
    texts = [FETCH, INIT, SERVICE, *MASKED, WARM_UP, SIZE, APPEND, *OPTIONS, AGENT.read_text()]
    return "\n".join([rootfs.recipe(), version.stdout, *texts])


def _build(image: Path) -> None:
    image.mkdir()
    try:
        _fetch(image)
        _make_disk(rootfs.rootfs(), image)
        with Vm(image, resume=False) as machine:
            machine.run(["systemctl", "is-system-running", "--wait"], timeout=BOOT_WITHIN)
            machine.run(["python3", "-c", WARM_UP])
            machine.run(["sync"])
            machine.save()
    except (subprocess.CalledProcessError, Broken, AssertionError) as error:
        said = error.stderr if isinstance(error, subprocess.CalledProcessError) else error
        raise CannotBuild(f"to make one failed: {said}") from None


def _fetch(image: Path) -> None:
    """Put the kernel into the image, and with what it begins."""
    system = image / "system"
    rootfs.mmdebstrap(system, rootfs.SUITE, "--variant=custom", f"--customize-hook={FETCH}")
    fetched = system / "fetched"
    (kernel,) = fetched.glob("boot/vmlinuz-*")
    (busybox,) = fetched.glob("**/bin/busybox")
    kernel.rename(image / KERNEL)
    files = {"init": INIT.encode(), "bin/busybox": busybox.read_bytes()}
    for name in MODULES:
        for module in fetched.glob(f"**/lib/modules/*/kernel/**/{name}.ko*"):
            content = module.read_bytes()
            files[f"{name}.ko"] = lzma.decompress(content) if module.suffix == ".xz" else content
    (image / INITRD).write_bytes(b"".join(_archive(["bin", "dev", "mnt"], files)))
    shutil.rmtree(system)


def _archive(directories: list[str], files: dict[str, bytes]) -> Iterator[bytes]:
    """A cpio archive of the kind that the kernel reads (its buffer-format.rst)."""
    members = [(name, 0o040755, b"") for name in directories]
    members += [(name, 0o100755, data) for name, data in files.items()]
    for number, (name, mode, data) in enumerate([*members, ("TRAILER!!!", 0, b"")], 1):
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
        head = b"070701" + b"".join(b"%08x" % field for field in fields) + name.encode() + b"\0"
        for part in (head, data):
            yield part + bytes(-len(part) % 4)


def _make_disk(tree: Path, image: Path) -> None:
    """A file system with the tree, the agent, and without what a test does not need."""
    added, root = image / "added", image / "root"
    units = added / "etc/systemd/system"
    (units / "multi-user.target.wants").mkdir(parents=True)
    (units / "lab-agent.service").write_text(SERVICE)
    (units / "multi-user.target.wants/lab-agent.service").symlink_to("../lab-agent.service")
    for unit in MASKED:
        (units / unit).symlink_to("/dev/null")
    generators = added / "etc/systemd/system-generators"
    generators.mkdir()
    for generator in (tree / "usr/lib/systemd/system-generators").iterdir():
        (generators / generator.name).symlink_to("/dev/null")
    (added / "usr/local/lib").mkdir(parents=True)
    shutil.copy(AGENT, added / "usr/local/lib/lab-agent")
    root.mkdir()
    script = (
        f'mount -t overlay overlay -o "lowerdir=$1:$2" "$3" && truncate --size={SIZE} "$4" &&'
        ' mkfs.ext4 -q -F -O ^has_journal -d "$3" "$4"'
    )
    paths = [str(path) for path in (added, tree, root, image / DISK)]
    subprocess.run(
        ["unshare", "--mount", "sh", "-ec", script, "sh", *paths],
        capture_output=True,
        text=True,
        check=True,
    )
    shutil.rmtree(added)
    root.rmdir()
