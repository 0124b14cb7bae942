"""Certificates: files with the keys of a ZeroMQ peer, as text.

The format is that of zmq.auth and CZMQ (rfc.zeromq.org/spec/4, ZPL):

    # what it is
    metadata
        role = "operate"
    curve
        public-key = "Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID"
        secret-key = "D:)Q[IlAW!ahhC2ac:9*A}h:p?([4%wOTJ%JR%cs"

Keys are 32 bytes as 40 characters (rfc.zeromq.org/spec/32, Z85). Who has the secret key is the
peer; a file without one may be known to all.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from sysup.protocol import SysupError

LONGEST = 1 << 16
"""Characters of a certificate that is read."""

_KEY = re.compile(r"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")


class BadCertificate(SysupError):
    """A text that is no certificate."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """The keys of a peer; `secret` is empty in what others have of it."""

    public: str
    secret: str = field(default="", repr=False)
    metadata: Mapping[str, str] = field(default_factory=dict)


def parse(text: str) -> Certificate:
    """Read a certificate. Raises BadCertificate with what is wrong."""
    sections: dict[str, dict[str, str]] = {}
    for section, name, value in _values(text):
        sections.setdefault(section, {})[name] = value
    keys = sections.get("curve", {})
    public, secret = keys.get("public-key", ""), keys.get("secret-key", "")
    if not public:
        raise BadCertificate("it has no public-key")
    for name, key in (("public-key", public), ("secret-key", secret)):
        if key and not _KEY.fullmatch(key):
            raise BadCertificate(f"its {name} is not 40 characters of Z85")
    return Certificate(public, secret, sections.get("metadata", {}))


def _values(text: str) -> Iterator[tuple[str, str, str]]:
    """(section, name, value), in the order of the text."""
    section = ""
    for line in text.splitlines():
        bare = line.strip()
        if not bare or bare.startswith("#"):
            continue
        name, equals, value = bare.partition("=")
        if equals and line[0].isspace():
            yield section, name.strip(), _unquoted(value.strip())
        elif not line[0].isspace():
            section = bare


def _unquoted(value: str) -> str:
    """The text of a value; a key may have any character but the quote it stands in."""
    quoted = re.fullmatch(r"\"([^\"]*)\"|'([^']*)'", value)
    return value if quoted is None else quoted[1] or quoted[2] or ""


def render(certificate: Certificate, remark: str) -> str:
    """The text of a certificate, which begins with a remark."""
    lines = [f"#   {line}" for line in remark.splitlines()]
    lines += ["", "metadata"]
    lines += [f'    {name} = "{value}"' for name, value in certificate.metadata.items()]
    lines += ["curve", f'    public-key = "{certificate.public}"']
    if certificate.secret:
        lines.append(f'    secret-key = "{certificate.secret}"')
    return "\n".join(lines) + "\n"
