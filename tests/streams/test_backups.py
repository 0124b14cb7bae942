"""What becomes of rotated files: how many stay, what is compressed, what is left alone."""

from __future__ import annotations

import contextlib
import errno
import gzip
import itertools
import os
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from sysup.streams import backups, packing
from sysup.streams.backups import Job, Keeper, available

PATIENCE = 60.0
TIME = 1_700_000_000


class Office:
    """A keeper, one log, and what was told."""

    def __init__(self, directory: Path) -> None:
        self.keeper = Keeper()
        self.live = directory / "web.log"
        self.told: SimpleQueue[str | None] = SimpleQueue()
        self.lock = threading.Lock()

    def job(
        self,
        backup_count: int = 5,
        *,
        stamped: bool = False,
        compress: str | None = None,
        fsync: bool = False,
    ) -> Job:
        return Job(
            str(self.live), backup_count, stamped, compress, fsync, lambda: self.lock, self.told.put
        )

    def tend(self, job: Job) -> str | None:
        self.keeper.tend(job)
        return self.told.get(timeout=PATIENCE)

    def put(self, suffix: str, text: str = "", age: int = 0) -> Path:
        path = Path(f"{self.live}{suffix}")
        path.write_text(text or suffix)
        os.utime(path, (TIME - age, TIME - age))
        return path

    def names(self) -> set[str]:
        """The ends of the names of all files that are there."""
        return {name.removeprefix(self.live.name) for name in os.listdir(self.live.parent)}


@contextlib.contextmanager
def office_in(directory: Path) -> Iterator[Office]:
    office = Office(directory)
    yield office
    assert office.keeper.close(PATIENCE)


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    before = len(os.listdir("/proc/self/fd")), threading.active_count()
    with office_in(tmp_path) as office:
        yield office
    assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == before


def unpack(path: Path) -> bytes:
    """By the libraries' own readers, which check the sums."""
    if path.suffix == ".gz":
        return gzip.decompress(path.read_bytes())
    return zstandard.ZstdDecompressor().decompressobj().decompress(path.read_bytes())


compressed = pytest.mark.parametrize(("method", "ending"), packing.ENDINGS.items())


class Gate:
    """Stops the compression at its first chunk, until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached = threading.Event()
        self._open = threading.Event()
        self._real = packing.pack
        monkeypatch.setattr(backups, "pack", self._pack)

    def _pack(
        self, source: int, target: int, method: str, mtime: float, go_on: Callable[[], None]
    ) -> None:
        self.reached.set()
        assert self._open.wait(PATIENCE)
        self._real(source, target, method, mtime, go_on)

    def wait(self) -> None:
        assert self.reached.wait(PATIENCE)

    def open(self) -> None:
        self._open.set()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(monkeypatch)


# ---- how many stay -----------------------------------------------------------------------

endings = st.sampled_from(["", ".gz", ".zst"])
stamps = st.builds(
    "{}{}".format,
    st.sampled_from(["20240517", "20240518", "2024051710", "20240517102030"]),
    st.sampled_from(["", "-1", "-12"]),
)
strangers = st.sampled_from(
    (
        *("", ".0", ".01", ".1.bak", ".-1", ".1\n", ".2024-05-17", ".1.gz.gz", ".gz", ".٣", "-1"),
        *(".2024517", ".202405171", ".20240517-", ".20240517.xz", ".x", "x.1"),
    )
)


@settings(deadline=None)
@given(st.sets(st.tuples(st.integers(1, 12), endings)), st.sets(strangers), st.integers(0, 8))
def test_numbered_ones_above_the_count_go(
    there: set[tuple[int, str]], others: set[str], count: int
) -> None:
    with tempfile.TemporaryDirectory() as directory, office_in(Path(directory)) as office:
        for suffix in others | {f".{number}{ending}" for number, ending in there}:
            office.put(suffix)
        assert office.tend(office.job(count)) is None
        kept = {f".{number}{ending}" for number, ending in there if not 0 < count < number}
        assert office.names() == kept | others


@settings(deadline=None)
@given(
    st.dictionaries(st.tuples(stamps, endings), st.integers(0, 10**6), max_size=12),
    st.sets(strangers),
    st.integers(0, 8),
)
def test_the_newest_stamped_ones_stay(
    there: dict[tuple[str, str], int], others: set[str], count: int
) -> None:
    with tempfile.TemporaryDirectory() as directory, office_in(Path(directory)) as office:
        for (stamp, ending), age in there.items():
            office.put(f".{stamp}{ending}", age=age)
        for suffix in others | {".1", ".2.gz"}:
            office.put(suffix)
        assert office.tend(office.job(count, stamped=True)) is None
        youngest: dict[str, int] = {}
        for (stamp, _), age in there.items():
            youngest[stamp] = min(age, youngest.get(stamp, age))
        left = {name[1:] for name in office.names() - others - {".1", ".2.gz"}}
        kept = {stamp for stamp in youngest if {stamp + end for end in ("", ".gz", ".zst")} & left}
        assert left == {stamp + ending for stamp, ending in there if stamp in kept}
        assert len(kept) == min(count or len(youngest), len(youngest))
        gone = youngest.keys() - kept
        assert max((youngest[stamp] for stamp in kept), default=0) <= min(
            (youngest[stamp] for stamp in gone), default=10**6
        )
        assert others <= office.names()


# ---- compression -------------------------------------------------------------------------


@compressed
@pytest.mark.parametrize("fsync", [False, True])
def test_compressed_files_are_the_same(
    office: Office, method: str, ending: str, fsync: bool
) -> None:
    path = office.put(".1", "x" * 3_000_000 + os.urandom(2_000_000).hex())
    content, mtime = path.read_bytes(), TIME * 10**9 + 123_456_789
    path.chmod(0o4640)
    if os.geteuid() == 0:
        os.chown(path, 1234, 2345)
    os.utime(path, ns=(mtime, mtime))
    before = path.stat()
    office.put("", "live")
    assert office.tend(office.job(compress=method, fsync=fsync)) is None
    assert office.names() == {"", f".1{ending}"}
    after = Path(f"{path}{ending}").stat()
    assert unpack(Path(f"{path}{ending}")) == content
    assert (after.st_uid, after.st_gid) == (before.st_uid, before.st_gid)
    assert after.st_mtime_ns == mtime
    assert after.st_mode & 0o7777 == 0o640
    assert office.live.read_text() == "live"


@compressed
def test_an_empty_file(office: Office, method: str, ending: str) -> None:
    office.put(".20240517").write_bytes(b"")
    assert office.tend(office.job(stamped=True, compress=method)) is None
    assert unpack(Path(f"{office.live}.20240517{ending}")) == b""


def test_the_header_of_gzip_has_the_time_and_no_name(office: Office) -> None:
    office.put(".1")
    office.tend(office.job(compress="gzip"))
    header = Path(f"{office.live}.1.gz").read_bytes()[:8]
    assert struct.unpack("<2sBBI", header) == (b"\x1f\x8b", 8, 0, TIME)


def test_only_what_stays_is_compressed_and_the_newest_last(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []

    def pack(source: int, *_: object) -> None:
        order.append(os.path.basename(os.readlink(f"/proc/self/fd/{source}")))

    monkeypatch.setattr(backups, "pack", pack)
    for number in (1, 2, 3, 10, 11, 12):
        office.put(f".{number}")
    office.put(".4.zst")
    assert office.tend(office.job(11, compress="gzip")) is None
    assert order == [f"web.log.{number}" for number in (11, 10, 3, 2, 1)]
    order.clear()
    for age, stamp in enumerate(["20240519", "20240517", "20240518"]):
        office.put(f".{stamp}", age=age)
    assert office.tend(office.job(2, stamped=True, compress="gzip")) is None
    assert order == ["web.log.20240517", "web.log.20240519"]


def test_without_zstandard(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("zstandard", "compression"):
        monkeypatch.setitem(sys.modules, module, None)
    office.put(".1")
    office.put(".6")
    missing = "zstandard is not installed (apt install python3-zstandard)"
    assert available("zstd") == missing
    assert office.tend(office.job(compress="zstd")) == f"cannot compress {office.live}: {missing}"
    assert office.names() == {".1"}


def test_available() -> None:
    assert [available(method) for method in (None, "gzip", "zstd")] == [None] * 3


# ---- while the pump goes on --------------------------------------------------------------


def test_a_file_that_is_shifted_meanwhile(office: Office, gate: Gate) -> None:
    office.put(".1", "old")
    office.keeper.tend(office.job(compress="gzip"))
    gate.wait()
    with office.lock:
        os.rename(f"{office.live}.1", f"{office.live}.2")
        office.put(".1", "new")
    gate.open()
    assert office.told.get(timeout=PATIENCE) is None
    assert office.names() == {".1", ".2.gz"}
    assert unpack(Path(f"{office.live}.2.gz")) == b"old"


def test_a_file_that_is_dropped_meanwhile(office: Office, gate: Gate) -> None:
    path = office.put(".5", "old")
    office.keeper.tend(office.job(compress="gzip"))
    gate.wait()
    with office.lock:
        path.unlink()
        office.put(".5", "new")
    gate.open()
    assert office.told.get(timeout=PATIENCE) is None
    assert office.names() == {".5"}
    assert path.read_text() == "new"


def test_a_file_that_somebody_still_writes_to(office: Office, gate: Gate) -> None:
    path = office.put(".1", "old")
    office.keeper.tend(office.job(compress="gzip"))
    gate.wait()
    with path.open("a") as file:
        file.write(", more")
    gate.open()
    busy = f"cannot compress {path}: somebody still writes to it"
    assert office.told.get(timeout=PATIENCE) == busy
    assert office.names() == {".1"}
    assert office.tend(office.job(compress="gzip")) is None
    assert unpack(Path(f"{path}.gz")) == b"old, more"


@compressed
def test_rotation_all_the_while(office: Office, method: str, ending: str) -> None:
    """A thread rotates as the pump does; whatever remains is whole, and in order."""
    count, rotations = 7, 150

    def shift() -> None:
        for number, end in itertools.product(range(count, 0, -1), ("", ending)):
            source = Path(f"{office.live}.{number}{end}")
            if source.exists():
                if number == count:
                    source.unlink()
                else:
                    source.rename(f"{office.live}.{number + 1}{end}")
        office.live.rename(f"{office.live}.1")

    job = office.job(count, compress=method)
    for rotation in range(rotations):
        office.put("", f"{rotation} " * 20_000)
        with office.lock:
            shift()
        office.keeper.tend(job)
    reasons = {office.told.get(timeout=PATIENCE) for _ in range(rotations)}
    assert reasons == {None}
    assert office.names() == {f".{number}{ending}" for number in range(1, count + 1)}
    for number in range(1, count + 1):
        content = unpack(Path(f"{office.live}.{number}{ending}"))
        assert content == b"%d " % (rotations - number) * 20_000


# ---- what a crash left, and what others put there ----------------------------------------


def test_what_a_crash_left_is_removed(office: Office) -> None:
    ours = office.live.with_name(".web.log.0123abcd.sysup")
    ours.touch()
    others = [".web.log.0123abcd", ".web.log.0123abcde.sysup", ".x.log.0123abcd.sysup"]
    for name in others:
        office.live.with_name(name).touch()
    link = office.live.with_name(".web.log.ffffffff.sysup")
    link.symlink_to("/nowhere")
    assert office.tend(office.job()) is None
    assert set(os.listdir(office.live.parent)) == {*others, link.name}


def test_a_crash_before_the_original_was_removed(office: Office) -> None:
    office.put(".1", "content")
    office.put(".1.gz", "perhaps not yet on the disk")
    assert office.tend(office.job(compress="gzip")) is None
    assert office.names() == {".1.gz"}
    assert unpack(Path(f"{office.live}.1.gz")) == b"content"


@pytest.mark.parametrize("kind", ["file", "link", "directory"])
def test_what_is_in_the_way_stays(office: Office, kind: str) -> None:
    path = office.put(".1", "new")
    obstacle = Path(f"{path}.gz")
    if kind == "file":
        office.put(".1.gz", "old", age=60)
    elif kind == "link":
        obstacle.symlink_to("/dev/null")
    else:
        obstacle.mkdir()
    told = office.tend(office.job(compress="gzip"))
    assert told == f"cannot compress {path}: web.log.1.gz is in the way"
    assert office.names() == {".1", ".1.gz"}


def test_links_and_others_are_no_backups(office: Office, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("secret")
    for number in (1, 7):
        Path(f"{office.live}.{number}").symlink_to(victim)
    os.mkfifo(f"{office.live}.2")
    Path(f"{office.live}.8").mkdir()
    assert office.tend(office.job(compress="gzip", fsync=True)) is None
    assert office.names() == {".1", ".2", ".7", ".8", "victim"}
    assert victim.read_text() == "secret"


def test_a_link_that_is_put_in_place_of_a_backup(
    office: Office, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("secret")
    path = office.put(".1")
    real = backups._Folder.read

    def read(folder: backups._Folder, name: str) -> int:
        path.unlink()
        path.symlink_to(victim)
        return real(folder, name)

    monkeypatch.setattr(backups._Folder, "read", read)
    told = office.tend(office.job(compress="gzip"))
    assert told == f"cannot compress {path}: {os.strerror(errno.ELOOP)}"
    assert office.names() == {".1", "victim"}


def test_a_directory_that_is_swapped_meanwhile(office: Office, tmp_path: Path, gate: Gate) -> None:
    directory, victim = tmp_path / "logs", tmp_path / "victim"
    directory.mkdir()
    victim.mkdir()
    office.live = directory / "web.log"
    office.put(".1", "ours")
    office.keeper.tend(office.job(compress="gzip"))
    gate.wait()
    directory.rename(tmp_path / "moved")
    directory.symlink_to(victim)
    office.put(".1", "theirs")
    gate.open()
    assert office.told.get(timeout=PATIENCE) is None
    assert os.listdir(tmp_path / "moved") == ["web.log.1.gz"]
    assert os.listdir(victim) == ["web.log.1"]


# ---- failures ----------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a megabyte."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk is up to root")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", disk], check=True)
    yield disk
    subprocess.run(["umount", disk], check=True)


@compressed
def test_a_full_disk(small_disk: Path, method: str, ending: str) -> None:
    with office_in(small_disk) as office:
        contents = [os.urandom(250_000), os.urandom(300_000)]
        for number, content in enumerate(contents, 1):
            office.put(f".{number}").write_bytes(content)
        ballast = small_disk / "ballast"
        ballast.write_bytes(b"x" * 300_000)
        job = office.job(compress=method)
        full = f"cannot compress {office.live}.2: No space left on device"
        assert office.tend(job) == full
        assert office.names() == {".1", ".2", "ballast"}
        ballast.unlink()
        assert office.tend(job) is None
        assert office.names() == {f".1{ending}", f".2{ending}"}
        for number, content in enumerate(contents, 1):
            assert unpack(Path(f"{office.live}.{number}{ending}")) == content


def test_one_that_fails_does_not_stop_the_others(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = packing.pack

    def pack(source: int, target: int, *rest: object) -> None:
        if os.pread(source, 3, 0) == b"bad":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(source, target, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(backups, "pack", pack)
    for number in (1, 2, 3):
        office.put(f".{number}", "bad" if number == 2 else "good")
    told = office.tend(office.job(compress="gzip"))
    assert told == f"cannot compress {office.live}.2: {os.strerror(errno.EIO)}"
    assert office.names() == {".1.gz", ".2", ".3.gz"}


def test_an_error_nobody_thought_of(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backups, "available", lambda _: 1 / 0)
    office.put(".1")
    told = office.tend(office.job(compress="gzip"))
    assert told == f"cannot tend {office.live}: ZeroDivisionError: division by zero"
    assert office.tend(office.job()) is None


def test_a_directory_that_is_gone(office: Office, tmp_path: Path) -> None:
    office.live = tmp_path / "gone" / "web.log"
    assert office.tend(office.job()) == f"cannot open {tmp_path}/gone: No such file or directory"


def test_files_are_synced_before_they_are_compressed_and_once(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []

    def fsync(fd: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{fd}").removeprefix(str(office.live)))

    monkeypatch.setattr(os, "fsync", fsync)
    office.put(".2")
    office.put(".1")
    folder = str(office.live.parent)
    assert office.tend(office.job(fsync=True)) is None
    assert synced == [".2", ".1", folder]
    del synced[:]
    os.rename(f"{office.live}.2", f"{office.live}.3")
    os.rename(f"{office.live}.1", f"{office.live}.2")
    office.put(".1")
    assert office.tend(office.job(fsync=True)) is None
    assert synced == [".1", folder]


# ---- the threads -------------------------------------------------------------------------


def test_jobs_of_a_path_that_waits_are_one(office: Office, gate: Gate) -> None:
    """What the newest says is done, so that file 3 stays; all are told."""
    for number in (1, 3, 4):
        office.put(f".{number}")
    told: SimpleQueue[tuple[str, str | None]] = SimpleQueue()

    def job(name: str, backup_count: int) -> Job:
        return office.job(backup_count)._replace(done=lambda reason: told.put((name, reason)))

    office.keeper.tend(job("first", 1)._replace(compress="gzip"))
    gate.wait()
    for number in (3, 4):
        office.put(f".{number}")
    office.keeper.tend(job("second", 1))
    office.keeper.tend(job("third", 3))
    gate.open()
    names = ("first", "second", "third")
    assert [told.get(timeout=PATIENCE) for _ in names] == [(name, None) for name in names]
    assert office.names() == {".1.gz", ".3"}


def test_the_thread_is_nice(office: Office) -> None:
    before = os.getpriority(os.PRIO_PROCESS, 0)
    nice: list[int] = []

    def done(_: str | None) -> None:
        nice.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    office.keeper.tend(office.job()._replace(done=done))
    assert office.tend(office.job()) is None
    assert nice in ([min(19, before + 10)], [min(19, before + 10)] * 2)
    assert os.getpriority(os.PRIO_PROCESS, 0) == before


def test_close_gives_up_a_compression(office: Office, gate: Gate) -> None:
    office.put(".1", "x" * 5_000_000)
    office.keeper.tend(office.job(compress="gzip"))
    gate.wait()
    assert not office.keeper.close(0)
    gate.open()
    assert office.keeper.close(PATIENCE)
    assert office.names() == {".1"}
    office.keeper.tend(office.job())
    assert office.told.empty()


def test_a_keeper_without_work_has_no_thread(office: Office) -> None:
    before = threading.active_count()
    assert Keeper().close(0)
    assert threading.active_count() == before


# ---- sync --------------------------------------------------------------------------------


def test_sync_does_not_wait_for_a_compression(office: Office, gate: Gate) -> None:
    path = office.put(".1")
    office.keeper.tend(office.job(compress="gzip"))
    gate.wait()
    fd = os.open(path, os.O_RDONLY)
    told: SimpleQueue[str | None] = SimpleQueue()
    office.keeper.sync(fd, told.put)
    assert told.get(timeout=PATIENCE) is None
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    gate.open()
    assert office.told.get(timeout=PATIENCE) is None


def test_syncs_that_wait_are_one_of_a_file_and_done_at_the_end(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached, go_on = threading.Event(), threading.Event()
    synced: list[int] = []

    def fdatasync(fd: int) -> None:
        reached.set()
        assert go_on.wait(PATIENCE)
        synced.append(fd)

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    fds = [os.open(office.put(suffix), os.O_RDONLY) for suffix in (".1", ".2", ".2")]
    office.keeper.sync(fds[0], office.told.put)
    assert reached.wait(PATIENCE)
    for fd in fds[1:]:
        office.keeper.sync(fd, office.told.put)
    assert not office.keeper.close(0)
    go_on.set()
    assert office.keeper.close(PATIENCE)
    assert synced == [fds[0], fds[2]]
    assert office.told.empty()


def test_a_sync_that_fails(office: Office) -> None:
    reading, writing = os.pipe()
    told: SimpleQueue[str | None] = SimpleQueue()
    name = os.readlink(f"/proc/self/fd/{reading}")
    office.keeper.sync(reading, told.put)
    assert told.get(timeout=PATIENCE) == f"cannot sync {name}: Invalid argument"
    os.close(writing)


def test_a_sync_after_the_end(office: Office) -> None:
    assert office.keeper.close(0)
    office.keeper.sync(os.open(office.put(".1"), os.O_RDONLY), office.told.put)
    assert office.told.empty()
