#!/usr/bin/env python
"""Inspect, import and export model folders. The same as `mdmscale convert`; see --help."""

import sys

from mdmscale.conversion.convert_command import main
from mdmscale.system.errors import run_command

if __name__ == "__main__":
    sys.exit(run_command(main))
