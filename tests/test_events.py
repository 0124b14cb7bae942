"""The event sockets: who subscribes to what, who gets output and who does not."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import pytest
import zmq

from sysup.events import (
    LONGEST_TOPIC,
    MOST_OUTPUT_TOPICS,
    MOST_STATS_TOPICS,
    MOST_TOPICS,
    Events,
    Topics,
    concealed,
)

T = TypeVar("T")
PATIENCE = 60.0
"""Seconds after which what was waited for is taken not to come."""

# ---- who subscribes to what --------------------------------------------------------------


def test_a_topic_is_wanted_as_long_as_somebody_wants_it() -> None:
    topics = Topics()
    for peer in (7, 8):
        topics.add(b"output.web.", peer)
    topics.add(b"watcher.", 7)
    assert topics.output == (b"output.web.",)
    topics.remove(b"output.web.", 8)
    assert topics.output == (b"output.web.",)
    topics.remove(b"output.web.", 7)
    assert not topics.output


@pytest.mark.parametrize("vanished", [1, 2])
def test_who_subscribes_twice_counts_once(vanished: int) -> None:
    topics = Topics()
    peers = [7, 8][:vanished]
    for peer in [*peers, *peers]:
        topics.add(b"output.", peer)
    for _ in peers:
        assert topics.output == (b"output.",)
        topics.remove(b"output.", None)
    assert topics.output == ()


def test_only_who_subscribed_can_unsubscribe() -> None:
    topics = Topics()
    topics.add(b"output.", 7)
    topics.remove(b"output.", 8)
    topics.remove(b"output.web.", 7)
    topics.remove(b"output.web.", None)
    assert topics.output == (b"output.",)
    topics.add(b"output.", 8)
    topics.remove(b"output.", None)  # 7 or 8 has gone
    topics.remove(b"output.", 8)
    assert not topics.output


def test_topics_are_bounded() -> None:
    topics = Topics()
    taken = [topics.add(b"output.%d" % n, 7) for n in range(MOST_OUTPUT_TOPICS + 5)]
    assert taken.count(True) == len(topics.output) == MOST_OUTPUT_TOPICS
    taken += [topics.add(b"x%d" % n, 7) for n in range(MOST_TOPICS)]
    assert taken.count(True) == MOST_TOPICS
    assert topics.add(b"output.0", 8), "it is there already"
    topics.remove(b"output.1", 7)
    assert topics.add(b"output.new", 7)


def test_what_processes_wrote_is_concealed() -> None:
    assert concealed({"last_output": "secret", "a": 1}) == {"last_output": "(hidden)", "a": 1}
    for fields in ({}, {"last_output": ""}):
        assert concealed(fields) == fields


# ---- the sockets -------------------------------------------------------------------------


class Stage:
    """The app's own socket and one for others, in a loop of their own."""

    def __init__(self, directory: Path) -> None:
        self.loop = asyncio.new_event_loop()
        self.problems: list[Mapping[str, Any]] = []
        self.loop.set_exception_handler(lambda _, context: self.problems.append(context))
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.events = Events(self.loop, self.context, lambda: 5.0)
        self.wanted: list[tuple[bytes, ...]] = []
        self.events.on_output_wanted = self.wanted.append
        self.own, self.outside = f"ipc://{directory}/events", f"ipc://{directory}/outside"
        self.events.serve(self.own, 0o600, -1)
        self.events.serve_outside(self.outside, hidden=True)
        self.stats = f"ipc://{directory}/stats"
        self.events.serve_stats(self.stats)
        self.clients: list[zmq.Socket[bytes]] = []

    def until(self, condition: Callable[[], T]) -> T:
        """Let the loop turn until the condition is true; its value."""
        deadline = time.monotonic() + PATIENCE
        while not (answer := condition()):
            assert time.monotonic() < deadline
            self.loop.run_until_complete(asyncio.sleep(0.001))
        return answer

    def client(self, kind: int, endpoint: str) -> zmq.Socket[bytes]:
        client: zmq.Socket[bytes] = self.context.socket(kind)
        client.setsockopt(zmq.LINGER, 0)
        client.connect(endpoint)
        self.clients.append(client)
        return client

    def subscriber(self, *topics: bytes) -> zmq.Socket[bytes]:
        """One whose subscriptions the app's own socket has seen."""
        client = self.client(zmq.SUB, self.own)
        echo = b"~%d" % len(self.clients)
        for topic in (*topics, echo):
            client.subscribe(topic)
        assert self.hear(client)[0] == echo
        return client

    def hear(self, client: zmq.Socket[bytes]) -> list[bytes]:
        self.until(lambda: client.poll(0))
        return client.recv_multipart()

    def close(self) -> None:
        for client in self.clients:
            client.close()
        self.events.close()
        self.loop.run_until_complete(asyncio.sleep(0))
        self.loop.close()
        self.context.term()
        assert self.problems == []


@pytest.fixture(params=["by hand", "by libzmq"])
def stage(
    tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Stage]:
    """Subscriptions are entered by us, or, as with an older libzmq, by itself."""
    if request.param == "by libzmq":
        monkeypatch.setattr(zmq, "zmq_version_info", lambda: (4, 3, 4))
    stage = Stage(tmp_path)
    yield stage
    stage.close()


def test_output_is_wanted_while_somebody_subscribes(stage: Stage) -> None:
    stage.subscriber(b"", b"watcher.", b"o", b"outpu")
    assert stage.wanted == []
    one = stage.subscriber(b"output.web.", b"output.web.", b"output.db.")
    two = stage.subscriber(b"output.web.")
    assert set(stage.wanted[-1]) == {b"output.web.", b"output.db."}
    one.close(0)
    stage.until(lambda: stage.wanted[-1] == (b"output.web.",))
    two.unsubscribe(b"output.web.")
    stage.until(lambda: stage.wanted[-1] == ())


def test_output_goes_to_those_who_want_it(stage: Stage) -> None:
    wants = stage.subscriber(b"output.web.")
    not_so = stage.subscriber(b"", b"o")
    stage.events.publish_output(b"output.db.1.stdout", {})
    stage.events.publish_output(b"output.web.1.stdout", {"data": "\udcff"})
    stage.events.publish("web", "reap", {})
    topic, body = stage.hear(wants)
    assert (topic, json.loads(body)) == (b"output.web.1.stdout", {"data": "\udcff", "time": 5.0})
    if stage.events._manual:
        assert stage.hear(not_so)[0] == b"watcher.web.reap"


def test_outside_is_no_output_and_no_last_words(stage: Stage) -> None:
    stranger = stage.client(zmq.SUB, stage.outside)
    stranger.subscribe(b"")

    def told() -> int:  # a PUB socket doesn't tell when a subscription is in force
        stage.events.publish_output(b"output.web.1.stdout", {"data": "secret"})
        stage.events.publish("web", "flapping", {"last_output": "secret"})
        return stranger.poll(0)

    stage.until(told)
    topic, body = stranger.recv_multipart()
    assert (topic, json.loads(body)["last_output"]) == (b"watcher.web.flapping", "(hidden)")


def test_a_long_topic_is_not_heeded(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    stage.subscriber(b"output." + b"x" * LONGEST_TOPIC, b"output." + b"y" * LONGEST_TOPIC)
    assert stage.wanted == []
    assert len(caplog.records) == 1


def test_what_is_no_subscription_harms_nobody(stage: Stage) -> None:
    client = stage.client(zmq.XSUB, stage.own)
    for message in (b"", b"nonsense", b"\0never", b"\0", b"\0output.", b"\1~echo"):
        client.send(message)
    assert stage.hear(client)[0] == b"~echo"
    assert stage.wanted == []


def test_nothing_is_told_after_the_end(stage: Stage) -> None:
    stage.events.close()
    stage.events.publish("web", "stop", {})
    stage.events.publish_output(b"output.web.1.stdout", {})


# ---- statistics --------------------------------------------------------------------------


def test_statistics_are_wanted_while_somebody_subscribes(stage: Stage) -> None:
    wanted: list[frozenset[bytes]] = []
    stage.events.on_stats_wanted = wanted.append
    stage.subscriber(b"", b"watcher.", b"s", b"stat", b"output.")
    assert wanted == []
    one = stage.subscriber(b"stat.web.")
    assert wanted == [{b"stat.web."}]
    outside = stage.client(zmq.SUB, stage.stats)
    outside.subscribe(b"")
    stage.until(lambda: wanted[-1] == {b"stat.web.", b""})
    one.close(0)
    stage.until(lambda: wanted[-1] == {b""})
    outside.close(0)
    stage.until(lambda: wanted[-1] == frozenset())


def test_statistics_go_to_those_who_want_them(stage: Stage) -> None:
    wants = stage.subscriber(b"stat.web.")
    not_so = stage.subscriber(b"", b"s")
    wanted: list[frozenset[bytes]] = []
    stage.events.on_stats_wanted = wanted.append
    outside = stage.client(zmq.SUB, stage.stats)
    outside.subscribe(b"stat.")
    stage.until(lambda: wanted and b"stat." in wanted[-1])
    stage.events.publish_stats(b"stat.web.7", {"cpu": 1.0})
    stage.events.publish("web", "reap", {})
    for client in (wants, outside):
        topic, body = stage.hear(client)
        assert (topic, json.loads(body)) == (b"stat.web.7", {"cpu": 1.0})
    if stage.events._manual:
        assert stage.hear(not_so)[0] == b"watcher.web.reap"


def test_too_many_topics_of_statistics_mean_all(stage: Stage) -> None:
    wanted: list[frozenset[bytes]] = []
    stage.events.on_stats_wanted = wanted.append
    client = stage.client(zmq.SUB, stage.stats)
    topics = [b"stat.%d" % n for n in range(MOST_STATS_TOPICS + 2)] + [b"x" * 2000]
    for topic in topics:
        client.subscribe(topic)
    stage.until(lambda: wanted and b"" in wanted[-1])
    stage.until(lambda: len(wanted[-1]) == MOST_STATS_TOPICS + 1)
    for topic in topics:
        client.unsubscribe(topic)
    stage.until(lambda: wanted[-1] == frozenset())


def test_what_is_no_subscription_is_none_of_statistics(stage: Stage) -> None:
    wanted: list[frozenset[bytes]] = []
    stage.events.on_stats_wanted = wanted.append
    client = stage.client(zmq.XSUB, stage.stats)
    for message in (b"", b"nonsense", b"\0never", b"\0", b"\1stat."):
        client.send(message)
    stage.until(lambda: wanted == [{b"stat."}])
