"""What systemd is told as an app starts, fares, reloads and stops; the clock stands still."""

from __future__ import annotations

from typing import Any

import pytest

from sysup.config import DaemonSpec, FlappingSpec
from sysup.herald import MARGIN, PAUSE, Herald
from sysup.policy import KILL_AGAIN
from sysup.protocol import SysupError
from sysup.systemd import Notifier
from sysup.watcher import Watcher
from tests.world import World


class Notes(Notifier):
    """Notes what would be sent; nothing is while `full`."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.full = False
        self.interval = ""

    @property
    def connected(self) -> bool:
        return True

    def environ(self) -> dict[str, str]:
        return {"WATCHDOG_USEC": self.interval}

    def close(self) -> None:
        self.sent.append("closed")

    def _send(self, *lines: str) -> bool:
        self.is_full = self.full
        if not self.full:
            self.sent.append(lines[0])
        return not self.full

    def take(self, begin: str = "") -> list[str]:
        """What was sent since it was asked before, with such a beginning."""
        taken, self.sent = self.sent, []
        return [line.removeprefix(begin) for line in taken if line.startswith(begin)]


class App:
    """Watchers with a herald, started one after the other."""

    def __init__(self, world: World, **options: Any) -> None:
        self.world = world
        self.notes = Notes()
        self.watchers: dict[str, Watcher] = {}
        self.herald = Herald(world.loop, self.notes, self.watchers, DaemonSpec(**options))
        told = world.board.publish

        def publish(name: str, event: str, payload: Any) -> None:
            told(name, event, payload)
            self.herald.changed()

        world.board.publish = publish

    def add(self, name: str, **options: Any) -> Watcher:
        self.watchers[name] = self.world.watcher(name, **options)
        return self.watchers[name]

    def begin(self, *names: str) -> None:
        for name in names or self.watchers:
            self.watchers[name].begin_start()
        self.herald.serve(self.world.pump, "ipc:///nowhere")
        self.world.loop.settle()

    def begun(self) -> None:
        self.herald.begun()
        self.look()

    def look(self) -> None:
        self.world.loop.advance(PAUSE)

    def is_ready(self) -> bool:
        return "READY=1" in self.notes.sent


@pytest.mark.parametrize(
    ("ready_when", "at_once", "when_begun", "when_ready"),
    [("loaded", True, True, True), ("started", False, True, True), ("ready", False, False, True)],
)
def test_when_it_is_ready(
    world: World, ready_when: str, at_once: bool, when_begun: bool, when_ready: bool
) -> None:
    app = App(world, ready_when=ready_when)
    app.add("a", ready="uptime:5")
    app.add("b", ready="uptime:5", numprocesses=2)
    app.begin("a")
    assert app.is_ready() is at_once
    app.watchers["b"].begin_start()
    app.begun()
    assert app.is_ready() is when_begun
    world.loop.advance(5.0)
    assert app.is_ready() is when_ready
    assert app.notes.sent.count("READY=1") == 1


def test_an_app_of_nothing_is_ready(world: World) -> None:
    app = App(world)
    app.begin()
    app.begun()
    assert app.is_ready()


def test_started_is_when_the_last_process_is(world: World) -> None:
    app = App(world, ready_when="started")
    app.add("a", numprocesses=3, warmup_delay=5.0)
    app.begin()
    app.begun()
    world.loop.advance(5.0)
    assert not app.is_ready()
    world.loop.advance(5.0)
    assert app.is_ready()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_retry": 0},
        {"restart": "never"},
        {"flapping": False},
        {"numprocesses": 0},
    ],
)
def test_a_bad_process_holds_nobody_up(world: World, options: dict[str, Any]) -> None:
    """Waiting for its retry, or given up, or at its end: that is known and shown."""
    if options.pop("flapping", True) is False:
        options["flapping"] = FlappingSpec(active=False)
    world.os.dies["bad"] = 1
    app = App(world)
    app.add("bad", **options)
    app.add("good")
    app.begin()
    app.begun()
    assert app.is_ready()


def test_what_cannot_be_spawned_holds_nobody_up(world: World) -> None:
    world.os.fails["bad"] = "no such file"
    app = App(world)
    app.add("bad")
    app.begin()
    app.begun()
    assert app.is_ready()
    world.loop.advance(1.0)
    assert app.notes.take("STATUS=")[-1] == "0/1 ready, 1 flapping: bad.1 no such file"


def test_the_status_line(world: World) -> None:
    app = App(world)
    app.add("web", numprocesses=3)
    app.add("job", restart="never")
    app.begin()
    app.begun()
    assert app.notes.take("STATUS=") == ["starting: 4/4 ready", "4/4 ready"]
    world.os.die(104, 0)
    app.look()
    assert app.notes.take("STATUS=") == ["3/3 ready, 1 done"]
    world.os.die(102, 3)
    world.loop.settle()
    world.os.die(105, 3)
    app.look()
    assert app.notes.take("STATUS=")[-1] == "2/3 ready, 1 flapping: web.2 exit code 3, 1 done"


def test_nothing_is_said_twice_and_nothing_is_done_meanwhile(world: World) -> None:
    app = App(world)
    app.add("web")
    app.begin()
    app.begun()
    app.notes.take()
    app.herald.changed()
    app.look()
    assert app.notes.take() == []
    assert app.herald._timer is None, "nothing is planned"


def test_a_hundred_changes_are_one_look(world: World) -> None:
    app = App(world)
    app.add("web")
    app.begin()
    app.begun()
    app.notes.take()
    for status in range(100):
        world.os.die(max(world.os.living), status)
        world.loop.settle()
        if not world.os.living:
            break
    app.look()
    assert len(app.notes.take("STATUS=")) <= 2


def test_what_found_the_queue_full_is_said_at_the_next_change(world: World) -> None:
    app = App(world)
    app.add("web")
    app.begin()
    app.notes.full = True
    app.begun()
    app.notes.full = False
    app.herald.changed()
    app.look()
    assert app.notes.take("STATUS=")[-1] == "1/1 ready"


def test_that_it_is_ready_is_told_until_it_is_heard(world: World) -> None:
    app = App(world)
    app.add("web")
    app.begin()
    app.notes.full = True
    app.begun()
    app.look()
    app.notes.full = False
    app.look()
    assert app.notes.take()[-2:] == ["READY=1", "STATUS=1/1 ready"]
    with app.herald.reload():
        app.notes.full = True
    app.look()
    app.notes.full = False
    app.look()
    assert app.notes.take()[0::2] == ["RELOADING=1", "READY=1"]


# ---- more time ---------------------------------------------------------------------------


def test_each_step_of_a_long_start_asks_for_the_time_of_the_next(world: World) -> None:
    app = App(world, warmup_delay=7.0)
    app.add("web", numprocesses=3, warmup_delay=100.0)
    app.begin()
    app.begun()
    for _ in range(2):
        asked = app.notes.take("EXTEND_TIMEOUT_USEC=")
        assert asked
        assert set(asked) == {str(round((100.0 + MARGIN) * 1e6))}
        world.loop.advance(100.0)
    assert app.is_ready()
    app.notes.take()
    world.os.die(101)
    app.look()
    assert app.notes.take("EXTEND") == [], "only a start needs time"


def test_who_dies_before_it_is_ready_holds_nobody_up(world: World) -> None:
    """It runs long enough each time to have all its retries again."""
    app = App(world)
    app.add("slow", ready="uptime:1000", stable_after=10.0)
    app.begin()
    app.begun()
    world.loop.advance(15.0)
    assert not app.is_ready()
    app.notes.take()
    world.os.die(101)
    app.look()
    assert app.is_ready()
    assert app.notes.take("STATUS=") == ["0/1 ready"]


def test_who_dies_again_and_again_gets_no_more_time(world: World) -> None:
    app = App(world)
    app.add("slow", ready="uptime:1000")
    app.add("bad", ready="uptime:1000")
    app.begin()
    app.begun()
    app.notes.take()
    for _ in range(20):
        world.loop.advance(15.0)
        world.os.die(max(world.os.living))
        app.look()
    assert not app.is_ready()
    assert app.notes.take("EXTEND") == []


def test_a_stop_asks_for_the_time_of_its_stages_while_it_gets_on(world: World) -> None:
    app = App(world)
    app.add("web", numprocesses=2, graceful_timeout=200.0, drain_timeout=1.0)
    app.begin()
    app.begun()
    app.notes.take()
    world.os.deaf = {15}
    app.herald.stopping()
    app.watchers["web"].begin_stop()
    app.look()
    asked = f"EXTEND_TIMEOUT_USEC={round((200.0 + KILL_AGAIN + 1.0 + MARGIN) * 1e6)}"
    assert app.notes.take() == ["STOPPING=1", asked, "STATUS=stopping: 2 processes left"]
    world.os.die(101, -9)
    app.look()
    assert app.notes.take() == [asked, "STATUS=stopping: 1 process left"]
    world.loop.advance(100.0)
    assert app.notes.take() == []


# ---- reload ------------------------------------------------------------------------------


def test_a_reload_begins_and_ends(world: World) -> None:
    app = App(world)
    app.begin()
    app.begun()
    app.notes.take()
    with app.herald.reload():
        assert app.notes.take()[0] == "RELOADING=1"
    assert app.notes.take() == ["READY=1"]


def test_a_reload_that_fails_says_why_until_one_succeeds(world: World) -> None:
    app = App(world)
    app.begin()
    app.begun()
    app.notes.take()
    with pytest.raises(SysupError), app.herald.reload():
        raise SysupError("cannot reload the config: it is wrong")
    assert "READY=1" in app.notes.take()
    app.look()
    assert app.notes.take() == ["STATUS=0/0 ready; cannot reload the config: it is wrong"]
    with app.herald.reload():
        pass
    app.look()
    assert app.notes.take("STATUS=") == ["0/0 ready"]


def test_a_reload_before_the_start_is_over_says_nothing(world: World) -> None:
    app = App(world)
    app.add("web", ready="uptime:5")
    app.begin()
    app.notes.take()
    with app.herald.reload():
        pass
    assert not {"RELOADING=1", "READY=1"} & {*app.notes.take()}


def test_after_the_end_has_begun_nothing_is_ready_again(world: World) -> None:
    app = App(world)
    app.begin()
    app.begun()
    app.notes.take()
    with app.herald.reload():
        app.herald.stopping()
    assert "READY=1" not in app.notes.take()


def test_without_systemd_nothing_is_looked_at(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    herald = Herald(world.loop, Notifier(), {}, DaemonSpec())
    herald.serve(world.pump, "ipc:///nowhere")
    herald.begun()
    assert herald._timer is None
    with herald.reload():
        herald.stopping()
    herald.close()
