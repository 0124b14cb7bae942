"""Machines to test in: a real systemd as PID 1 of a container that lives as long as its test."""

from tests.lab.container import Container, Unavailable, boot

__all__ = ["Container", "Unavailable", "boot"]
