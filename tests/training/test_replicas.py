"""Ranks whose weights have drifted apart are found and named."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import WORKERS, start_ranks

from mdmscale.training.replicas import checksum, difference


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_bit_of_any_tensor_changes_the_checksum(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    tensors = [
        torch.randn(3, 5).to(dtype),
        torch.tensor(1.0, dtype=dtype),
        torch.full((4,), torch.nan).to(dtype),
    ]
    whole = int(checksum(tensors))
    assert int(checksum([each.clone() for each in tensors])) == whole
    bits_of = torch.int32 if dtype == torch.float32 else torch.int16
    for number, tensor in enumerate(tensors):
        for bit in range(tensor.element_size() * 8):
            changed = [each.clone() for each in tensors]
            words = changed[number].view(bits_of).view(-1)
            words[-1] ^= torch.tensor(1, dtype=bits_of) << bit
            assert int(checksum(changed)) != whole, (number, bit)


def test_the_ranks_that_differ_from_most_are_named() -> None:
    others, each = "those of the other ranks", "each other, without a majority"
    assert difference([7, 7, 7, 7], 1) is None
    assert difference([7], 1) is None
    assert difference([7, 7, 8, 7], 1) == ([2], others)
    assert difference([7, 9, 8, 7, 7], 1) == ([1, 2], others)
    assert difference([7, 8], 1) == ([0, 1], each)
    assert difference([7, 1, 7, 1, 7, 1], 2) is None, "tensor ranks hold different parts"
    assert difference([7, 1, 7, 2, 7, 1], 2) == ([3], others)


@pytest.mark.distributed
def test_a_run_with_a_wrong_bit_on_one_rank_ends_and_names_it(tiny: dict[str, Any], tmp_path: Path) -> None:
    tiny["train"] |= {"global_batch_size": 6, "micro_batch_size": 2, "check_replicas_every": 4}
    tiny["parallel"] = {"zero_stage": 0}
    tiny["diffusion"] = {}
    tiny["checkpoint"] = {"every": 2}
    config = tmp_path / "config.json"
    config.write_text(json.dumps(tiny))
    job = start_ranks(3, WORKERS / "train_with_a_wrong_bit.py", str(config), "6", "1")
    try:
        status = job.wait(120)
    finally:
        job.kill()
    assert status == 1, job.stdout
    (error,) = (line for line in job.stdout.splitlines() if line.startswith("error: "))
    expected = f"after step 6 the weights of rank 1 on {socket.gethostname()} differ from those of the other"
    assert expected in error and "Traceback" not in job.stdout
    names = sorted(path.name for path in (tmp_path / "runs" / "tiny" / "checkpoints").iterdir())
    assert names == ["step-00000002", "step-00000004"], "no checkpoint of weights that differ"
