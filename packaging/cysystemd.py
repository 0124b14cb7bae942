"""Build cysystemd's extensions in its source tree, for whoever packages sysup; run there.

From the C code that its authors made, as another Cython would make another. And with Python's
stable ABI alone, which code of Cython 3.2 can do with: what was built works with every later
Python too, as sysup's own extension does.
"""

import functools
import runpy
import sys
from typing import Any

import setuptools

STABLE = [("CYTHON_LIMITED_API", "1"), ("Py_LIMITED_API", "0x030B0000")]

if __name__ == "__main__":
    cython: Any = None  # which makes its import fail
    sys.modules["Cython"] = cython
    stable = functools.partial(setuptools.Extension, py_limited_api=True, define_macros=STABLE)
    vars(setuptools)["Extension"] = stable
    sys.path.insert(0, ".")
    sys.argv = ["setup.py", "-q", "build_ext", "--inplace"]
    runpy.run_path("setup.py")
