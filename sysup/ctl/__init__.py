"""sysupctl."""

import gc


def main() -> int:
    """Run sysupctl as this process; returns its exit code."""
    gc.disable()  # what is loaded is no garbage, and stays
    from sysup.ctl import program

    gc.freeze()  # else all of it is looked through at the end, which takes a sixth of the time
    gc.enable()
    return program.main()
