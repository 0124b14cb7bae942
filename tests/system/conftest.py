"""What the tests of a whole system take from others."""

from tests.e2e.conftest import sysupd

__all__ = ["sysupd"]
