"""Any source as sharded safetensors with an index, with one shard in memory at a time."""

import json
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file

from mdmscale.system.errors import UserError
from mdmscale.weights.tensor_source import TensorInfo, TensorSource

# Small enough for a laptop to hold one, large enough for an 8B model in bf16 to be a handful of files.
MAX_SHARD_BYTES = 2 * 2**30


def write_weights(
    source: TensorSource,
    folder: Path,
    advance: Callable[[int], object] = lambda num_bytes: None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write every tensor of `source` to `folder`, in the names and layout that transformers reads.

    `advance` is called with the bytes of each tensor that was read.

    Raises:
        UserError: where the disk is full or `folder` cannot be written.
    """
    infos = source.tensors()
    shards = split_into_shards(infos, max_shard_bytes)
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file_name = (
            "model.safetensors"
            if len(shards) == 1
            else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        )
        shard = {}
        for name in names:
            shard[name] = source.read(name)
            advance(infos[name].num_bytes)
        try:
            save_file(shard, folder / file_name, metadata={"format": "pt"})
        except (SafetensorError, OSError) as error:
            raise UserError(f"{folder / file_name}: cannot be written: {error}") from None
        del shard  # before the next is read
        weight_map |= dict.fromkeys(names, file_name)
    if len(shards) > 1:
        total = sum(info.num_bytes for info in infos.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def split_into_shards(infos: dict[str, TensorInfo], max_shard_bytes: int) -> list[list[str]]:
    """Names in their order, in groups of at most `max_shard_bytes`; a larger tensor is a group of its own."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, info in infos.items():
        if shards[-1] and size + info.num_bytes > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += info.num_bytes
    return shards
