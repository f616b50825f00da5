#!/usr/bin/env python
"""Write a small SFT set of arithmetic problems; see --help."""

import sys

from mdmscale.data.preparation.arithmetic import main
from mdmscale.system.errors import run_command

if __name__ == "__main__":
    sys.exit(run_command(main))
