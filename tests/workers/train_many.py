"""Train each config of a JSON list in turn, in one process group: argv[1] names the file."""

import json
import sys
from pathlib import Path

import torch

from mdmscale.config.run import RunConfig
from mdmscale.parallel.ranks import finalise
from mdmscale.training.trainer import train

if __name__ == "__main__":
    for values in json.loads(Path(sys.argv[1]).read_text()):
        train(RunConfig.model_validate(values))
        torch.nn.functional.linear = torch._C._nn.linear  # ZeRO-3 leaves its own there, which is slower
    finalise()
