#!/usr/bin/env python
"""Measure the cost of a training step, by path and by part. The same as `mdmscale bench`; see --help."""

import sys

from mdmscale.analysis.bench.bench_command import main
from mdmscale.system.errors import run_command

if __name__ == "__main__":
    sys.exit(run_command(main))
