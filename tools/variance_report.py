#!/usr/bin/env python
"""Where the training variance of a checkpoint comes from, and what each method removes of it."""

import sys

from mdmscale.errors import run_command
from mdmscale.variance.cli import main

if __name__ == "__main__":
    sys.exit(run_command(main))
