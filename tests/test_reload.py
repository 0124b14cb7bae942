"""A reload of the config that is wrong in part: what is right is followed, the rest stays."""

from __future__ import annotations

import asyncio
import json
import signal
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sysup import pace, reload
from sysup.config import Config
from sysup.daemon import Daemon
from sysup.protocol import Incomplete, SysupError
from sysup.reload import WAITING, Reloads
from sysup.source import Files, load
from sysup.watcher import Watcher
from tests.test_daemon import WEB, Host, finish, reply
from tests.world import World


@pytest.fixture
def host(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    host = Host(world, tmp_path, monkeypatch)
    yield host
    host.close()


def test_a_wrong_watcher_stays_and_the_rest_follows(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    daemon, run = host.run(WEB + "[watcher:old]\ncmd = old\n[watcher:z]\ncmd = z\n")
    web = daemon.watchers["web"]
    pids = [body.process.pid for _, body in web.slots.bodies]
    host.file.write_text(
        "[watcher:WEB]\ncmd = other\nnumprocesses = many\nfoo = 1\n"
        "[watcher:bad]\ncmd =\n[watcher:new]\ncmd = new\n[watcher:z]\ncmd = z\npriority = 1\n"
    )
    with pytest.raises(Incomplete) as told:
        host.world.run(daemon.plan_reload())
    assert told.value.fields["changed"] == {"z": ["priority"]}, "only told"
    assert {*daemon.watchers} == {"web", "old", "z"}
    with pytest.raises(Incomplete) as caught:
        host.world.run(reply(daemon))
    assert (str(caught.value), caught.value.fields) == (str(told.value), told.value.fields)
    where = f"{host.file}:%d: [watcher:%s] "
    why = [
        where % (3, "WEB") + "numprocesses: 'many' is not a whole number",
        where % (4, "WEB") + "foo: unknown option",
    ]
    missing = where % (6, "bad") + "cmd: missing: what is to be run?"
    assert caught.value.fields["kept"] == {"watcher:web": why, "watcher:bad": [missing]}
    assert caught.value.fields["added"] == ["new"]
    assert caught.value.fields["removed"] == ["old"]
    assert str(caught.value) == (
        f"cannot take all of the config over: watcher web stays as it is: {'; '.join(why)}\n"
        f"watcher bad is not added: {missing}"
    )
    assert {*daemon.watchers} == {"web", "new", "z"}
    assert daemon.watchers["z"].spec.priority == 1
    assert (web.spec.cmd, [body.process.pid for _, body in web.slots.bodies]) == ("web", pids)
    assert web.describe()["config_problem"] == "\n".join(why)
    assert daemon.watchers["z"].describe()["config_problem"] is None
    assert daemon.kept == {"watcher:web": tuple(why), "watcher:bad": (missing,)}
    events = [(p["watcher"], p["reason"]) for e, p in host.world.events if e == "config_error"]
    assert events == [("web", "; ".join(why)), ("bad", missing)]
    assert f"bad: config error, {missing}" in caplog.text
    host.file.write_text(WEB + "[watcher:bad]\ncmd = good\n")
    assert host.world.run(reply(daemon))["added"] == ["bad"]
    assert {*daemon.watchers} == {"web", "bad"}
    assert (web.describe()["config_problem"], daemon.kept) == (None, {})
    finish(host, daemon, run)


@pytest.mark.parametrize(
    "text",
    [
        WEB + "[watcher:new]\ncmd = new\nnumprocesses = 2x",
        WEB + "[watcher:new]\ncmd = new\n[watcher:a]\nno option\n",
        WEB + "[watcher:new]\ncmd = new\n[plugin:flap]\nuse = x y\n",
        WEB + "[watcher:new]\ncmd = new\n[DEFAULT]\nnumprocesses = x\n",
        WEB + "[watcher:new]\ncmd = new\n[sysup]\ncheck_delay = x\n",
        WEB + "[watcher:new]\ncmd = new\n[sysup]\ninclude = nowhere.ini\n",
        WEB + "[watcher:new]\ncmd = new\n[watcher:]\ncmd = x\n",
        WEB + "[watcher:new]\ncmd = new\n[watcher:a\x01]\ncmd = x\n",
        WEB + "[watcher:new]\ncmd = new\n[wacther:a]\ncmd = x\n",
    ],
)
def test_what_is_no_sections_own_fault_changes_nothing(host: Host, text: str) -> None:
    """So the end of a file that is being written is not taken for what is to be."""
    daemon, run = host.run(WEB + "[watcher:old]\ncmd = old\n")
    host.file.write_text(text)
    with pytest.raises(SysupError, match="cannot reload the config"):
        host.world.run(reply(daemon))
    assert {*daemon.watchers} == {"web", "old"}
    assert daemon.kept == {}
    finish(host, daemon, run)


def test_two_of_a_name_leave_the_one_that_runs(host: Host) -> None:
    daemon, run = host.run(WEB)
    host.file.write_text("[watcher:web]\ncmd = a\n[watcher:Web]\ncmd = b\n")
    with pytest.raises(Incomplete, match="there is a watcher of this name"):
        host.world.run(reply(daemon))
    assert [watcher.spec.cmd for watcher in daemon.watchers.values()] == ["web"]
    finish(host, daemon, run)


def test_what_needs_a_socket_that_is_wrong_stays_as_well(host: Host) -> None:
    socket = f"[socket:%s]\npath = {host.file.parent}/%s\n"
    user = "[watcher:%s]\ncmd = x\nstdin_socket = %s\n"
    daemon, run = host.run(socket % ("a", "a") + user % ("one", "a") + WEB)
    bound = {name: socket for name, socket in daemon.config.sockets.items()}
    host.file.write_text(
        socket % ("a", "other")
        + "backlog = x\n"
        + socket % ("b", "b")
        + "backlog = x\n"
        + user % ("one", "a")
        + "priority = 1\n"
        + user % ("two", "B")
        + "[watcher:web]\ncmd = web $(sysup.sockets.b)\n"
    )
    with pytest.raises(Incomplete) as caught:
        host.world.run(reply(daemon))
    assert {*caught.value.fields["kept"]} == {"socket:a", "socket:b", "watcher:two", "watcher:web"}
    assert caught.value.fields["kept"]["watcher:two"] == ["needs [socket:b], which is wrong"]
    assert daemon.watchers["one"].spec.priority == 1, "its socket is there, as it was"
    assert daemon.watchers["web"].spec.cmd == "web"
    assert {*daemon.watchers} == {"one", "web"}
    assert daemon.config.sockets == bound
    assert host.next_config()[1].sockets == bound
    finish(host, daemon, run)


def test_a_socket_stays_with_a_watcher_that_does(host: Host) -> None:
    socket = f"[socket:%s]\npath = {host.file.parent}/%s\n"
    user = "[watcher:one]\ncmd = x\nstdin_socket = %s\n"
    daemon, run = host.run(socket % ("a", "a") + socket % ("c", "c") + user % "a")
    (before,) = (body.process.pid for _, body in daemon.watchers["one"].slots.bodies)
    host.file.write_text(socket % ("b", "b") + user % "b" + "nope = 1\n")
    with pytest.raises(Incomplete) as caught:
        host.world.run(reply(daemon))
    assert caught.value.fields["sockets"] == {"added": ["b"], "removed": ["c"], "changed": []}
    assert caught.value.fields["kept"]["socket:a"] == ["[watcher:one] needs it, and stays as it is"]
    (after,) = (body.process.pid for _, body in daemon.watchers["one"].slots.bodies)
    assert after == before
    assert host.next_config()[1].watchers == daemon.config.watchers
    finish(host, daemon, run)


def test_an_environment_is_not_followed_by_what_is_wrong(host: Host) -> None:
    daemon, run = host.run(WEB + "[watcher:z]\ncmd = z\n[env:*]\nA = 1\n")
    host.file.write_text(WEB + "nope = 1\n[watcher:z]\ncmd = z\n[env:*]\nA = 2\n[env:web]\nB = 3\n")
    with pytest.raises(Incomplete) as caught:
        host.world.run(reply(daemon))
    assert caught.value.fields["changed"] == {"z": ["env"]}
    assert daemon.watchers["web"].spec.env == {"A": "1"}
    assert daemon.watchers["z"].spec.env == {"A": "2"}
    assert not daemon.config.problems, "[env:web] is of a watcher"
    finish(host, daemon, run)


def test_nothing_is_saved_for_what_does_not_follow(host: Host) -> None:
    daemon, run = host.run(WEB + "[watcher:z]\ncmd = z\n")
    host.file.write_text(WEB + "nope = 1\n[watcher:z]\ncmd = z\n")
    with pytest.raises(Incomplete):
        host.world.run(reply(daemon))
    with pytest.raises(SysupError, match=r"cannot save: .*nope"):
        host.world.run(daemon.save(daemon.watchers["web"], {"priority": 0}))
    host.world.run(daemon.watchers["z"].set_options({"priority": 3}))
    host.world.run(daemon.save(daemon.watchers["z"], {"priority": 3}))
    assert host.next_config()[1].watchers == daemon.config.watchers
    finish(host, daemon, run)


def test_what_stays_by_turns_makes_no_chain(host: Host) -> None:
    """What was kept of the files before them, files that are kept don't keep."""
    both = "[watcher:a]\ncmd = a\n%s\n[watcher:b]\ncmd = b\n%s\n"
    daemon, run = host.run(both % ("", ""))
    sizes = set()
    for number in range(6):
        host.file.write_text(both % (("x = 1", "") if number % 2 else ("", "x = 1")))
        with pytest.raises(Incomplete):
            host.world.run(reply(daemon))
        ((_, origin),) = daemon.files.kept.values()
        assert origin
        assert origin.kept == {}
        sizes.add(len(json.dumps(daemon.files.record())))
        assert host.next_config()[1].watchers == daemon.config.watchers
    assert max(sizes) - min(sizes) < 100
    finish(host, daemon, run)


def test_a_reload_that_waits_for_its_turn_is_left_to_the_next_daemon(host: Host) -> None:
    daemon, run = host.run("[watcher:old]\ncmd = old\ngraceful_timeout = 1000\n")
    host.world.os.deaf = {signal.SIGTERM}
    host.file.write_text(WEB)
    first = host.world.begin(reply(daemon))
    ledger = daemon._estate.ledger
    assert WAITING not in ledger.table, "what has begun is not begun again"
    host.file.write_text(WEB + "[watcher:new]\ncmd = new\n")
    second = host.world.begin(reply(daemon))
    assert Reloads(daemon._reload, ledger).left
    assert daemon._reloads.waiting
    (pid,) = host.world.os.living
    host.world.os.die(pid, -9)
    host.world.loop.advance(1.0)
    assert (first.done(), second.done()) == (True, True)
    assert {*daemon.watchers} == {"web", "new"}
    assert WAITING not in ledger.table
    finish(host, daemon, run)


OLD = "[watcher:old]\ncmd = old\ngraceful_timeout = 1000\n"


def begin_and_save(host: Host, daemon: Daemon, text: str) -> tuple[asyncio.Task[Any], Watcher]:
    """A reload that has to wait for `old` to go, and `web`, of which something is saved then."""
    host.world.os.deaf = {signal.SIGTERM}
    host.file.write_text(text)
    reload = host.world.begin(reply(daemon))
    web = daemon.watchers["web"]
    host.world.run(web.set_options({"priority": 4}))
    host.world.run(daemon.save(web, {"priority": 4}))
    return reload, web


def let_go_on(host: Host, daemon: Daemon) -> None:
    """`old` goes."""
    host.world.os.die(daemon.watchers["old"].slots.bodies[0][1].process.pid, -9)
    host.world.loop.advance(1.0)


def test_what_is_saved_during_a_reload_is_of_the_config(host: Host) -> None:
    daemon, run = host.run(WEB + OLD)
    first, _ = begin_and_save(host, daemon, WEB)
    let_go_on(host, daemon)
    assert first.done()
    assert daemon.config.watchers["web"].priority == 4
    assert host.next_config()[1].watchers == daemon.config.watchers
    finish(host, daemon, run)


def test_what_is_saved_of_a_watcher_that_is_yet_to_change_holds(host: Host) -> None:
    daemon, run = host.run(WEB + OLD)
    first, web = begin_and_save(host, daemon, WEB + "graceful_timeout = 9\n")
    let_go_on(host, daemon)
    assert first.done()
    assert (web.spec.priority, web.spec.graceful_timeout) == (4, 9)
    assert web.spec == daemon.config.watchers["web"]
    assert host.next_config()[1].watchers == daemon.config.watchers
    finish(host, daemon, run)


def test_what_is_told_to_stop_before_its_turn_to_start_stays_down(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "TURN", -1)  # others have a turn after each step
    daemon, run = host.run(WEB)
    names = ("a", "b", "c", "d")
    host.file.write_text(WEB + "".join(f"[watcher:{name}]\ncmd = {name}\n" for name in names))
    reload = host.world.loop.create_task(reply(daemon))
    told = []

    def stop() -> None:
        for name in names:
            if name not in told and name in daemon.watchers and name != "d":
                told.append(name)
                host.world.loop.create_task(daemon.watchers[name].stop())
        if not reload.done():
            host.world.loop.call_soon(stop)

    host.world.loop.call_soon(stop)
    host.world.loop.settle()
    assert reload.result()["added"] == [*names]
    assert (told, [name for name in names if pids_of(daemon, name)]) == (["a", "b", "c"], ["d"])
    finish(host, daemon, run)


def test_those_that_a_reload_adds_start_in_order(host: Host) -> None:
    daemon, run = host.run("[sysup]\nwarmup_delay = 5\n" + WEB)
    text = host.file.read_text() + "[watcher:a]\ncmd = a\n[watcher:b]\ncmd = b\npriority = 1\n"
    host.file.write_text(text + "[watcher:off]\ncmd = off\nautostart = no\n")
    host.world.begin(reply(daemon))
    assert [len(pids_of(daemon, name)) for name in ("a", "b", "off")] == [0, 1, 0]
    host.world.loop.advance(5.0)
    assert [len(pids_of(daemon, name)) for name in ("a", "b", "off")] == [1, 1, 0]
    finish(host, daemon, run)


def test_what_is_saved_before_a_limit_fails_is_set_still(host: Host) -> None:
    """The watcher stays as it was, so the files that it is known by don't say what was saved."""
    daemon, run = host.run(WEB + OLD)
    first, web = begin_and_save(host, daemon, WEB + "rlimit_nofile = 64\n")
    host.world.os.forbidden = {web.slots.bodies[0][1].process.pid}
    let_go_on(host, daemon)
    assert isinstance(first.exception(), Incomplete)
    assert (web.spec.priority, web.overrides) == (4, {"priority": 4})
    loaded = host.next_config()[1]
    assert (loaded.watchers, loaded.kept) == (daemon.config.watchers, daemon.config.kept)
    host.world.os.forbidden = set()
    finish(host, daemon, run)


def test_nothing_is_saved_for_what_a_limit_keeps(host: Host) -> None:
    daemon, run = host.run(WEB)
    web = daemon.watchers["web"]
    host.file.write_text(WEB + "rlimit_nofile = 64\n")
    host.world.os.forbidden = {web.slots.bodies[0][1].process.pid}
    with pytest.raises(Incomplete):
        host.world.run(reply(daemon))
    host.world.run(web.set_options({"priority": 4}))
    with pytest.raises(SysupError, match="cannot save: cannot set rlimit_nofile"):
        host.world.run(daemon.save(web, {"priority": 4}))
    assert web.overrides == {"priority": 4}
    host.world.os.forbidden = set()
    finish(host, daemon, run)


def test_what_was_set_again_is_not_saved_as_it_was(host: Host) -> None:
    daemon, run = host.run(WEB)
    web = daemon.watchers["web"]
    for priority in (1, 2):
        host.world.run(web.set_options({"priority": priority}))
    with pytest.raises(SysupError, match="cannot save priority: it was set again meanwhile"):
        host.world.run(daemon.save(web, {"priority": 1}))
    host.world.run(daemon.save(web, {"priority": 2}))
    assert daemon.config.watchers["web"].priority == 2
    finish(host, daemon, run)


NAMES = "abcd"


@given(
    steps=st.lists(
        st.dictionaries(
            st.sampled_from(NAMES),
            st.tuples(st.integers(1, 3), st.sampled_from(["", "nope = 1", "numprocesses ="])),
        ),
        max_size=4,
    )
)
@settings(max_examples=40, deadline=None)
def test_exactly_what_is_right_follows(steps: list[dict[str, tuple[int, str]]]) -> None:
    """And a daemon that takes over in between knows the same."""
    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        world = World(patch.setattr)
        host = Host(world, Path(directory), patch)
        daemon, run = host.run("[watcher:always]\ncmd = always\n")
        expected: dict[str, int] = {}
        for step in steps:
            text = "[watcher:always]\ncmd = always\n"
            for name, (priority, fault) in step.items():
                text += f"[watcher:{name}]\ncmd = {name}\npriority = {priority}\n{fault}\n"
            wrong = {name for name, (_, fault) in step.items() if fault}
            host.file.write_text(text)
            pids = {name: pids_of(daemon, name) for name in wrong & expected.keys()}
            with pytest.raises(Incomplete) if wrong else nullcontext():
                host.world.run(reply(daemon))
            right = {name: value for name, (value, fault) in step.items() if not fault}
            expected = {n: v for n, v in expected.items() if n in wrong} | right
            running = {name: w.spec.priority for name, w in daemon.watchers.items()}
            assert running == {"always": 0, **expected}
            assert {name: pids_of(daemon, name) for name in pids} == pids
            assert {*daemon.config.watchers_kept} == wrong
            files, loaded = host.next_config()
            assert (loaded.watchers, loaded.kept) == (daemon.config.watchers, daemon.config.kept)
            assert files.record() == daemon.files.record()
            daemon.config, daemon.files = loaded, files
        finish(host, daemon, run)
        host.close()
        world.close()


def pids_of(daemon: Daemon, name: str) -> list[int]:
    return [body.process.pid for _, body in daemon.watchers[name].slots.bodies]


# ---- what comes meanwhile ----------------------------------------------------------------


def test_files_are_read_beside_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, files, asked = tmp_path / "app.ini", Files(), threading.Event()
    file.write_text(WEB)
    app: Any = SimpleNamespace(config=load(str(file), files), files=files)

    def slowly(*args: Any, **options: Any) -> Config:
        assert asked.wait(10.0), "the loop does nothing else"
        return load(*args, **options)

    async def both() -> Mapping[str, Any]:
        plan = asyncio.create_task(reload.dry_run(app))
        await asyncio.sleep(0)
        asked.set()
        return await plan

    monkeypatch.setattr(reload, "load", slowly)
    assert asyncio.run(both())["changed"] == {}


def test_a_reload_that_reads_is_left_to_the_next_daemon(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon, run = host.run(WEB)
    seen = []

    def look(*args: Any, **options: Any) -> Config:
        seen.append(WAITING in daemon._estate.ledger.table)
        return load(*args, **options)

    monkeypatch.setattr(reload, "load", look)
    host.world.run(reply(daemon))
    host.file.write_text("nonsense")
    with pytest.raises(SysupError):
        host.world.run(reply(daemon))
    assert seen == [True, True]
    assert WAITING not in daemon._estate.ledger.table
    finish(host, daemon, run)


def test_the_end_may_come_while_files_are_read(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon, run = host.run(WEB)

    def end(*args: Any, **options: Any) -> Config:
        daemon.quit()
        return load(*args, **options)

    monkeypatch.setattr(reload, "load", end)
    host.file.write_text(WEB + "[watcher:new]\ncmd = new\n")
    with pytest.raises(SysupError, match="sysupd is ending"):
        host.world.run(reply(daemon))
    assert [*daemon.watchers] == ["web"]
    finish(host, daemon, run)


def test_a_watcher_may_be_removed_while_it_is_saved(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon, run = host.run(WEB)
    web = daemon.watchers["web"]

    def remove(*args: Any, **options: Any) -> Config:
        daemon.watchers.pop("web", None)
        return load(*args, **options)

    monkeypatch.setattr(reload, "load", remove)
    with pytest.raises(SysupError, match="cannot save: web was removed"):
        host.world.run(daemon.save(web, {"priority": 0}))
    assert not host.file.with_suffix(".d").exists()
    daemon.watchers["web"] = web
    finish(host, daemon, run)
