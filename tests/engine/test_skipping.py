"""A step that is skipped leaves no trace, at every ZeRO stage and precision."""

import math

import pytest
import torch
from engine.small_engine import make_config, make_engine, take_step

from mdmscale.engine.engine import Engine
from mdmscale.parallel.ranks import Ranks

SETTINGS = [(stage, dtype) for dtype in ("fp32", "bf16") for stage in range(4)]


def skip_step(engine: Engine, factor: float = 1.0, is_spike: bool = False) -> float:
    """Take a step of which the loss is multiplied by `factor`, or that counts as a spike."""
    token_ids = torch.arange(8)[None]
    loss, *_ = engine(
        input_ids=token_ids,
        attention_mask=None,
        positions=torch.arange(8),
        targets=token_ids[0],
        weights=torch.ones(8),
    )
    engine.accumulate(loss + (factor - 1.0), 1.0, is_last=True)  # whose gradient by itself is finite
    return engine.step((lambda norm: True) if is_spike else None)


@pytest.mark.parametrize(("stage", "dtype"), SETTINGS)
def test_a_skipped_step_leaves_no_trace(ranks: Ranks, stage: int, dtype: str) -> None:
    config = make_config(stage, dtype, 0.9)
    torch.manual_seed(0)
    engine = make_engine(config, ranks)
    torch.manual_seed(0)
    other = make_engine(config, ranks)
    take_step(engine)
    take_step(other)
    norm = skip_step(engine, is_spike=True)
    assert math.isfinite(norm) and norm > 0
    for factor in (math.nan, math.inf):
        assert not math.isfinite(skip_step(engine, factor))
    for _ in range(2):
        assert take_step(engine) == take_step(other)
    weights, others = engine.gather_weights(ranks), other.gather_weights(ranks)
    assert all(torch.equal(weight, others[name]) for name, weight in weights.items())
    with engine.averaged(), other.averaged():
        weights, others = engine.gather_weights(ranks), other.gather_weights(ranks)
    assert all(torch.equal(weight, others[name]) for name, weight in weights.items())
