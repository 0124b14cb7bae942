"""The C extension; everything else about the package is in pyproject.toml."""

from setuptools import setup

setup(cffi_modules=["_native/build.py:ffi"])
