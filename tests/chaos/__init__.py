"""What outlives the daemon, shown by ending it: `python -m tests.chaos --help`."""
