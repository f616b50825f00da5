#!/usr/bin/env python
"""Sample text from a model folder or a finished run. The same as `mdmscale generate`; see --help."""

import sys

from mdmscale.errors import run_command
from mdmscale.generation.cli import main

if __name__ == "__main__":
    sys.exit(run_command(main))
