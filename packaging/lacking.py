"""Print, for a shell, what sysup needs and a Python does not have; that Python runs this, with -I.

    /usr/bin/python3 -I packaging/lacking.py

Import decides, not metadata: Debian has cffi's runtime without its compiler.
"""

import importlib.util
import pathlib
import re
import shlex
import sys
import tomllib

PROJECT = pathlib.Path(__file__).parents[1] / "pyproject.toml"
MODULES = {"cffi": "_cffi_backend", "pyzmq": "zmq"}
"""Of distributions, where the module that is needed has another name."""

if __name__ == "__main__":
    dependencies = tomllib.loads(PROJECT.read_text())["project"]["dependencies"]
    for requirement in dependencies:
        found = re.match(r"[\w.-]+", requirement)
        assert found, f"no name in {requirement!r}"
        if importlib.util.find_spec(MODULES.get(found[0], found[0])) is None:
            sys.stdout.write(shlex.quote(requirement.replace(" ", "")) + "\n")
