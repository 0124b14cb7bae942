"""Certificates as text, against those that zmq.auth writes and reads."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import zmq
import zmq.auth
from hypothesis import given
from hypothesis import strategies as st

from sysup.certificates import BadCertificate, Certificate, parse, render

PUBLIC, SECRET = (key.decode() for key in zmq.curve_keypair())


def test_what_zmq_auth_writes_is_read(tmp_path: Path) -> None:
    for _ in range(50):  # keys may begin or end with any sign
        public, secret = zmq.auth.create_certificates(tmp_path, "ops", {"role": "operate"})
        assert parse(Path(public).read_text()).secret == ""
        found = parse(Path(secret).read_text())
        assert (found.public.encode(), found.secret.encode()) == zmq.auth.load_certificate(secret)
        assert found.metadata == {"role": "operate"}


@pytest.mark.parametrize("secret", [SECRET, ""])
def test_what_is_written_zmq_auth_reads(tmp_path: Path, secret: str) -> None:
    made = Certificate(PUBLIC, secret, {"role": "read"})
    text = render(made, "Who it is.\nsecret-key = no")
    assert parse(text) == made
    (tmp_path / "x.key").write_text(text)
    found = zmq.auth.load_certificate(tmp_path / "x.key")
    assert found == (PUBLIC.encode(), secret.encode() or None)


def test_a_secret_is_not_told() -> None:
    assert SECRET not in repr(Certificate(PUBLIC, SECRET))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "it has no public-key"),
        ("public-key = x", "it has no public-key"),
        ("metadata\n    public-key = x", "it has no public-key"),
        ("curve\n    public-key = short", "its public-key is not 40 characters"),
        (f'curve\n    public-key = "{PUBLIC}"\n    secret-key = "é"', "its secret-key is not 40"),
    ],
)
def test_what_is_no_certificate(text: str, reason: str) -> None:
    with pytest.raises(BadCertificate, match=reason):
        parse(text)


@given(st.text(st.sampled_from("curve\n\t \"'=#public-keymtd")) | st.text())
def test_no_text_does_harm(text: str) -> None:
    with contextlib.suppress(BadCertificate):
        parse(text)
