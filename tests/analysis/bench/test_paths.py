"""Paths compute the same loss in different ways. Every path is compared with another one."""

import numpy as np
import pytest
import torch
from analysis.bench.conftest import PATHS

from mdmscale.analysis.bench.bench_command import benches_of
from mdmscale.analysis.bench.kernels import KERNELS
from mdmscale.analysis.bench.path_bench import PathBench
from mdmscale.analysis.bench.paths import COMPARISONS
from mdmscale.analysis.bench.work import Sizes


def gradients(bench: PathBench) -> list[torch.Tensor]:
    bench.step()
    return [each.grad.clone() for each in bench.model.parameters() if each.grad is not None]


@pytest.mark.parametrize(
    "names",
    [
        ("full", "indexed", "masked", "chunked", "fused", "compiled"),
        ("pair-full", "pair-passes", "pair"),
        ("padded-indexed", "padded", "packed"),
    ],
)
def test_paths_are_ways_to_one_loss(sizes: Sizes, names: tuple[str, ...]) -> None:
    """Loss, clean tokens and gradient agree, so a slower path is not slower because it does other work."""
    benches = benches_of(sizes, [PATHS[name] for name in names])
    losses = [float(bench.step()) for bench in benches]
    np.testing.assert_allclose(losses, losses[0], rtol=1e-6)
    assert len({(bench.result.num_tokens, bench.result.num_masked) for bench in benches}) == 1
    expected = gradients(benches[0])
    for bench in benches[1:]:
        for one, other in zip(gradients(bench), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_every_path_is_compared() -> None:
    others = {path.name for path, _ in KERNELS}
    assert {name for pair in COMPARISONS for name in pair[:2]} == PATHS.keys() | others
