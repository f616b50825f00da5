#!/usr/bin/env python
"""Turn text or conversations into token shards. The same as `mdmscale prepare`; see --help."""

import sys

from mdmscale.data.preparation.prepare_command import main
from mdmscale.system.errors import run_command

if __name__ == "__main__":
    sys.exit(run_command(main))
