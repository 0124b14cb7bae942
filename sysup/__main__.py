"""`sysupd FILE`, as a program."""

import gc


def main() -> None:
    """Run sysupd as this process."""
    gc.disable()  # what is loaded is no garbage, and stays; `program.run` has it look again
    from sysup import program

    program.main()


if __name__ == "__main__":
    main()
