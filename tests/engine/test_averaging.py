"""The average of the weights on one rank: its values, and that using it changes nothing."""

from pathlib import Path
from typing import Any

import pytest
import torch
from engine.small_engine import FROZEN, make_config, make_engine, take_step
from engine.test_engine import write_state

from mdmscale.config.run import RunConfig
from mdmscale.engine import private
from mdmscale.engine.averaging import AVERAGE, UPDATES
from mdmscale.engine.checkpoint_weights import DeepSpeedCheckpoint
from mdmscale.engine.engine import Engine
from mdmscale.parallel.ranks import Ranks
from mdmscale.system.errors import UserError

DECAY, STEPS = 0.4, 8  # the warm-up reaches 0.4 after 5 updates
SETTINGS = [(stage, dtype) for dtype in ("fp32", "bf16") for stage in range(4)]
EVERYWHERE: list[tuple[int, str, dict[str, Any]]] = [
    *((stage, dtype, {}) for stage, dtype in SETTINGS),
    (1, "bf16", {"offload_optimizer": "cpu"}),
    (2, "fp32", {"offload_optimizer": "cpu"}),
    (3, "bf16", {"offload_optimizer": "cpu", "offload_parameters": "cpu"}),
]


def start(
    stage: int, dtype: str, parallel: dict[str, Any], ranks: Ranks, decay: float | None = DECAY
) -> Engine:
    """An engine whose MLP is too large for ZeRO-3 to keep it whole."""
    config = make_config(stage, dtype, decay, **parallel)
    model = config.model.model_copy(update={"intermediate_size": 3200})
    torch.manual_seed(0)
    return make_engine(
        RunConfig.model_validate(config.model_copy(update={"model": model}).model_dump()), ranks
    )


def stepped(engine: Engine) -> list[torch.Tensor]:
    """The tensors that AdamW updates."""
    groups = engine.optimizer.param_groups
    return private.flat_shards(engine.optimizer) or [each for group in groups for each in group["params"]]


def averages(engine: Engine) -> list[torch.Tensor]:
    states = private.adam(engine.optimizer).state
    return [states[each][AVERAGE].clone() for each in stepped(engine)]


def bits(engine: Engine, ranks: Ranks) -> dict[str, torch.Tensor]:
    """All weights, and all that AdamW holds, by name."""
    states = [private.adam(engine.optimizer).state[each] for each in stepped(engine)]
    held = {f"{key} {number}": each[key] for number, each in enumerate(states) for key in each}
    masters = {f"master {number}": each.detach() for number, each in enumerate(stepped(engine))}
    everything = engine.gather_weights(ranks) | held | masters
    return {name: value.clone() for name, value in everything.items()}


def assert_same_bits(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert torch.equal(value, right[name]), name


@pytest.mark.parametrize(("stage", "dtype", "parallel"), EVERYWHERE, ids=str)
def test_it_is_the_average_of_every_steps_weights(
    ranks: Ranks, stage: int, dtype: str, parallel: dict[str, Any]
) -> None:
    engine = start(stage, dtype, parallel, ranks)
    expected = [each.detach().double() for each in stepped(engine)]
    for number in range(STEPS):
        take_step(engine)
        kept = min(DECAY, (1 + number) / (10 + number))
        expected = [
            kept * old + (1 - kept) * new.detach().double()
            for old, new in zip(expected, stepped(engine), strict=True)
        ]
    assert kept == DECAY
    for found, value, now in zip(averages(engine), expected, stepped(engine), strict=True):
        torch.testing.assert_close(found.double(), value, rtol=1e-5, atol=1e-7)
        assert (found - now).abs().max() > 1e-4, "the last weights would pass this test, too"


@pytest.mark.parametrize(("stage", "dtype", "parallel"), EVERYWHERE, ids=str)
def test_a_look_at_it_leaves_no_trace(ranks: Ranks, stage: int, dtype: str, parallel: dict[str, Any]) -> None:
    """The model computes with the average in the block, and trains on as an engine that never had it."""
    engine, other = (start(stage, dtype, parallel, ranks, decay) for decay in (DECAY, None))
    assert engine.averages and not other.averages
    for _ in range(2):
        assert take_step(engine) == take_step(other)
        before, expected = bits(engine, ranks), averages(engine)
        with engine.averaged():
            engine.eval()
            engine(
                input_ids=torch.arange(8)[None],
                attention_mask=None,
                position_ids=None,
                positions=torch.arange(8),
            )
            engine.train()
            weights = engine.gather_weights(ranks)
            masters = [each.detach().clone() for each in stepped(engine)]
        assert all(torch.equal(*pair) for pair in zip(masters, expected, strict=True))
        assert_same_bits(bits(engine, ranks), before)
        changed = {name for name, weight in weights.items() if not torch.equal(weight, before[name])}
        assert FROZEN.removeprefix("backbone.") not in changed
        assert len(changed) >= len(weights) - 3, (
            "bf16 may round the average of the two norms to their weights"
        )
    states = bits(engine, ranks)
    assert_same_bits({name: states[name] for name in bits(other, ranks)}, bits(other, ranks))


@pytest.mark.parametrize(("stage", "dtype"), [(0, "fp32"), (0, "bf16"), (2, "fp32"), (3, "bf16")])
def test_a_skipped_step_does_not_move_it(ranks: Ranks, stage: int, dtype: str) -> None:
    engine = start(stage, dtype, {}, ranks)
    take_step(engine)
    before = bits(engine, ranks)
    take_step(engine, scale=float("nan"))
    assert_same_bits(bits(engine, ranks), before)
    take_step(engine)
    assert not torch.equal(averages(engine)[0], before[f"{AVERAGE} 0"])


@pytest.mark.parametrize(("stage", "dtype"), SETTINGS)
def test_it_is_saved_and_goes_on_bit_for_bit(ranks: Ranks, tmp_path: Path, stage: int, dtype: str) -> None:
    """The checkpoint alone gives it, too."""
    engine, other = (start(stage, dtype, {}, ranks) for _ in range(2))
    take_step(engine)
    take_step(engine)
    engine.save(tmp_path)
    write_state(engine, tmp_path, stage, dtype)
    other.load(tmp_path)
    assert not other.settle_average(), "it is in the checkpoint"
    assert_same_bits(bits(other, ranks), bits(engine, ranks))
    checkpoint = DeepSpeedCheckpoint(tmp_path, averaged=True)
    assert checkpoint.average_updates == 2
    with engine.averaged():
        weights = engine.gather_weights(ranks)
    assert_same_bits({name: checkpoint.read(name) for name in checkpoint.tensors()}, weights)
    take_step(engine)
    take_step(other)
    assert_same_bits(bits(other, ranks), bits(engine, ranks))


@pytest.mark.parametrize(
    ("stage", "other_stage", "dtype"), [(0, 2, "bf16"), (1, 3, "fp32"), (2, 0, "fp32"), (3, 2, "bf16")]
)
def test_another_stage_takes_it_over(
    ranks: Ranks, tmp_path: Path, stage: int, other_stage: int, dtype: str
) -> None:
    engine, other = start(stage, dtype, {}, ranks), start(other_stage, dtype, {}, ranks)
    take_step(engine)
    take_step(engine)
    engine.save(tmp_path)
    write_state(engine, tmp_path, stage, dtype)
    other.load_other_layout(tmp_path, ranks)
    assert not other.settle_average()
    with engine.averaged(), other.averaged():
        assert_same_bits(engine.gather_weights(ranks), other.gather_weights(ranks))
    assert {float(state[UPDATES]) for state in private.adam(other.optimizer).state.values()} == {2}
    take_step(engine)
    take_step(other)
    with engine.averaged(), other.averaged():
        theirs = other.gather_weights(ranks)
        for name, weight in engine.gather_weights(ranks).items():
            tolerance = {"bf16": 1e-2, "fp32": 1e-4}[dtype]
            torch.testing.assert_close(theirs[name], weight, rtol=tolerance, atol=1e-6)


@pytest.mark.parametrize("same_layout", [True, False])
@pytest.mark.parametrize(("stage", "dtype"), [(0, "fp32"), (2, "fp32"), (3, "bf16")])
def test_it_may_be_turned_on_and_off_between_runs(
    ranks: Ranks, tmp_path: Path, stage: int, dtype: str, same_layout: bool
) -> None:
    engine = start(stage, dtype, {}, ranks, decay=None)
    for decay in (DECAY, None):
        take_step(engine)
        folder = tmp_path / str(decay)
        folder.mkdir()
        engine.save(folder)
        write_state(engine, folder, stage, dtype)
        engine = start(stage, dtype, {}, ranks, decay)
        if same_layout:
            engine.load(folder)
        else:
            engine.load_other_layout(folder, ranks)
        assert engine.settle_average() == (decay is not None)
        for stepped_tensor, state in private.adam(engine.optimizer).state.items():
            assert (AVERAGE in state, UPDATES in state) == (decay is not None, decay is not None)
            assert decay is None or torch.equal(state[AVERAGE], stepped_tensor)
    take_step(engine)


def test_a_checkpoint_without_one_is_refused(ranks: Ranks, tmp_path: Path) -> None:
    engine = start(0, "fp32", {}, ranks, decay=None)
    take_step(engine)
    engine.save(tmp_path)
    write_state(engine, tmp_path, 0, "fp32")
    with pytest.raises(UserError, match=r"has no average of the weights.*without train\.ema_decay"):
        DeepSpeedCheckpoint(tmp_path, averaged=True)
