"""Weights in every precision, written as shards and read again."""

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from weights.memory import Memory

from mdmscale.system.errors import UserError
from mdmscale.weights.weight_files import WeightFolder
from mdmscale.weights.weight_writer import write_weights

DTYPES = [
    *(torch.complex64, torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz),
    *(torch.float8_e8m0fnu, torch.float4_e2m1fn_x2),
    *(torch.int64, torch.int32, torch.int16, torch.int8),
    *(torch.uint64, torch.uint32, torch.uint16, torch.uint8, torch.bool),
]


def tensor_of(dtype: torch.dtype) -> torch.Tensor:
    """Two rows of different bytes, each a valid value."""
    numbers = torch.arange(2 * 4 * dtype.itemsize, dtype=torch.uint8)
    return (numbers % 2 if dtype == torch.bool else numbers).view(dtype).view(2, 4)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_precision_is_read_as_it_was_written(tmp_path: Path, dtype: torch.dtype) -> None:
    tensor = tensor_of(dtype)
    write_weights(Memory({"weight": tensor}), tmp_path)
    folder = WeightFolder(tmp_path)
    info, read = folder.tensors()["weight"], folder.read("weight")
    assert (info.shape, info.dtype) == (read.shape, read.dtype) == (tensor.shape, tensor.dtype)
    assert info.num_bytes == read.nbytes
    assert torch.equal(read.view(torch.uint8), tensor.view(torch.uint8))


def test_a_precision_that_torch_lacks_is_named(tmp_path: Path) -> None:
    header = {"weight": {"dtype": "F6_E2M3", "shape": [2, 4], "data_offsets": [0, 6]}}
    content = json.dumps(header).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(content)) + content + bytes(6))
    with pytest.raises(UserError, match=r"model\.safetensors: weight has the dtype F6_E2M3, which torch"):
        WeightFolder(tmp_path)


def test_shards_keep_the_order_of_reading(tmp_path: Path) -> None:
    weights = {name: torch.full((10,), float(number)) for number, name in enumerate("dbeac")}
    seen = []
    write_weights(Memory(weights), tmp_path, seen.append, max_shard_bytes=80)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 200 == sum(seen)
    files = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
    assert [list(load_file(tmp_path / file)) for file in files] == [["b", "d"], ["a", "e"], ["c"]]
    assert list(index["weight_map"].items()) == list(
        zip("dbeac", [files[0], files[0], files[1], files[1], files[2]], strict=True)
    )
    read = WeightFolder(tmp_path)
    assert all(torch.equal(read.read(name), weight) for name, weight in weights.items())


def test_a_tensor_larger_than_a_shard_has_its_own_file(tmp_path: Path) -> None:
    write_weights(Memory({"large": torch.zeros(30), "small": torch.ones(2)}), tmp_path, max_shard_bytes=80)
    assert list(load_file(tmp_path / "model-00001-of-00002.safetensors")) == ["large"]
    assert list(load_file(tmp_path / "model-00002-of-00002.safetensors")) == ["small"]


def test_weights_that_fit_in_one_file_need_no_index(tmp_path: Path) -> None:
    write_weights(Memory({"weight": torch.zeros(2)}), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
