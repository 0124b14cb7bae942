"""The C extension, and what a source distribution has; all else is in pyproject.toml."""

from setuptools import setup
from setuptools.command.egg_info import manifest_maker

manifest_maker.template = "packaging/manifest.in"  # else MANIFEST.in, at the top

setup(cffi_modules=["_native/build.py:ffi"])
