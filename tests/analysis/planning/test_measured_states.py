"""Planned weights, gradients and optimizer state compared with DeepSpeed's engines on 1 and 2 ranks."""

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
from conftest import WORKERS, run_ranks
from workers.engine_states import measure

from mdmscale.analysis.planning.memory import memory_of
from mdmscale.analysis.planning.planned_shape import planned_shape
from mdmscale.analysis.planning.workload import make_workload
from mdmscale.config.run import RunConfig
from mdmscale.parallel.ranks import Ranks

# Matrices above the 100,000 elements that ZeRO-3 keeps whole, and each a small part of the model, as ZeRO-2
# keeps one whole at the border between ranks.
SQUARE = {"hidden_size": 320, "intermediate_size": 320, "num_key_value_heads": 4, "num_hidden_layers": 6}


@pytest.fixture
def engine_config(small_config: Callable[..., RunConfig]) -> Callable[[str, int, int], RunConfig]:
    """A config for an engine: precision, ZeRO stage and ranks, with two micro-batches per step.

    Two of the stages average the weights.
    """

    def make(dtype: str, stage: int, num_ranks: int) -> RunConfig:
        average = {"ema_decay": 0.9} if stage in (1, 3) else {}
        batch = {"global_batch_size": 2 * num_ranks, "micro_batch_size": 1, **average}
        return small_config(model=SQUARE | {"dtype": dtype}, parallel={"zero_stage": stage}, train=batch)

    return make


def check(config: RunConfig, num_ranks: int, found: dict[str, int]) -> None:
    planned = memory_of(make_workload(config, planned_shape(config.model)[0], num_ranks)).by_use
    stage, dtype = config.parallel.zero_stage, config.model.dtype
    for part, size in found.items():
        assert planned[part] == pytest.approx(size, rel=0.05), f"{part} of stage {stage}, {dtype}"


@pytest.mark.parametrize("stage", [1, 2])
def test_states_of_one_rank(
    engine_config: Callable[[str, int, int], RunConfig], ranks: Ranks, stage: int
) -> None:
    config = engine_config("bf16", stage, 1)
    check(config, 1, measure(config, ranks))


@pytest.mark.slow
@pytest.mark.distributed
def test_states_of_two_ranks(engine_config: Callable[[str, int, int], RunConfig], tmp_path: Path) -> None:
    configs = [engine_config(dtype, stage, 2) for dtype, stage in product(("fp32", "bf16"), range(4))]
    path = tmp_path / "configs.json"
    path.write_text(json.dumps([config.model_dump() for config in configs]))
    output = run_ranks(2, WORKERS / "engine_states.py", str(path))
    measured = json.loads(next(line for line in output.splitlines() if line.startswith("[{")))
    for config, found in zip(configs, measured, strict=True):
        check(config, 2, found)
