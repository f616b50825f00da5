#!/usr/bin/env python
"""Where the training variance of a checkpoint comes from, and what each method removes of it."""

import sys

from mdmscale.analysis.variance.variance_command import main
from mdmscale.system.errors import run_command

if __name__ == "__main__":
    sys.exit(run_command(main))
