#!/usr/bin/env python
"""Compare training methods over seeds at equal forward rows. The same as `mdmscale stability`; see --help."""

import sys

from mdmscale.analysis.study.study_command import main
from mdmscale.system.errors import run_command

if __name__ == "__main__":
    sys.exit(run_command(main))
