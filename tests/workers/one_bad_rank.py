"""Spoil the values of the last rank only: argv[1] is a config that trains and leaves checkpoints.

Rank 0 prints, as JSON, what each rank did: the error of a save, and the checkpoint to resume from after the
last rank's newest file has been spoilt, too.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from mdmscale.config.loading import load_config
from mdmscale.engine import private
from mdmscale.engine.manifest import MANIFEST_FILE, write_manifest
from mdmscale.parallel.collectives import on_first_rank
from mdmscale.parallel.ranks import finalise, initialise
from mdmscale.system.sums import file_names, sums_of
from mdmscale.training.checkpoint import find_resume
from mdmscale.training.setup import set_up
from mdmscale.training.trainer import save_checkpoint, train


def spoil_file(checkpoint: Path, rank: int) -> None:
    (file,) = (checkpoint / "engine").glob(private.optimizer_file(0, rank))
    content = torch.load(file, weights_only=False)
    content["optimizer_state_dict"]["single_partition_of_fp32_groups"][0].data[0] = float("nan")
    torch.save(content, file)
    names = [name for name in file_names(checkpoint) if name != MANIFEST_FILE]
    write_manifest(checkpoint, sums_of(checkpoint, names))


if __name__ == "__main__":
    config = load_config(sys.argv[1], [])
    train(config)
    ranks = initialise()
    run = set_up(config, ranks)
    last = ranks.world_size - 1
    if ranks.rank == last:
        next(iter(private.adam(run.engine.optimizer).state)).data[-1] = float("nan")
    try:
        save_checkpoint(run, {})
        error = "none"
    except FloatingPointError as raised:
        error = str(raised)
    newest = run.folder.published_checkpoints()[-1]
    on_first_rank(ranks, lambda: spoil_file(newest, last))
    path, _ = find_resume("auto", run.folder.checkpoints, ranks)
    done = [None] * ranks.world_size
    dist.all_gather_object(done, [error, path.name])
    if ranks.is_first:
        print(json.dumps(done), flush=True)
    finalise()
