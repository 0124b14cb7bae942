"""The daemon with its system, pump and control replaced; and where an app lives."""

from __future__ import annotations

import asyncio
import grp
import json
import logging
import os
import signal
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sysup import daemon as module
from sysup.config import Config, ConfigError, Role
from sysup.daemon import (
    PATIENT,
    REAP_WITHIN,
    Daemon,
)
from sysup.keys import Keys
from sysup.ledger import ENCODER, Key, Ledger
from sysup.log import describe_event
from sysup.machine import Want
from sysup.peers import Access
from sysup.protocol import MessageError, SysupError
from sysup.runtime import runtime_directory, socket_access, take_lock
from sysup.serving import BIND_AGAIN
from sysup.source import Files, load, load_again, write
from sysup.stats import Infos, Steps
from tests.world import World


class FakeControl:
    """Notes what is served; endpoints in `taken` can't be bound."""

    taken: set[str]

    def __init__(self, world: World) -> None:
        self.world = world
        self.taken = set()
        self.served: dict[str, Access | None] = {}
        self.closed = False
        self.hidden: set[str] = set()
        self.keys: dict[str, Keys] = {}
        self.events = SimpleNamespace(
            publish=self.publish,
            publish_output=lambda *message: None,
            publish_stats=lambda *message: None,
        )

    def serve(self, endpoint: str, access: Access, mode: int = 0o600, group: int = -1) -> None:
        self._bind(endpoint, access)

    def publish_on(self, endpoint: str, mode: int = 0o600, group: int = -1) -> None:
        self._bind(endpoint, None)

    def publish_stats_on(self, endpoint: str, keys: Keys | None = None) -> None:
        self._bind(endpoint, None)
        if keys is not None:
            self.keys[endpoint] = keys

    def publish_outside(self, endpoint: str, *, hidden: bool, keys: Keys | None = None) -> None:
        self._bind(endpoint, None)
        if hidden:
            self.hidden.add(endpoint)
        if keys is not None:
            self.keys[endpoint] = keys

    def _bind(self, endpoint: str, role: Access | None) -> None:
        if endpoint in self.taken:
            raise SysupError(f"cannot bind {endpoint}: address already in use")
        self.served[endpoint] = role

    def publish(self, watcher: str, event: str, payload: Mapping[str, Any]) -> None:
        self.world.events.append((event, {"watcher": watcher, **payload}))

    def close(self) -> None:
        self.closed = True


put = Ledger.put


def put_and_see(ledger: Ledger, key: Key, value: Any) -> None:
    """Put, and see whether what it took for equal is of the same text."""
    put(ledger, key, value)
    assert ledger._texts[key] == ENCODER.encode([key, value]).encode()


class Host:
    """Makes daemons of a text, in a directory of their own."""

    def __init__(self, world: World, directory: Path, patch: pytest.MonkeyPatch) -> None:
        self.world = world
        self.file = directory / "app.ini"
        self.control = FakeControl(world)
        self.log = SimpleNamespace(pump=lambda pump: None, stop_pumping=lambda: None)
        self.patch = patch
        patch.setenv("SYSUP_RUNTIME_DIR", str(directory / "run"))
        for name, value in {
            "OS": lambda nofile, nice: world.os,
            "Pump": lambda memfd, later: world.pump,
            "Control": lambda loop, app, wall: self.control,
            "become_subreaper": lambda: None,
            "raise_nofile": lambda: (1024, 1024),
            "set_nice": lambda nice: None,
            "take_precedence": lambda: None,
        }.items():
            patch.setattr(module, name, value)
        patch.setattr(signal, "pthread_sigmask", lambda how, signals: set())
        patch.setattr(Ledger, "put", put_and_see)
        self.daemons: list[Daemon] = []

    def make(self, text: str) -> Daemon:
        self.file.write_text(text)
        log: Any = self.log
        files = Files()
        loaded = load(str(self.file), files)
        self.daemons.append(Daemon(loaded, self.world.loop, log, files))
        return self.daemons[-1]

    def run(self, text: str) -> tuple[Daemon, asyncio.Task[int]]:
        daemon = self.make(text)
        return daemon, self.world.begin(daemon.run())

    def next_config(self) -> tuple[Files, Config]:
        """What a daemon would go on with that took over from the last one."""
        written = Ledger(os.dup(self.daemons[-1]._estate.ledger.fd))
        written.close()
        return load_again(str(self.file), written.table[module.CONFIG])

    def close(self) -> None:
        for daemon in self.daemons:
            daemon._lock.close()
            os.close(daemon._board.setting.null)


@pytest.fixture
def host(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    host = Host(world, tmp_path, monkeypatch)
    yield host
    host.close()


WEB = "[watcher:web]\ncmd = web\n"


def finish(host: Host, daemon: Daemon, run: asyncio.Task[int]) -> int:
    daemon.quit()
    return host.world.run(_result(run))


async def _result(task: asyncio.Task[int]) -> int:
    return await task


# ---- life --------------------------------------------------------------------------------


def test_an_app_runs_and_ends(host: Host) -> None:
    daemon, run = host.run(WEB + "numprocesses = 2\n[watcher:idle]\ncmd = idle\nautostart = no\n")
    assert sorted(argv[0] for argv, _, _ in host.world.os.born.values()) == ["web", "web"]
    directory = host.file.parent / "run" / "app"
    assert host.control.served == {
        f"ipc://{directory}/control": Role.ADMIN,
        f"ipc://{directory}/events": None,
    }
    assert finish(host, daemon, run) == 0
    assert host.world.os.living == {}
    assert host.control.closed
    assert os.listdir(directory) == ["lock"]


def test_priorities_and_the_pause_between_watchers(host: Host) -> None:
    text = "[sysup]\nwarmup_delay = 2\n"
    for name, priority in (("a", 1), ("b", 3), ("c", 2)):
        text += f"[watcher:{name}]\ncmd = {name}\npriority = {priority}\n"
    daemon, run = host.run(text)
    host.world.loop.advance(1.0)
    assert [argv[0] for argv, _, _ in host.world.os.born.values()] == ["b"]
    host.world.loop.advance(4.0)
    assert [argv[0] for argv, _, _ in host.world.os.born.values()] == ["b", "c", "a"]
    finish(host, daemon, run)
    assert [pid for what, pid, _ in host.world.os.sent if what == "process"] == [103, 102, 101]


def test_told_twice_it_kills_but_not_by_the_same_signal(host: Host) -> None:
    daemon, run = host.run(WEB + "numprocesses = 2\ngraceful_timeout = 1000\n")
    host.world.os.deaf = {signal.SIGTERM}
    daemon.quit()
    host.world.loop.settle()
    daemon.quit()
    groups = [pid for what, pid, _ in host.world.os.sent if what == "group"]
    assert groups == []
    host.world.loop.advance(PATIENT)
    host.world.os.forbidden = {101}
    daemon.quit()
    groups = [pid for what, pid, _ in host.world.os.sent if what == "group"]
    assert groups == [102], "101 may not be killed, which saves nobody else"
    host.world.os.forbidden = set()
    host.world.os.die(101, -9)
    assert host.world.run(_result(run)) == 0


@pytest.mark.parametrize(("status", "code"), [(4, 4), (-9, 137)])
def test_giving_up_may_end_it_with_the_code(host: Host, status: int, code: int) -> None:
    host.world.os.dies["web"] = status
    _, run = host.run(WEB + "max_retry = 0\non_give_up = exit\n")
    assert host.world.run(_result(run)) == code


@pytest.mark.parametrize(("given", "code"), [(None, 1), (0, 1), (3, 3), (-15, 143)])
def test_codes_of_giving_up(host: Host, given: int | None, code: int) -> None:
    daemon = host.make(WEB)
    daemon._give_up(given)
    host.world.loop.settle()
    assert daemon.exit_status == code


def test_a_quit_in_the_midst_of_the_start(host: Host) -> None:
    text = (
        "[sysup]\nwarmup_delay = 5\n[watcher:a]\ncmd = a\nready = uptime:60\n[watcher:b]\ncmd = b"
    )
    daemon, run = host.run(text)
    assert finish(host, daemon, run) == 0
    assert len(host.world.os.born) == 1


def test_strangers_are_reaped_together(host: Host) -> None:
    daemon, run = host.run(WEB)
    reaped: list[float] = []
    host.patch.setattr(
        host.world.os, "reap_strangers", lambda mains: reaped.append(host.world.loop.now)
    )
    for _ in range(5):
        daemon._reap_soon()
    host.world.loop.advance(REAP_WITHIN)
    assert len(reaped) == 1
    daemon._reap_soon()
    host.world.loop.advance(REAP_WITHIN)
    assert len(reaped) == 2
    finish(host, daemon, run)


def test_ages_are_looked_at_each_check_delay(host: Host) -> None:
    daemon, run = host.run(
        "[sysup]\ncheck_delay = 5\n" + WEB + "max_age = 3\nmax_age_variance = 0\n"
    )
    host.world.loop.advance(5.5)
    assert [*host.world.os.living] == [102]
    finish(host, daemon, run)


def test_a_new_check_delay_holds_at_once(host: Host) -> None:
    aging = WEB + "max_age = 3\nmax_age_variance = 0\n"
    daemon, run = host.run("[sysup]\ncheck_delay = 0\n" + aging)
    host.world.loop.advance(60.0)
    assert [*host.world.os.living] == [101]
    host.file.write_text("[sysup]\ncheck_delay = 5\n" + aging)
    host.world.run(reply(daemon))
    host.world.loop.advance(1.0)
    assert [*host.world.os.living] == [102]
    finish(host, daemon, run)


# ---- endpoints, sockets ------------------------------------------------------------------


def test_plain_tcp_reads_unless_told_otherwise(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    endpoint = "tcp://127.0.0.1:7777"
    for extra, role in (("", Role.READ), ("tcp_plain_role = admin\n", Role.ADMIN)):
        daemon, run = host.run(f"[sysup]\nendpoint = {endpoint}\n{extra}{WEB}")
        assert host.control.served[endpoint] is role
        finish(host, daemon, run)
    assert [("tcp_plain_role" in r.getMessage()) for r in caplog.records if "plain" in r.msg] == [
        True,
        False,
    ]


@pytest.mark.parametrize(
    ("endpoint", "role", "hidden"),
    [
        ("tcp://127.0.0.1:7777", "", True),
        ("tcp://127.0.0.1:7777", "tcp_plain_role = read", True),
        ("tcp://127.0.0.1:7777", "tcp_plain_role = operate", False),
        ("ipc:///tmp/events", "", False),
    ],
)
def test_events_over_plain_tcp_hide_output(
    host: Host, endpoint: str, role: str, hidden: bool
) -> None:
    daemon, run = host.run(f"[sysup]\npubsub_endpoint = {endpoint}\n{role}\n{WEB}")
    assert host.control.hidden == ({endpoint} if hidden else set())
    finish(host, daemon, run)


def test_with_keys_tcp_is_for_those_who_have_one(host: Host, tmp_path: Path) -> None:
    endpoint, events = "tcp://0.0.0.0:7777", "tcp://0.0.0.0:7778"
    stats = "tcp://0.0.0.0:7779"
    options = f"endpoint = {endpoint}\npubsub_endpoint = {events}\ncurve_dir = {tmp_path}\n"
    options += f"stats_endpoint = {stats}\nstatsd = yes\n"
    daemon, run = host.run(f"[sysup]\n{options}\n{WEB}")
    keys = host.control.served[endpoint]
    assert isinstance(keys, Keys)
    assert keys.directory == str(tmp_path)
    assert host.control.keys == {events: keys, stats: keys}
    finish(host, daemon, run)


def test_an_endpoint_that_is_taken_is_tried_again(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    endpoint = "tcp://127.0.0.1:7777"
    host.control.taken = {endpoint}
    daemon, run = host.run(f"[sysup]\npubsub_endpoint = {endpoint}\n{WEB}")
    assert "trying again" in caplog.text
    host.world.loop.advance(BIND_AGAIN + 0.1)
    assert endpoint not in host.control.served
    host.control.taken = set()
    host.world.loop.advance(BIND_AGAIN)
    assert endpoint in host.control.served
    assert [*host.world.os.living] == [101], "the app ran on"
    finish(host, daemon, run)


def test_a_socket_that_cannot_be_bound_costs_its_watchers_alone(host: Host) -> None:
    text = "[socket:s]\npath = /nosuch/s\n[watcher:user]\ncmd = user\nstdin_socket = s\n"
    daemon, run = host.run(text + WEB)
    assert [argv[0] for argv, _, _ in host.world.os.born.values()] == ["web"]
    assert "cannot bind socket s" in daemon.watchers["user"].describe()["reason"]
    finish(host, daemon, run)


# ---- what the commands need --------------------------------------------------------------


def test_options(host: Host) -> None:
    daemon = host.make("[sysup]\ncheck_delay = 3\n" + WEB)
    directory = host.file.parent / "run" / "app"
    assert daemon.options() == {
        "endpoint": f"ipc://{directory}/control",
        "pubsub_endpoint": f"ipc://{directory}/events",
        "stats_endpoint": f"ipc://{directory}/events",
        "check_delay": 3.0,
        "multicast_endpoint": None,
    }


def test_add_and_remove(host: Host) -> None:
    daemon, run = host.run(WEB)
    new = daemon.roster.add("New", "new", None, {"numprocesses": 2})
    with pytest.raises(MessageError, match="program NEW already exists"):
        daemon.roster.add("NEW", "new", None, {})
    host.world.run(new.start())
    host.world.run(daemon.roster.remove(new, nostop=False))
    assert [*daemon.watchers] == ["web"]
    assert host.world.told("remove") == [{"watcher": "New"}]
    host.world.run(daemon.roster.remove(daemon.watchers["web"], nostop=True))
    assert daemon.watchers == {}
    assert [*host.world.os.living] == [101]
    host.world.os.living.clear()
    finish(host, daemon, run)


def test_stats(host: Host) -> None:
    daemon, run = host.run(WEB)

    def infos(pids: list[int], wall: float) -> Steps[Infos]:
        yield
        return {pid: {"cpu": 1.0} for pid in pids}

    host.patch.setattr(daemon._meter._asked, "infos", infos)
    host.world.loop.advance(10.0)
    (row,) = host.world.run(daemon.stats([daemon.watchers["web"]]))["web"].values()
    assert (row["cpu"], row["wid"]) == (1.0, 1)
    assert row["started"] == pytest.approx(module.wall() - 10.0, abs=5.0)
    assert daemon.sockets() == []
    assert daemon.own_stats()["pid"] == os.getpid()
    finish(host, daemon, run)


@pytest.mark.parametrize(
    ("options", "served"),
    [
        ("", False),
        ("statsd = True", True),
        ("stats_endpoint = tcp://127.0.0.1:7557", True),
    ],
)
def test_statistics_are_served_where_that_is_said(host: Host, options: str, served: bool) -> None:
    """As Circus does: it has an address for them by default, and uses it if `statsd` is set."""
    daemon, run = host.run(f"[circus]\n{options}\n[watcher:web]\ncmd = web\n")
    endpoint = daemon.options()["stats_endpoint"]
    assert endpoint.startswith("tcp://127.0.0.1:") is served
    assert (endpoint in host.control.served) is True
    assert [e.rpartition(":")[2] for e in host.control.served].count("5557") == (
        served and "7557" not in options
    )
    finish(host, daemon, run)


# ---- the config again --------------------------------------------------------------------


def test_a_reload_does_what_differs(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "sysup")
    daemon, run = host.run(WEB + "[watcher:old]\ncmd = old\n[watcher:same]\ncmd = same\n")
    same = daemon.watchers["same"].slots.bodies[0][1].process.pid
    host.file.write_text(
        "[sysup]\npidfile = /x\n"
        + WEB
        + "priority = 7\n[watcher:new]\ncmd = new\n[watcher:same]\ncmd = same\n"
    )
    plan = host.world.run(daemon.plan_reload())
    assert plan == {
        "added": ["new"],
        "removed": ["old"],
        "changed": {"web": ["priority"]},
        "impacts": {"web": {"priority": "live"}},
        "sockets": {"added": [], "removed": [], "changed": []},
        "sysup": {"now": [], "restart": ["pidfile"]},
        "kept": {},
    }
    assert {*daemon.watchers} == {"web", "old", "same"}, "only told"
    assert daemon.changed_files == [str(host.file)]
    assert host.world.run(reply(daemon)) == plan
    assert daemon.changed_files == []
    assert {*daemon.watchers} == {"web", "new", "same"}
    assert daemon.watchers["web"].spec.priority == 7
    assert daemon.watchers["new"].want is Want.UP
    assert daemon.watchers["same"].slots.bodies[0][1].process.pid == same
    assert "added new; removed old; changed web" in caplog.text
    assert "taken over only by a restart of sysupd: pidfile" in caplog.text
    finish(host, daemon, run)


async def reply(daemon: Daemon) -> Mapping[str, Any]:
    return await daemon.reload_config()


def test_a_wrong_config_changes_nothing(host: Host) -> None:
    daemon, run = host.run(WEB)
    before = daemon.config
    host.file.write_text("[watcher:other]\ncmd = other\n[sysup]\nnonsense = 1\n")
    with pytest.raises(SysupError, match="cannot reload the config"):
        host.world.run(reply(daemon))
    with pytest.raises(SysupError, match="cannot reload the config"):
        host.world.run(daemon.plan_reload())
    assert daemon.config is before
    assert daemon.changed_files == [str(host.file)]
    assert [*daemon.watchers] == ["web"]
    finish(host, daemon, run)


def test_a_limit_that_cannot_be_had_does_not_end_a_reload(host: Host) -> None:
    daemon, run = host.run(WEB + "[watcher:z]\ncmd = z\n")
    host.world.os.forbidden = {101}
    limited = WEB + "rlimit_nofile = 64\n"
    host.file.write_text(limited + "[watcher:z]\ncmd = z\npriority = 1\n[watcher:new]\ncmd = new")
    with pytest.raises(SysupError, match="watcher web stays as it is: cannot set rlimit_n") as told:
        host.world.run(reply(daemon))
    assert told.value.fields["changed"] == {"z": ["priority"]}
    assert daemon.watchers["z"].spec.priority == 1
    assert daemon.watchers["new"].slots.bodies
    assert "cannot set rlimit_nofile" in daemon.watchers["web"].describe()["config_problem"]
    files, loaded = host.next_config()
    assert loaded.watchers == daemon.config.watchers, "the next daemon goes on with that"
    assert files.record() == daemon.files.record()
    host.world.os.forbidden = set()
    host.world.run(reply(daemon))
    assert daemon.watchers["web"].spec.rlimits
    assert daemon.watchers["web"].describe()["config_problem"] is None
    finish(host, daemon, run)


# ---- what is saved -----------------------------------------------------------------------


def test_what_is_saved_is_of_the_config(host: Host) -> None:
    daemon, run = host.run(WEB)
    web = daemon.watchers["web"]
    host.world.run(web.set_options({"numprocesses": 3, "priority": 2}))
    host.world.run(daemon.roster.add("job", "job", None, {"env": {"A": "1"}}).start())
    told = host.world.run(daemon.differences())
    assert told["changed"] == {
        "web": {
            "numprocesses": {"config": 1, "running": 3},
            "priority": {"config": 0, "running": 2},
        }
    }
    assert (told["added"], told["removed"], told["saved"]) == (["job"], [], {})
    path = host.world.run(daemon.save(web, {"numprocesses": 3}))
    assert path == str(host.file.with_suffix(".d") / "90-saved.ini")
    assert host.world.run(daemon.save(daemon.watchers["job"], {})) == path
    assert web.overrides == {"priority": 2}
    told = host.world.run(daemon.differences())
    assert told["changed"] == {"web": {"priority": {"config": 0, "running": 2}}}
    assert told["added"] == []
    assert told["saved"] == {"web": ["numprocesses"], "job": ["cmd", "env"]}
    assert daemon.changed_files == [], "what we wrote is read"
    assert load(str(host.file)).watchers == {**daemon.config.watchers}
    assert host.world.run(daemon.plan_reload())["changed"] == {}
    finish(host, daemon, run)


def test_what_can_not_be_saved(host: Host) -> None:
    daemon, run = host.run(WEB)
    web = daemon.watchers["web"]
    host.world.run(web.set_options({"cmd": "web\nx"}))
    with pytest.raises(SysupError, match="cannot save cmd"):
        host.world.run(daemon.save(web, {"cmd": "web\nx"}))
    host.world.run(web.set_options({"cmd": "web $(sysup.env.HOME)"}))
    with pytest.raises(SysupError, match="cannot save cmd: a file would not say the same"):
        host.world.run(daemon.save(web, {"cmd": "web $(sysup.env.HOME)"}))
    directory = host.file.with_suffix(".d")
    assert not directory.exists()
    directory.write_text("")
    with pytest.raises(SysupError, match=r"cannot read .*90-saved\.ini: Not a dir"):
        host.world.run(daemon.save(web, {"priority": 0}))
    directory.unlink()
    host.file.write_text("nonsense")
    with pytest.raises(SysupError, match=r"cannot save: .*no section before"):
        host.world.run(daemon.save(web, {"priority": 0}))
    finish(host, daemon, run)


def test_who_may_read_the_config_may_read_what_is_saved(tmp_path: Path) -> None:
    like, path = tmp_path / "a.ini", tmp_path / "a.d" / "x.ini"
    like.write_text("")
    like.chmod(0o640)
    write(str(path), "one", str(like))
    (tmp_path / "elsewhere").write_text("two")
    (tmp_path / "a.d" / "x.ini.new").symlink_to(tmp_path / "elsewhere")
    write(str(path), "three", str(like))
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert path.read_text() == "three"
    assert (tmp_path / "elsewhere").read_text() == "two"
    assert os.listdir(tmp_path / "a.d") == ["x.ini"]


# ---- where the app lives -----------------------------------------------------------------


def test_the_directory_is_made_for_us_alone(host: Host) -> None:
    host.file.write_text(WEB)
    path = runtime_directory(load(str(host.file)))
    group, _ = socket_access()
    assert stat.S_IMODE(os.stat(path).st_mode) == (0o750 if group >= 0 else 0o700)
    assert runtime_directory(load(str(host.file))) == path, "again"


@pytest.mark.parametrize("what", ["file", "link"])
def test_a_directory_that_is_none_is_refused(host: Host, tmp_path: Path, what: str) -> None:
    host.file.write_text(WEB)
    (tmp_path / "run").mkdir()
    if what == "file":
        (tmp_path / "run" / "app").write_text("")
    else:
        (tmp_path / "run" / "app").symlink_to(tmp_path)
    with pytest.raises(SysupError, match="it is not a directory of this user"):
        runtime_directory(load(str(host.file)))


def test_a_directory_of_somebody_else_is_refused(host: Host, tmp_path: Path) -> None:
    host.file.write_text(WEB)
    loaded = load(str(host.file))
    path = runtime_directory(loaded)
    if os.geteuid() == 0:
        os.chown(path, 4321, -1)
    host.patch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(SysupError, match="it is not a directory of this user"):
        runtime_directory(loaded)


def test_a_directory_that_root_made_for_us(host: Host, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to make it")
    host.file.write_text(WEB)
    loaded = load(str(host.file))
    path = runtime_directory(loaded)
    os.chmod(path, 0o770)
    host.patch.setattr(os, "geteuid", lambda: 12345)
    assert runtime_directory(loaded) == path
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o770, "it is left as it is"
    host.patch.setattr(os, "access", lambda *_: False)
    with pytest.raises(SysupError, match="it is root's, and this user may not write it"):
        runtime_directory(loaded)
    os.chmod(path, 0o777)
    with pytest.raises(SysupError, match="others may replace what is in it"):
        runtime_directory(loaded)


def test_a_directory_that_cannot_be_made(host: Host, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    host.file.write_text(WEB)
    with pytest.raises(SysupError, match=r"cannot make .*/run/app: "):
        runtime_directory(load(str(host.file)))


@pytest.mark.parametrize(
    ("uid", "group", "access"), [(0, 77, (77, 0o660)), (0, None, (-1, 0o600)), (5, 77, (-1, 0o600))]
)
def test_sockets_are_for_the_group_where_root_has_one(
    monkeypatch: pytest.MonkeyPatch, uid: int, group: int | None, access: tuple[int, int]
) -> None:
    def getgrnam(name: str) -> Any:
        if group is None:
            raise KeyError(name)
        return SimpleNamespace(gr_gid=group)

    monkeypatch.setattr(os, "geteuid", lambda: uid)
    monkeypatch.setattr(grp, "getgrnam", getgrnam)
    assert socket_access() == access


def test_the_lock_names_who_holds_it(tmp_path: Path) -> None:
    with take_lock(str(tmp_path), "app"):
        with pytest.raises(SysupError, match=f"running already \\(pid {os.getpid()}\\)"):
            take_lock(str(tmp_path), "app")
        assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"
    take_lock(str(tmp_path), "app").close()


def test_files_that_change(tmp_path: Path) -> None:
    (tmp_path / "a.ini").write_text("x")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "b.ini").write_text("x")
    files = Files()
    files.read(str(tmp_path / "a.ini"))
    assert files.glob(f"{tmp_path}/d/*.ini") == [f"{tmp_path}/d/b.ini"]
    successor = Files(json.loads(json.dumps(files.record())))
    assert successor.changed() == []
    (tmp_path / "d" / "c.ini").write_text("x")
    (tmp_path / "d" / "b.ini").unlink()
    assert successor.changed() == [f"{tmp_path}/d/b.ini", f"{tmp_path}/d/c.ini"]
    os.utime(tmp_path / "a.ini", ns=(0, 0))
    assert files.changed() == [
        f"{tmp_path}/a.ini",
        f"{tmp_path}/d/b.ini",
        f"{tmp_path}/d/c.ini",
    ]
    (tmp_path / "a.ini").unlink()
    assert f"{tmp_path}/a.ini" in successor.changed()


def test_files(tmp_path: Path) -> None:
    (tmp_path / "b.ini").write_bytes(b"caf\xe9")
    (tmp_path / "a.ini").write_text("x")
    files = Files()
    assert files.read(str(tmp_path / "b.ini")) == "caf\udce9"
    assert [Path(p).name for p in files.glob(f"{tmp_path}/*.ini")] == ["a.ini", "b.ini"]
    with pytest.raises(OSError, match="No such file"):
        files.read(str(tmp_path / "c.ini"))
    with pytest.raises(ConfigError):
        load(str(tmp_path / "c.ini"))


@pytest.mark.parametrize(
    ("event", "payload", "line"),
    [
        ("start", {}, "web: start"),
        ("sink_rotated", {"path": "/log"}, "web: sink rotated, /log"),
        (
            "output_lost",
            {"stream": "stderr", "dropped_lines": 12, "dropped_bytes": 340, "suppressed_lines": 0},
            "web: output lost, stderr, 12 lines (340 bytes) dropped",
        ),
        ("spawn", {"process_pid": 7, "wid": 2}, "web.2: spawn, pid 7"),
        ("reap", {"process_pid": 7, "wid": 2, "exit_code": 0}, "web.2: reap, pid 7, exit code 0"),
        (
            "gave_up",
            {"wid": 1, "process_pid": None, "reason": "cannot", "exit_code": None, "retry_in": 0.0},
            "web.1: gave up, cannot",
        ),
        (
            "flapping",
            {"wid": 1, "process_pid": 7, "reason": "exit code 3", "exit_code": 3, "retry_in": 7.04},
            "web.1: flapping, pid 7, exit code 3, next try in 7.0 s",
        ),
    ],
)
def test_events_read_well(event: str, payload: dict[str, Any], line: str) -> None:
    assert describe_event("web", event, payload) == line


def test_start_all_tells_when_all_are_up(host: Host) -> None:
    text = "[sysup]\nwarmup_delay = 2\n[watcher:a]\ncmd = a\n[watcher:b]\ncmd = b\n"
    daemon, run = host.run(text)
    host.world.loop.advance(5.0)
    host.world.run(daemon.roster.stop_all())
    assert host.world.os.living == {}
    begun = host.world.loop.now
    host.world.run(daemon.roster.start_all())
    assert host.world.loop.now - begun == pytest.approx(2.0)
    assert len(host.world.os.living) == 2
    finish(host, daemon, run)


def test_signals_are_heard(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    daemon, run = host.run(WEB)
    host.file.write_text("[watcher:web]\nnonsense\n")
    os.kill(os.getpid(), signal.SIGHUP)
    host.world.loop.advance(1.0)
    assert "cannot reload the config" in caplog.text
    os.kill(os.getpid(), signal.SIGTERM)
    assert host.world.run(_result(run)) == 0
    assert daemon.exit_status == 0
