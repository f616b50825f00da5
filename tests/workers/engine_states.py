"""Measures this rank's bytes of weights, gradients and optimizer state during an engine's second step.

Each config of a JSON list in turn, in one process group: argv[1] names the file. Rank 0 prints a JSON list.
"""

import gc
import json
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from mdmscale.config.run import RunConfig
from mdmscale.engine import private
from mdmscale.engine.engine import Engine, initialise_engine
from mdmscale.models.backbone import DTYPES, scratch_config
from mdmscale.models.mdm import MaskedDiffusionModel
from mdmscale.parallel.batch_layout import make_layout
from mdmscale.parallel.ranks import Ranks, finalise, initialise

LARGEST = 100_000_000  # bytes; above it are DeepSpeed's buckets, made for large models


def measure(config: RunConfig, ranks: Ranks) -> dict[str, int]:
    """The bytes of each part, after one of two micro-batches."""
    gc.collect()
    older = everything()  # of engines before; held, so that their addresses stay theirs
    dtype = DTYPES[config.model.dtype]
    backbone = AutoModelForCausalLM.from_config(scratch_config(config.model, 0), dtype=dtype)
    model = MaskedDiffusionModel(backbone, config.model.head_chunk_size).train()
    engine = initialise_engine(model, config, make_layout(config, ranks.world_size), ranks)
    backward(engine, config, is_last=False)
    backward(engine, config, is_last=True)
    engine.step()
    backward(engine, config, is_last=False)
    gc.collect()

    weights = storages(getattr(each, "ds_tensor", each) for each in model.parameters())
    moments = (value for state in private.adam(engine.optimizer).state.values() for value in state.values())
    optimizer = storages([*masters(engine), *(each for each in moments if torch.is_tensor(each))])
    optimizer = {address: size for address, size in optimizer.items() if address not in weights}
    gradients = storages(
        [*everything(), *(each.grad for each in model.parameters() if each.grad is not None)]
    )
    for address in (*weights, *optimizer, *storages(older)):
        gradients.pop(address, None)
    parts = {"weights": weights, "gradients": gradients, "optimizer": optimizer}
    return {name: sum(part.values()) for name, part in parts.items()}


def masters(engine: Engine) -> list[torch.Tensor]:
    """The fp32 copies that the optimizer updates."""
    stepped = [each for group in engine.optimizer.param_groups for each in group["params"]]
    return private.flat_shards(engine.optimizer) or stepped


def everything() -> list[torch.Tensor]:
    """All tensors that are alive in Python."""
    return [each for each in gc.get_objects() if type(each) in (torch.Tensor, torch.nn.Parameter)]


def storages(tensors: Iterable[torch.Tensor]) -> dict[int, int]:
    """The bytes of the tensors' storages, by address. Each storage counts once."""
    found = {}
    for tensor in tensors:
        if tensor.device.type == "cpu":
            storage = tensor.untyped_storage()
            if 0 < storage.nbytes() < LARGEST:
                found[storage.data_ptr()] = storage.nbytes()
    return found


def backward(engine: Engine, config: RunConfig, is_last: bool) -> None:
    """One forward and backward."""
    length = config.data.sequence_length
    token_ids = torch.zeros(1, length, dtype=torch.int64)
    positions = torch.arange(length)
    loss, *_ = engine(
        input_ids=token_ids,
        attention_mask=None,
        positions=positions,
        targets=token_ids[0],
        weights=torch.ones(length),
    )
    engine.accumulate(loss, 1.0, is_last)


if __name__ == "__main__":
    here = initialise()
    measured = [
        measure(RunConfig.model_validate(values), here)
        for values in json.loads(Path(sys.argv[1]).read_text())
    ]
    if here.is_first:
        print(json.dumps(measured), flush=True)
    finalise()
