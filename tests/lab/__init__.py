"""Machines to test in, each with a real systemd as its PID 1, that live as long as their tests.

A container boots in half a second and is as fast as this machine. A virtual machine shows what
a container cannot: another kernel, and controllers of cgroups.
"""

from tests.lab.container import Container, Unavailable, boot
from tests.lab.image import resume
from tests.lab.vm import Vm

__all__ = ["Container", "Unavailable", "Vm", "boot", "resume"]
