"""What a CPU cannot show: the same numbers in the device's own kernels, and whole runs on it."""

import json
from pathlib import Path

import pytest
import torch
from conftest import ROOT, run_ranks, tiny_values

from mdmscale.metrics import read_metrics
from mdmscale.models.head import MaskedCrossEntropyHead, naive_masked_cross_entropy

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 3e-2)], ids=["fp32", "bf16"]
)
def test_head_matches_its_naive_twin(dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(64, 1000, bias=False, dtype=dtype, device="cuda")
    hidden = torch.randn(300, 64, dtype=dtype, device="cuda", requires_grad=True)
    targets, weights = torch.randint(0, 1000, (300,), device="cuda"), torch.rand(300, device="cuda")
    gradients = []
    for output in (
        MaskedCrossEntropyHead.replacing(linear, 128)(hidden, targets, weights),
        naive_masked_cross_entropy(hidden, linear.weight, targets, weights),
    ):
        gradients.append(torch.autograd.grad(output.loss, (hidden, linear.weight)))
    for mine, twin in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, twin, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_bf16_run_trains_and_exports(corpus: Path, tmp_path: Path, stage: int) -> None:
    values = tiny_values(corpus, tmp_path)
    values["model"]["dtype"] = "bf16"
    values["parallel"] = {"zero_stage": stage}
    values["train"]["steps"] = 60
    (tmp_path / "config.yaml").write_text(json.dumps(values))
    run_ranks(1, ROOT / "launchers" / "train.py", "--config", str(tmp_path / "config.yaml"))
    losses = [record["loss"] for record in read_metrics(tmp_path / "tiny")]
    assert sum(losses[-10:]) < sum(losses[:10])
    assert (tmp_path / "tiny" / "hf" / "model.safetensors").is_file()
