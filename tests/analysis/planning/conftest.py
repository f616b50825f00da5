"""Workloads of small models, with some sections changed."""

from collections.abc import Callable
from typing import Any

import pytest

from mdmscale.analysis.planning.planned_shape import planned_shape
from mdmscale.analysis.planning.workload import Workload, make_workload
from mdmscale.config.run import RunConfig

SMALL: dict[str, dict[str, Any]] = {
    "run": {"name": "small"},
    "model": {
        "tokenizer": "nowhere",
        "vocab_size": 512,
        "hidden_size": 128,
        "intermediate_size": 352,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "dtype": "bf16",
    },
    "data": {"kind": "tokens", "path": "nowhere", "sequence_length": 96, "random_length_fraction": 0.0},
    "train": {"steps": 10, "global_batch_size": 64, "micro_batch_size": 2},
    "optimizer": {"lr": 1e-3},
}
Sections = dict[str, Any]


@pytest.fixture
def small_config() -> Callable[..., RunConfig]:
    """The config SMALL with some sections changed."""

    def make(**sections: Sections) -> RunConfig:
        names = [*SMALL, *(name for name in sections if name not in SMALL)]
        return RunConfig.model_validate(
            {name: SMALL.get(name, {}) | sections.get(name, {}) for name in names}
        )

    return make


@pytest.fixture
def small_workload(small_config: Callable[..., RunConfig]) -> Callable[..., Workload]:
    """The workload of a `small_config` on a number of ranks."""

    def make(num_ranks: int = 1, **sections: Sections) -> Workload:
        config = small_config(**sections)
        return make_workload(config, planned_shape(config.model)[0], num_ranks)

    return make
