"""The facts that a run prints at its start."""

from pathlib import Path
from typing import Any

import pytest

from mdmscale.config.run import RunConfig
from mdmscale.parallel.batch_layout import make_layout
from mdmscale.training.facts import config_hash, describe_ranks, gather_facts


def test_facts_name_hosts_layout_batch_versions_and_seed(tiny: dict[str, Any], ranks: Any) -> None:
    config = RunConfig.model_validate(tiny)
    text = "\n".join(gather_facts(config, make_layout(config, 1), ranks))
    for part in ("hosts     1: ", "devices   1 x ", "1 ranks, ZeRO-1, fp32", "8 samples a step", "torch 2"):
        assert part in text
    assert f"seed      3; config {config_hash(config)}" in text


def test_equal_configs_have_equal_hashes(tiny: dict[str, Any], tmp_path: Path) -> None:
    first, same = (RunConfig.model_validate(tiny) for _ in range(2))
    tiny["optimizer"]["lr"] = 1e-3
    assert config_hash(first) == config_hash(same) != config_hash(RunConfig.model_validate(tiny))


@pytest.mark.parametrize(
    ("tensor", "sequence", "text"),
    [
        (1, 1, "8 ranks"),
        (2, 1, "8 ranks (4 data x 2 tensor)"),
        (2, 4, "8 ranks (1 data x 4 sequence x 2 tensor)"),
    ],
)
def test_ranks_are_described_as_a_grid(tensor: int, sequence: int, text: str) -> None:
    import torch

    from mdmscale.parallel.ranks import Ranks

    assert describe_ranks(Ranks(0, 8, torch.device("cpu"), tensor, sequence)) == text
