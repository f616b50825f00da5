#!/usr/bin/env python
"""Sample text from a model folder or a finished run. The same as `mdmscale generate`; see --help."""

import sys

from mdmscale.generation.generate_command import main
from mdmscale.system.errors import run_command

if __name__ == "__main__":
    sys.exit(run_command(main))
