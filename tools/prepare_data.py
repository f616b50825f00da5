#!/usr/bin/env python
"""Text, JSONL, parquet or Hugging Face datasets to token shards; SFT JSONL to prepared shards."""

import sys

from mdmscale.data.preparation.prepare_command import main
from mdmscale.system.errors import run_command

if __name__ == "__main__":
    sys.exit(run_command(main))
