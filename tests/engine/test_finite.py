"""Values that are not finite are found wherever an engine has them: weights, masters, moments, averages."""

from pathlib import Path

import pytest
import torch
from engine.small_engine import FROZEN, make_config, make_engine, take_step

from mdmscale.engine import private
from mdmscale.engine.averaging import AVERAGE
from mdmscale.engine.engine import Engine
from mdmscale.engine.finite import all_finite, tensors_in
from mdmscale.engine.manifest import find_fault
from mdmscale.engine.private import MOMENTS
from mdmscale.parallel.ranks import Ranks
from mdmscale.system.sums import sum_of

SETTINGS = [(stage, dtype) for dtype in ("fp32", "bf16") for stage in range(4)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_one_value_among_many_is_found(dtype: torch.dtype) -> None:
    for value in (float("nan"), float("inf"), float("-inf")):
        tensors = [torch.zeros(3, 4, dtype=dtype), torch.tensor(7), torch.zeros(0, dtype=dtype)]
        assert all_finite(tensors)
        tensors[0][1, 2] = value
        assert not all_finite(reversed(tensors))
    assert all_finite([])


def test_tensors_are_found_at_any_depth() -> None:
    one, two = torch.zeros(1), torch.zeros(2)
    assert [*tensors_in({"a": [one, ({"b": two}, 3)], "c": None})] == [one, two]


def places(engine: Engine) -> dict[str, torch.Tensor]:
    """A tensor of each kind that an engine keeps, as this rank has it."""
    states = [*private.adam(engine.optimizer).state.items()]
    master, state = states[-1]
    kinds = {kind: state[kind] for kind in (*MOMENTS, AVERAGE)}
    frozen = private.own_values(dict(engine.module.named_parameters())[FROZEN])
    return {"master": master.detach(), **kinds, "frozen": frozen.detach()}


@pytest.mark.parametrize(("stage", "dtype"), SETTINGS)
def test_an_engine_knows_whether_it_is_finite_and_so_do_its_files(
    ranks: Ranks, tmp_path: Path, stage: int, dtype: str
) -> None:
    engine = make_engine(make_config(stage, dtype, ema_decay=0.9), ranks)
    take_step(engine)

    def faults(folder: Path) -> list[str]:
        engine.save(folder)
        files = sorted((folder / "engine").iterdir())
        return [fault for each in files if (fault := find_fault(each, sum_of(each), sum_of(each)))]

    assert engine.is_finite() and not faults(tmp_path / "whole")
    for name, tensor in places(engine).items():
        with spoilt(tensor):
            assert not engine.is_finite(), name
            (fault,) = faults(tmp_path / name)
            assert fault.endswith(".pt holds values that are not finite"), name
    assert engine.is_finite()


class spoilt:
    """Within the block, the last value of a tensor is NaN."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.place = tensor.view(-1)[-1]

    def __enter__(self) -> None:
        self.before = self.place.clone()
        self.place.fill_(float("nan"))

    def __exit__(self, *_: object) -> None:
        self.place.copy_(self.before)
