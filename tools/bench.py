#!/usr/bin/env python
"""What a training step costs, path by path and part by part. The same as `mdmscale bench`; see --help."""

import sys

from mdmscale.analysis.bench.bench_command import main
from mdmscale.system.errors import run_command

if __name__ == "__main__":
    sys.exit(run_command(main))
