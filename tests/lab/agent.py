"""Runs commands inside a virtual machine, one at a time: `agent.py DEVICE`, started at boot.

The device is a port that the test's process has the other end of. A request is a line of JSON
(`command`, `input`: so many bytes follow, `timeout`), and so is the answer (`status`, negative
where a signal ended it and null after the timeout; `out`, `err`: so many bytes follow).
"""

import json
import os
import subprocess
import sys
import time

UNCONNECTED = 0.05
"""Seconds to wait when nobody has the other end: a read then says that all was read."""


def main(device: str) -> None:
    """Serve until the machine ends."""
    port = os.open(device, os.O_RDWR)
    with os.fdopen(port, "rb") as requests:
        while True:
            line = requests.readline()
            if not line:
                time.sleep(UNCONNECTED)
                continue
            request = json.loads(line)
            status, out, err = run(
                request["command"], requests.read(request["input"]), request["timeout"]
            )
            answer = json.dumps({"status": status, "out": len(out), "err": len(err)})
            data = memoryview(answer.encode() + b"\n" + out + err)
            while data:
                data = data[os.write(port, data) :]


def run(command: list[str], input: bytes, timeout: float) -> tuple[int | None, bytes, bytes]:
    """Its status, output and errors; one that can't be started has 127, as in a shell."""
    try:
        done = subprocess.run(
            command, input=input, capture_output=True, cwd="/root", timeout=timeout
        )
    except subprocess.TimeoutExpired as error:
        return None, error.stdout or b"", error.stderr or b""
    except OSError as error:
        return 127, b"", f"{error}\n".encode()
    return done.returncode, done.stdout, done.stderr


if __name__ == "__main__":
    main(sys.argv[1])
