#!/usr/bin/env python
"""What a config needs and takes on a cluster. The same as `mdmscale plan`; see --help."""

import sys

from mdmscale.analysis.planning.plan_command import main
from mdmscale.system.errors import run_command

if __name__ == "__main__":
    sys.exit(run_command(main))
