#!/usr/bin/env python
"""Train the run that a YAML file describes. Works under `deepspeed`, `torchrun` and `python` (one rank)."""

import sys

from mdmscale.system.errors import run_command
from mdmscale.train_command import main

if __name__ == "__main__":
    sys.exit(run_command(main))
