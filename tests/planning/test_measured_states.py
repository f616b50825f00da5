"""Weights, gradients and optimizer state against what DeepSpeed's engines of every stage hold on 2 ranks."""

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
from conftest import WORKERS, run_ranks

from mdmscale.config import RunConfig
from mdmscale.planning.job import make_job
from mdmscale.planning.memory import memory_of
from mdmscale.planning.shape import planned_shape

# Matrices above the 100,000 elements that ZeRO-3 keeps whole, and each a small part of the model, as ZeRO-2
# keeps one whole at the border between ranks.
SQUARE = {"hidden_size": 320, "intermediate_size": 320, "num_key_value_heads": 4, "num_hidden_layers": 6}


ENGINES = [*product(("fp32", "bf16"), range(4))]


@pytest.mark.distributed
@pytest.mark.parametrize(
    "engines", [[("bf16", 1), ("bf16", 3)], pytest.param(ENGINES, marks=pytest.mark.slow)], ids=["two", "all"]
)
def test_states_by_stage(
    small_config: Callable[..., RunConfig], tmp_path: Path, engines: list[tuple[str, int]]
) -> None:
    configs = [
        small_config(
            model=SQUARE | {"dtype": dtype},
            parallel={"zero_stage": stage},
            train={"global_batch_size": 4, "micro_batch_size": 1},
        )
        for dtype, stage in engines
    ]
    path = tmp_path / "configs.json"
    path.write_text(json.dumps([config.model_dump() for config in configs]))
    output = run_ranks(2, WORKERS / "engine_states.py", str(path))
    measured = json.loads(next(line for line in output.splitlines() if line.startswith("[{")))
    for config, found in zip(configs, measured, strict=True):
        planned = memory_of(make_job(config, planned_shape(config.model)[0], 2)).parts
        stage, dtype = config.parallel.zero_stage, config.model.dtype
        for part, size in found.items():
            assert planned[part] == pytest.approx(size, rel=0.1), f"{part} of stage {stage}, {dtype}"
