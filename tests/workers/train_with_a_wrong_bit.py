"""Train the config argv[1]; after step argv[2] one bit of a weight is wrong on rank argv[3]."""

import os
import sys
from typing import Any

import torch

from mdmscale.system.errors import run_command
from mdmscale.system.stop import StopRequest
from mdmscale.train_command import main
from mdmscale.training import trainer
from mdmscale.training.setup import Run


def train_step(run: Run, stop: StopRequest) -> tuple[dict[str, Any], bool]:
    result = take_step(run, stop)
    if run.step == int(sys.argv[2]) and os.environ["RANK"] == sys.argv[3]:
        weight = next(run.engine.module.parameters()).detach()
        weight.view(torch.int32).view(-1)[0] ^= 1 << 20
    return result


if __name__ == "__main__":
    take_step, trainer.train_step = trainer.train_step, train_step
    sys.exit(run_command(lambda: main(["--config", sys.argv[1]])))
