"""The parts of a step and their floors."""

import pytest
from analysis.bench.conftest import PATHS

from mdmscale.analysis.bench import parts as parts_module
from mdmscale.analysis.bench.parts import WorkRate, measure_parts
from mdmscale.analysis.bench.path_bench import PathBench
from mdmscale.analysis.bench.work import Sizes, make_model
from mdmscale.models.flops import count_flops


def test_parts_have_floors(sizes: Sizes) -> None:
    parts = measure_parts(make_model(sizes), make_model(sizes), sizes, rounds=2)
    names = [part.name for part in parts.parts]
    assert names == ["batch", "layers", "layers, compiled", "head", "optimizer"]
    assert all(part.seconds > 0 for part in parts.parts)
    by_name = {part.name: part for part in parts.parts}
    layers = by_name["layers"].floors
    assert layers is not None and len(layers) == len(by_name["layers"].rounds) == 2
    assert by_name["batch"].floors is None
    for step, left_out in zip(parts.steps, ("layers, compiled", "layers"), strict=True):
        others = [part for part in parts.parts if part.name != left_out]
        assert step.rounds == pytest.approx(
            [sum(each) for each in zip(*(part.rounds for part in others), strict=True)]
        )
        floors = [part.floors for part in others if part.floors is not None]
        assert step.floors == pytest.approx([sum(each) for each in zip(*floors, strict=True)])


def test_a_floor_is_of_the_rate_around_its_part(sizes: Sizes, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = iter(range(1, 100))
    monkeypatch.setattr(WorkRate, "sample", lambda self: float(next(rates)))
    monkeypatch.setattr(parts_module, "median", lambda values: 0.0)  # of rates that nobody took
    model = make_model(sizes)
    parts, masked = (
        measure_parts(model, None, sizes, rounds=1),
        PathBench(model, PATHS["masked"], sizes).result.num_masked,
    )
    flops = count_flops(sizes.shape)
    # the warm-up takes one before each of three parts, the round one before and one after
    assert parts.parts[1].floors == [flops.of(96, 3 * 32**2, 0) / 4.5]
    assert parts.parts[2].floors == [flops.of(0, 0, masked) / 6.5]
