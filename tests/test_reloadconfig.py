"""What a client is answered that asks for a reload of the config, and when."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from sysup.commands import COMMANDS
from sysup.config import Role
from sysup.daemon import Daemon
from sysup.protocol import Incomplete, Request
from sysup.table import Later
from tests.test_daemon import WEB, Host, finish
from tests.world import World


@pytest.fixture
def host(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    host = Host(world, tmp_path, monkeypatch)
    yield host
    host.close()


def reload_command(daemon: Daemon) -> Coroutine[Any, Any, Mapping[str, Any]]:
    """What a client is answered that waits for it."""
    later = COMMANDS.run(daemon, Request("reloadconfig", {}), Role.ADMIN)
    assert isinstance(later, Later)
    return later.work


def test_a_reload_is_answered_when_the_new_processes_are_up(host: Host) -> None:
    daemon, run = host.run(WEB + "[watcher:more]\ncmd = more\n[watcher:same]\ncmd = same\n")
    slots = {name: watcher.slots for name, watcher in daemon.watchers.items()}
    before = {name: body.process.pid for name, its in slots.items() for _, body in its.bodies}
    host.file.write_text(
        "[watcher:web]\ncmd = other\n[watcher:same]\ncmd = same\n"
        "[watcher:more]\ncmd = more\nnumprocesses = 3\n"
    )
    work = host.world.begin(reload_command(daemon))
    assert not work.done(), "new ones have to prove themselves"
    host.world.loop.advance(60.0)
    assert work.result()["impacts"] == {"web": {"cmd": "reload"}, "more": {"numprocesses": "scale"}}
    (web,) = (body.process.pid for _, body in slots["web"].bodies)
    assert web != before["web"]
    assert len(slots["more"].bodies) == 3
    assert [body.process.pid for _, body in slots["same"].bodies] == [before["same"]]
    finish(host, daemon, run)


def test_a_reload_tells_of_new_processes_that_fail_and_of_all_else(host: Host) -> None:
    daemon, run = host.run(WEB + "[watcher:z]\ncmd = z\n")
    before = [body.process.pid for _, body in daemon.watchers["web"].slots.bodies]
    host.world.os.fails["other"] = "cannot execute other"
    host.file.write_text("[watcher:web]\ncmd = other\n[watcher:z]\ncmd = z\nnope = 1\n")
    with pytest.raises(Incomplete) as caught:
        host.world.run(reload_command(daemon))
    wrong, failed = str(caught.value).splitlines()
    assert wrong.startswith("cannot take all of the config over: watcher z stays as it is")
    assert failed.startswith("cannot replace web: cannot execute other; the old processes run on")
    assert caught.value.fields["changed"] == {"web": ["cmd"]}
    assert [body.process.pid for _, body in daemon.watchers["web"].slots.bodies[:1]] == before
    finish(host, daemon, run)


@pytest.mark.parametrize("text", [WEB, ""])
def test_new_processes_that_are_long_in_coming_hold_up_no_other_reload(
    host: Host, text: str
) -> None:
    daemon, run = host.run("[watcher:z]\ncmd = z\n" + text)
    host.file.write_text("[watcher:z]\ncmd = z\n[watcher:web]\ncmd = slow\nready = uptime:1000\n")
    slow = host.world.begin(reload_command(daemon))
    assert not slow.done()
    host.file.write_text("[watcher:z]\ncmd = z\n[watcher:web]\ncmd = quick\n")
    quick = host.world.begin(reload_command(daemon))
    assert daemon.watchers["web"].spec.cmd == "quick"
    host.world.loop.advance(60.0)
    assert slow.result()["added" if not text else "changed"]
    assert quick.result()["changed"].keys() == {"web"}
    assert not daemon.watchers["web"].slots.is_mixed
    finish(host, daemon, run)


def test_a_stop_ends_the_wait_for_what_a_reload_replaces(host: Host) -> None:
    daemon, run = host.run(WEB)
    host.file.write_text("[watcher:web]\ncmd = slow\nready = uptime:1000\n")
    work = host.world.begin(reload_command(daemon))
    host.world.run(daemon.watchers["web"].stop())
    assert host.world.run(asyncio.wait_for(work, 1))["changed"].keys() == {"web"}
    finish(host, daemon, run)
