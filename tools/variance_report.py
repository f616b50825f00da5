#!/usr/bin/env python
"""Measure the sources of a checkpoint's training variance. The same as `mdmscale variance`; see --help."""

import sys

from mdmscale.analysis.variance.variance_command import main
from mdmscale.system.errors import run_command

if __name__ == "__main__":
    sys.exit(run_command(main))
