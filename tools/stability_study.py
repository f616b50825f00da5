#!/usr/bin/env python
"""Compare training methods over seeds at equal forward rows."""

import sys

from mdmscale.errors import run_command
from mdmscale.study.cli import main

if __name__ == "__main__":
    sys.exit(run_command(main))
