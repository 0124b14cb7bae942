"""sysup: a process supervisor for Linux that lives inside systemd."""

__version__ = "0.1.0"
