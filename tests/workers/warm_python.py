"""Run a script as `python script arguments` does, in a fork of a warm process.

Tests of documented commands put it on PATH as `python`. argv[1] is the socket of the fork server. What is not
a script starts a new interpreter.
"""

import os
import sys
from pathlib import Path

from forked import Job


def main() -> int:
    address, *command = sys.argv[1:]
    if not command[0].endswith(".py"):
        os.execv(sys.executable, [sys.executable, *command])
    job = Job(command, 0, Path.cwd(), dict(os.environ), join_output=False, address=address)
    try:
        status = job.wait(1000)
    finally:
        job.kill()
    sys.stdout.write(job.stdout)
    sys.stderr.write(job.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
