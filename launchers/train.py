#!/usr/bin/env python
"""Train as a YAML file says. Works under `deepspeed`, `torchrun` and plain `python` (one rank)."""

import sys

from mdmscale.cli import train_main
from mdmscale.system.errors import run_command

if __name__ == "__main__":
    sys.exit(run_command(train_main))
