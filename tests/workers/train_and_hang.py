"""The training command, in which rank 1 hangs before its forward of step 9, outside any collective."""

import os
import sys
import time

from mdmscale.data.loader import TrainLoader
from mdmscale.train_command import main as train_main

if __name__ == "__main__":
    micro_batches = TrainLoader.micro_batches

    def hang(self, step, t_sampler):  # type: ignore[no-untyped-def]
        if os.environ["RANK"] == "1" and step == 9:
            time.sleep(600)
        return micro_batches(self, step, t_sampler)

    TrainLoader.micro_batches = hang  # type: ignore[method-assign]
    sys.exit(train_main())
