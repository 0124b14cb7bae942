"""Several apps asked at once: one table of all, and what is wrong with some."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sysup import discovery
from sysup.protocol import MessageError
from tests.canned import CannedDaemon
from tests.ctl.conftest import Run
from tests.ctl.states import BROKEN, WEB, status_of

INFO = {"ctime": "1:30.00", "age": 900.0, "mem_info1": "1.5M", "pid": 812}


@pytest.fixture
def blog(base: Path, daemon: CannedDaemon) -> Iterator[CannedDaemon]:
    """An app beside `shop`."""
    daemon.replies = {
        "status": status_of(web=WEB),
        "stats": {"infos": {"web": {"812": INFO}}},
        "list": {"watchers": ["web"]},
    }
    with CannedDaemon(base / "blog") as running:
        running.replies = {
            "status": status_of(web={**WEB, "restarts": 3}),
            "stats": {"infos": {"web": {"812": {**INFO, "ctime": "3:00.00"}}}},
            "list": {"watchers": ["db", "web"]},
        }
        yield running


def rows(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


@pytest.mark.parametrize(
    "which", [("--all",), ("-a", "shop", "-a", "blog"), ("--all", "-a", "shop")]
)
def test_status_is_one_table(blog: CannedDaemon, ctl: Run, which: tuple[str, ...]) -> None:
    for args in ((*which, "status"), ("status", *which)):
        done = ctl(*args)
        assert (done.code, done.err) == (0, "")
        head, *found = rows(done.out)
        cpu = head.index("CPU%")
        assert [[row[0], row[cpu]] for row in found] == [["blog/web", "20.0"], ["shop/web", "10.0"]]


def test_an_endpoint_is_one_of_several(blog: CannedDaemon, daemon: CannedDaemon, ctl: Run) -> None:
    done = ctl("list", "-a", "blog", "--endpoint", daemon.endpoint)
    assert rows(done.out) == [["blog/db"], ["blog/web"], [f"{daemon.endpoint}/web"]]


def test_figures_of_all(blog: CannedDaemon, ctl: Run) -> None:
    assert [row[0] for row in rows(ctl("stats", "--all").out)[1:]] == ["blog/web", "shop/web"]


def test_json_has_each_reply_as_it_came(blog: CannedDaemon, ctl: Run) -> None:
    told = json.loads(ctl("list", "--all", "--json").out)["apps"]
    assert {app: reply["watchers"] for app, reply in told.items()} == {
        "blog": ["db", "web"],
        "shop": ["web"],
    }


def test_one_that_is_not_well(blog: CannedDaemon, ctl: Run) -> None:
    blog.replies["status"] = status_of(web=BROKEN)
    assert ctl("status", "--all").code == 3


def test_one_that_is_not_there(blog: CannedDaemon, ctl: Run) -> None:
    done = ctl("status", "-a", "nope", "-a", "shop")
    assert done.code == 4
    assert "error: nope: nope is not running" in done.err
    assert [row[0] for row in rows(done.out)[1:]] == ["shop/web"]


def test_a_watcher_that_only_some_have(blog: CannedDaemon, daemon: CannedDaemon, ctl: Run) -> None:
    def refuse(message: dict[str, Any]) -> None:
        raise MessageError("program db not found")

    daemon.replies["status"] = refuse
    blog.replies["status"] = {"status": "active", "watchers": {"db": WEB}}
    done = ctl("status", "db", "--all")
    assert (done.code, done.err) == (0, "")
    assert [row[0] for row in rows(done.out)[1:]] == ["blog/db"]
    blog.replies["status"] = refuse
    done = ctl("status", "db", "--all")
    assert done.code == 4
    assert "blog: program db not found" in done.err
    assert "shop: program db not found" in done.err


@pytest.mark.parametrize("command", ["stop", "top", "logs"])
def test_other_commands_are_for_one(blog: CannedDaemon, ctl: Run, command: str) -> None:
    done = ctl("--all", command)
    assert done.code == 2
    assert "one app, not several" in done.err


def test_none_runs(base: Path, ctl: Run) -> None:
    done = ctl("status", "--all")
    assert done.code == 4
    assert "no sysupd is running" in done.err
    with pytest.raises(discovery.NotRunning):
        discovery.running()
