"""The wire: shapes that clients depend on, and bytes that nobody should send."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Generator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sysup import protocol
from sysup.protocol import ROWS, Errno, InvalidJson, MessageError, Request, Written, ok, ok_in_steps

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=10,
)


def test_a_request_of_circus() -> None:
    request = protocol.decode_request(
        b'{"id": "75dd", "command": "INCR", "properties": {"name": "web", "waiting": true}}'
    )
    assert request == Request("incr", {"name": "web", "waiting": True}, "75dd")
    assert request.waiting


def test_a_cast_and_a_request_without_properties() -> None:
    request = protocol.decode_request(b'{"command": "quit", "msg_type": "cast"}')
    assert request == Request("quit", {}, None, cast=True)
    assert not request.waiting
    assert protocol.decode_request(b'{"command": "quit", "properties": null}').properties == {}


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"[" * 100_000, b'{"a": NaN'])
def test_what_is_not_json(data: bytes) -> None:
    with pytest.raises(InvalidJson):
        protocol.decode_request(data)
    assert protocol.request_id(data) is None


@pytest.mark.parametrize(
    "data", [b"[]", b"1", b"null", b"{}", b'{"command": 1}', b'{"command": "a", "properties": 1}']
)
def test_json_of_another_shape(data: bytes) -> None:
    with pytest.raises(MessageError):
        protocol.decode_request(data)


@pytest.mark.parametrize(
    "value",
    [
        "a,b[{" * 100_000,
        '"' * 300_000,
        "\\" * 300_000,
        '\\",[' * 100_000,
        "\n" * 300_000,
        ["x" * 40_000] * 10,
        {str(n): n for n in range(9000)},
    ],
)
def test_a_long_request_may_be_a_long_text(value: object) -> None:
    data = protocol.encode_request(Request("send", {"text": value}, 1))
    assert len(data) > protocol.FEW_BYTES
    assert protocol.decode_request(data).properties == {"text": value}


@pytest.mark.parametrize(
    "data",
    [
        b"[" + b",".join([b"[]"] * 300_000) + b"]",
        b"[" + b",".join([b"0"] * 300_000) + b"]",
        b"{" + b",".join(b'"%d":{}' % n for n in range(90_000)) + b"}",
        b'{"command": "send", "id": 7, "properties": {"a":' * 20_000,
        b'"' * 900_000,
    ],
)
def test_what_would_take_long_to_read_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidJson, match="more than 20000 values"):
        protocol.decode_request(data)
    assert protocol.request_id(data) is None


@given(st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
def test_decoding_raises_nothing_else(data: bytes) -> None:
    with contextlib.suppress(InvalidJson, MessageError):
        protocol.decode_request(data)
    protocol.request_id(data)


IDS = JSON.filter(lambda value: len(json.dumps(value)) <= protocol.MAX_ID)


@given(st.text(), st.dictionaries(st.text(), JSON), IDS, st.booleans())
def test_requests_come_through(
    command: str, properties: dict[str, object], request_id: object, cast: bool
) -> None:
    request = Request(command.lower(), properties, request_id, cast)
    decoded = protocol.decode_request(protocol.encode_request(request))
    assert decoded == Request(command.lower().lower(), properties, request_id, cast)


def test_replies() -> None:
    assert json.loads(protocol.ok({"numprocesses": 4}, "75dd", 12.5)) == {
        "status": "ok",
        "time": 12.5,
        "numprocesses": 4,
        "id": "75dd",
    }
    assert json.loads(protocol.ok({"status": "active"}, None, 12.5))["status"] == "active"
    assert json.loads(protocol.error("program x not found", Errno.MESSAGE_ERROR, 7, 12.5)) == {
        "status": "error",
        "reason": "program x not found",
        "tb": None,
        "time": 12.5,
        "errno": 3,
        "id": 7,
    }
    more = json.loads(protocol.error("no", 5, 7, 12.5, fields={"added": ["x"], "status": "ok"}))
    assert (more["status"], more["reason"], more["added"]) == ("error", "no", ["x"])


def test_topics() -> None:
    assert protocol.topic("Web App", "reap") == b"watcher.web_app.reap"
    assert protocol.split_topic(b"watcher.web_app.reap") == ("web_app", "reap")
    assert protocol.split_topic(b"watcher.my.web.app.reap") == ("my.web.app", "reap")


def test_an_id_can_be_sent_back_or_it_is_refused() -> None:
    shallow = b'{"command": "version", "id": [[{"a": [1]}]]}'
    assert protocol.decode_request(shallow).id == [[{"a": [1]}]]
    for endless in (b"[" * 600 + b"]" * 600, b'"%s"' % (b"x" * 2000)):
        data = b'{"command": "version", "id": %s}' % endless
        with pytest.raises(protocol.MessageError, match="too long"):
            protocol.decode_request(data)
        assert protocol.request_id(data) is None


@given(st.dictionaries(st.text(), JSON | JSON.map(json.dumps).map(Written)), JSON)
def test_in_steps_a_reply_is_the_same(fields: dict[str, Any], number: Any) -> None:
    assert finished(ok_in_steps(fields, number, 5.0)) == ok(fields, number, 5.0)


def test_in_steps_keys_become_text_as_they_do_at_once() -> None:
    fields = {"a": {1: {"x": {2: {}}}, "b": {None: {}, True: {1.5: 2}}}}
    assert finished(ok_in_steps(fields, 1, 5.0)) == ok(fields, 1, 5.0)


def test_of_a_table_of_tables_some_rows_are_written_at_a_time() -> None:
    rows = {str(pid): {"pid": pid, "children": []} for pid in range(1000)}
    fields = {"infos": {"web": rows, "db": {}, "more": rows}}
    steps = ok_in_steps(fields, 1, 5.0)
    assert sum(1 for _ in steps) == 2 * (1000 // ROWS)
    assert finished(ok_in_steps(fields, 1, 5.0)) == ok(fields, 1, 5.0)


def finished(steps: Generator[None, None, bytes]) -> bytes:
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: bytes = end.value
            return result


@given(st.dictionaries(st.text(), JSON), JSON)
def test_what_is_written_already_stands_in_a_reply_as_it_is(
    fields: dict[str, Any], more: Any
) -> None:
    written = Written(json.dumps(more))
    frame = ok({**fields, "watchers": written, "id": 5}, 7, 5.0)
    wanted = {"status": "ok", "time": 5.0, **fields, "watchers": more, "id": 7}
    assert json.loads(frame) == json.loads(json.dumps(wanted))
