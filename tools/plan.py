#!/usr/bin/env python
"""Estimate memory, time and cost of a config on a cluster. The same as `mdmscale plan`; see --help."""

import sys

from mdmscale.analysis.planning.plan_command import main
from mdmscale.system.errors import run_command

if __name__ == "__main__":
    sys.exit(run_command(main))
