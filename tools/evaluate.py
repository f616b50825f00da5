#!/usr/bin/env python
"""Measure a model: likelihood, tasks, lm-evaluation-harness. The same as `mdmscale evaluate`; see --help."""

import sys

from mdmscale.evaluate_command import main
from mdmscale.system.errors import run_command

if __name__ == "__main__":
    sys.exit(run_command(main))
