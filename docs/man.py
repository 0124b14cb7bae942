"""The manual pages, from the pages of this directory and from what --help is made of.

    python -m docs.man DIRECTORY        writes man8/sysupd.8, man1/sysupctl.1 and so on there

What the reference pages say is said once: they are Markdown, of which a few forms are used, and
here these become man(7). Nothing else does.
"""

from __future__ import annotations

import datetime
import inspect
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from docs import config, sysupctl
from sysup import __version__
from sysup.program import main as sysupd

HERE = Path(__file__).parent
NOTES = {"#": "\\(sh", "\\": "\\e", "-": "\\-", "`": "\\(ga", "^": "\\(ha", "~": "\\(ti"}
"""Characters that are something else to troff, or look like something else."""
NOTES |= {"'": "\\(aq", '"': "\\(dq"}
SEE_ALSO = "*sysupd*(8), *sysupctl*(1), *sysup.ini*(5), *sysup@.service*(8), *systemctl*(1), \
*journalctl*(1)"

SYSUPD = """\
## Name

sysupd - run and watch the processes of an app

## Synopsis

`sysupd` [*OPTION*]... *FILE*

## Description

{help}

FILE is described in *sysup.ini*(5). The name of the app is that of the file, without `.ini`;
`sysupctl -a NAME` finds it by that. As a service it is *sysup@.service*(8).

## Options

{options}
## Environment

- `NOTIFY_SOCKET`, `WATCHDOG_USEC`, `LISTEN_FDS`: what systemd says to a service; the processes do
  not see them.
- `SYSUP_RUNTIME_DIR`: where the directories of apps are, in the place of those below.

## Files

- `/etc/sysup/APP.ini`, `/etc/sysup/APP.d/*.ini`: what `sysup@APP.service` runs.
- `/run/sysup/APP/`: the control socket, and what is for the next daemon to find.
- `$XDG_RUNTIME_DIR/sysup/APP/`: the same for other users than root.
"""


def pages() -> dict[str, str]:
    """The name and text of each."""
    return {
        "sysupd.8": page("sysupd", 8, sysupd_page()),
        "sysupctl.1": page("sysupctl", 1, sysupctl_page()),
        "sysup.ini.5": page("sysup.ini", 5, config_page()),
        "sysup@.service.8": page("sysup@.service", 8, service_page()),
    }


def page(name: str, section: int, markdown: str) -> str:
    """A page; its day is SOURCE_DATE_EPOCH's, if that is set."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    now = datetime.datetime.now(datetime.UTC)
    day = datetime.datetime.fromtimestamp(int(epoch), datetime.UTC) if epoch else now
    head = f'.TH {escape(name.upper())} {section} {day:%Y-%m-%d} "sysup {__version__}"'
    return "\n".join([head, *troff(f"{markdown}\n\n## See also\n\n{SEE_ALSO}\n")]) + "\n"


# ---- what each page says ------------------------------------------------------------------


def sysupd_page() -> str:
    """From the declaration that --help comes from."""
    text = re.sub(r"\x08\n((?:.+\n?)+)", _kept_as_it_is, inspect.cleandoc(sysupd.help or ""))
    options = [item for item in sysupd.params if isinstance(item, click.Option) and not item.hidden]
    with click.Context(sysupd, **sysupd.context_settings) as context:
        rows = [item.get_help_record(context) for item in [*options, *_help(context)]]
    listed = "".join(f"- `{names}`: {what}\n" for names, what in filter(None, rows))
    return SYSUPD.format(help=text, options=listed)


def _help(context: click.Context) -> list[click.Option]:
    option = sysupd.get_help_option(context)
    return [option] if option else []


def _kept_as_it_is(block: re.Match[str]) -> str:
    return "\n" + re.sub("(?m)^", "    ", block[1].rstrip()) + "\n"


def sysupctl_page() -> str:
    """The reference page, whose commands are from the program's declarations."""
    body = _after_title(sysupctl.page()).partition("\n\n")[2]
    return (
        "## Name\n\nsysupctl - steer sysupd, the process supervisor\n\n"
        "## Synopsis\n\n`sysupctl` [*OPTION*]... *COMMAND* [*ARGUMENT*]...\n\n"
        f"## Description\n\n{body}"
    )


def config_page() -> str:
    """The reference page, which is made from the declarations of the options."""
    body = re.sub(r"<!--.*?-->\n+", "", _after_title(config.page()))
    return f"## Name\n\nsysup.ini - what sysupd runs\n\n## Description\n\n{body}"


def service_page() -> str:
    """What is told of systemd, but for how to build."""
    body = _after_title((HERE / "systemd.md").read_text())
    body = re.sub(r"(?s)\n## Install\n.*?(?=\n## )", "\n", body)
    return (
        "## Name\n\nsysup@.service, sysup@.socket, sysup.target - apps of sysup under systemd\n\n"
        "## Synopsis\n\n`sysup@`*APP*`.service`\n\n`sysup@`*APP*`.socket`\n\n"
        f"## Description\n\n{body}"
    )


def _after_title(markdown: str) -> str:
    return markdown.partition("\n\n")[2]


# ---- from Markdown to man(7) --------------------------------------------------------------


def troff(markdown: str) -> Iterator[str]:
    """The lines of a text in man(7)."""
    above = ""
    for line in _blocks_of_troff(markdown):
        if line != ".PP" or not above.startswith((".SH", ".SS")):
            yield line
            above = line


def _blocks_of_troff(markdown: str) -> Iterator[str]:
    for block in blocks(markdown):
        first = block[0]
        if found := re.match(r"(#+) (.*)", first):
            yield from _heading(len(found[1]), found[2])
        elif first.startswith("|"):
            yield from _table(block)
        elif first.startswith(("- ", "1. ")):
            yield from _list(block)
        elif first.startswith(("    ", "```")):
            yield from _example(block)
        else:
            yield from [".PP", *_prose(" ".join(block))]


def blocks(markdown: str) -> Iterator[list[str]]:
    """Headings, paragraphs, tables, lists and examples, each as its lines."""
    block: list[str] = []
    for line in markdown.splitlines():
        if block and _goes_on(block, line):
            block.append(line)
        else:
            if block:
                yield block
            block = [line] if line else []
    if block:
        yield block


def _goes_on(block: list[str], line: str) -> bool:
    """Whether a line is of the block above it."""
    if block[0].startswith("```"):
        return len(block) == 1 or block[-1] != "```"
    if block[0].startswith("    "):
        return not line or line.startswith("    ")
    return bool(line)


def _heading(level: int, text: str) -> Iterator[str]:
    if level == 2:
        yield f".SH {_quoted(text if text.startswith('[') else text.upper())}"
    else:
        yield f".SS {_quoted(text)}"


def _table(rows: list[str]) -> Iterator[str]:
    """A paragraph a row, under the row's first cell."""
    head, _, *cells = [
        [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", row)[1:-1]]
        for row in rows
    ]
    for first, *rest in cells:
        said = list(zip(head[1:], rest, strict=False))
        notes = [f"{name.lower()}: {cell}" for name, cell in said[:-1] if cell]
        text = said[-1][1]
        yield from [".TP", *_prose(first, bold=True)]
        yield from _prose(f"{text} ({'; '.join(notes)})" if notes else text)


def _list(lines: list[str]) -> Iterator[str]:
    items: list[str] = []
    for line in lines:
        if found := re.match(r"(?:-|\d+\.) (.*)", line):
            items.append(found[1])
        else:
            items[-1] += f" {line.strip()}"
    for item in items:
        if found := re.match(r"(`[^`]+`(?:,? [^:]*?`[^`]+`)*(?: \([^:]*\))?): (.*)", item):
            yield from [".TP", *_prose(found[1]), *_prose(found[2])]
        else:
            yield from [".IP \\(bu 2", *_prose(item)]


def _example(lines: list[str]) -> Iterator[str]:
    fenced = lines[0].startswith("```")
    kept = [line for line in lines if not line.startswith("```")] if fenced else lines
    while kept and not kept[-1].strip():
        kept = kept[:-1]
    yield from [".PP", ".RS 4", ".nf"]
    for line in kept:
        yield _at_line_start(escape(line if fenced else line[4:]))
    yield from [".fi", ".RE"]


def _prose(text: str, bold: bool = False) -> Iterator[str]:
    """A sentence a line, with its fonts."""
    text = re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", text)
    line = "".join(_spans(text))
    if bold and "\\f" not in line:
        line = f"\\fB{line}\\fR"
    for sentence in re.split(r"(?<=[a-z)R][.:]) (?=[A-Z\\])", line.strip()) or [""]:
        yield _at_line_start(sentence)


def _spans(text: str) -> Iterator[str]:
    for part in re.findall(r"`[^`]+`|\*\*[^*]+\*\*|\*[^* ][^*]*\*|[^`*]+|.", text):
        if part.startswith("`") and len(part) > 1:
            yield f"\\fB{escape(part[1:-1])}\\fR"
        elif part.startswith("**") and len(part) > 2:
            yield f"\\fB{escape(part[2:-2])}\\fR"
        elif part.startswith("*") and len(part) > 1:
            yield f"\\fI{escape(part[1:-1])}\\fR"
        else:
            yield escape(part)


def _quoted(text: str) -> str:
    return '"' + escape(text.replace("`", "")) + '"'


def escape(text: str) -> str:
    """Text as troff prints it."""
    return "".join(NOTES.get(c, c) if c.isascii() else f"\\[u{ord(c):04X}]" for c in text)


def _at_line_start(line: str) -> str:
    return f"\\&{line}" if line.startswith((".", "'")) or not line else line


if __name__ == "__main__":
    directory = Path(sys.argv[1])
    for name, text in pages().items():
        path = directory / f"man{name[-1]}" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
