"""What is set at run time is saved as a drop-in says it, or not at all."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sysup.config import amended, saved_options, saved_path, with_options
from sysup.protocol import MessageError
from tests.config_files import MAIN, load
from tests.test_config_live import SETTABLE
from tests.test_config_live import _texts as texts_of

SAVED = saved_path(MAIN).removeprefix("/etc/sysup/")


@settings(deadline=None, max_examples=400)
@given(data=st.data())
def test_what_is_saved_is_read_again(data: st.DataObject) -> None:
    option = data.draw(st.sampled_from(SETTABLE))
    text = data.draw(texts_of(option))
    main = "[watcher:web]\ncmd = x\n[socket:s]\nport = 1\n"
    options = {option.name: option.plain(option.read(text))}
    if option.name == "copy_path":
        options["copy_env"] = True
    if text == "socket":
        options["stdin_socket"] = "s"
    wanted = with_options(load(main).watchers["web"], options)
    drop_in = amended(amended("", "other", {"cmd": "y"}), "web", options)
    read = load(main, more={SAVED: drop_in})
    assert read.watchers["web"] == wanted
    assert read.watchers["other"].cmd == "y"
    assert saved_options(drop_in) == {"other": ["cmd"], "web": sorted(options)}


def test_what_was_saved_before_stays_unless_it_is_said_anew() -> None:
    text = amended("", "web", {"numprocesses": 2, "args": ["a b", "c"], "shell": True})
    text = amended(text, "web", {"numprocesses": 3, "env": {"A": "1"}})
    text = amended(text, "web", {"env": {"B": "x y"}, "stdout_stream": {"class": "StdoutStream"}})
    spec = load("[watcher:web]\ncmd = x\n", more={SAVED: text}).watchers["web"]
    assert (spec.numprocesses, spec.args, spec.shell) == (3, "'a b' c", True)
    assert spec.env == {"A": "1", "B": "x y"}
    assert spec.stdout_stream is not None
    assert spec.stdout_stream.cls == "StdoutStream"
    assert saved_options(text)["web"] == [
        *("args", "env", "numprocesses", "shell", "stdout_stream.class"),
    ]


@pytest.mark.parametrize("text", ["a\nb", " a", "a ", "a ; b", ";", "a\0", '""', "a\r"])
def test_what_no_file_can_say_is_not_saved(text: str) -> None:
    with pytest.raises(MessageError, match=r"cannot save cmd: .* can't be said in a file"):
        amended("", "web", {"cmd": text})
    with pytest.raises(MessageError, match="cannot save A"):
        amended("", "web", {"env": {"A": text}})
