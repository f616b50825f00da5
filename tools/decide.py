#!/usr/bin/env python
"""Decide which variance reduction changes results, on many seeds of small models. See --help."""

import sys

from mdmscale.analysis.decision.decide_command import main
from mdmscale.system.errors import run_command

if __name__ == "__main__":
    sys.exit(run_command(main))
