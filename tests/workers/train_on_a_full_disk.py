"""Train the config argv[1]; from the checkpoint of step argv[2] on, rank argv[3] can write no large file."""

import os
import resource
import sys

from mdmscale.system.errors import run_command
from mdmscale.train_command import main
from mdmscale.training import trainer
from mdmscale.training.setup import Run

LARGEST = 20_000  # bytes


def save_checkpoint(run: Run, scores: dict[str, float]) -> None:
    if run.step == int(sys.argv[2]) and os.environ["RANK"] == sys.argv[3]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST, resource.RLIM_INFINITY))
    save(run, scores)


if __name__ == "__main__":
    save, trainer.save_checkpoint = trainer.save_checkpoint, save_checkpoint
    sys.exit(run_command(lambda: main(["--config", sys.argv[1]])))
