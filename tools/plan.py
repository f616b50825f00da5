#!/usr/bin/env python
"""What a config needs and takes on a cluster. The same as `mdmscale plan`; see --help."""

import sys

from mdmscale.errors import run_command
from mdmscale.planning.cli import main

if __name__ == "__main__":
    sys.exit(run_command(main))
