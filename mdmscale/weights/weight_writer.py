"""Writes a source as sharded safetensors with an index. One shard at a time is in memory."""

import json
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import split_state_dict_into_shards_factory
from safetensors import SafetensorError
from safetensors.torch import save_file

from mdmscale.system.errors import UserError
from mdmscale.weights.tensor_source import TensorSource

# A laptop can hold one such shard in memory, and an 8B model in bf16 is still only a handful of files.
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
    split = split_state_dict_into_shards_factory(
        infos,
        get_storage_size=lambda info: info.num_bytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_bytes,
    )
    for file_name, names in split.filename_to_tensors.items():
        shard = {}
        for name in names:
            shard[name] = source.read(name)
            advance(infos[name].num_bytes)
        try:
            save_file(shard, folder / file_name, metadata={"format": "pt"})
        except (SafetensorError, OSError) as error:
            raise UserError(f"{folder / file_name}: cannot be written: {error}") from None
        del shard  # before the next is read
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
