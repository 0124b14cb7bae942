"""Make what machines are booted and resumed from, where it is not there as it should be."""

import sys

from tests.lab import Unavailable, resume
from tests.lab.rootfs import CannotBuild, rootfs

if __name__ == "__main__":
    try:
        rootfs()
    except CannotBuild as error:
        sys.exit(f"cannot make a tree to boot: {error}")
    try:
        resume().close()
    except Unavailable as reason:
        sys.exit(str(reason))
