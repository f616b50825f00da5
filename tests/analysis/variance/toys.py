"""Toy models whose gradients are known, measured as the report measures a real one."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from conftest import tiny_values
from torch import nn

from mdmscale.analysis.variance.collect import Budget, Collected, collect, measure_metric
from mdmscale.analysis.variance.draws import Gauge
from mdmscale.analysis.variance.estimators import Probes, make_estimators
from mdmscale.analysis.variance.methods import chosen_methods
from mdmscale.analysis.variance.waves import Measurer
from mdmscale.config.run import RunConfig
from mdmscale.data.collate import Collator
from mdmscale.diffusion.sample import Sample
from mdmscale.parallel.ranks import Ranks


class Toy(nn.Module):
    """CE of token i is scales[i] theta[i] (1 + slope x masked share): token gradients are orthogonal."""

    def __init__(self, scales: np.ndarray, slope: float = 0.0) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.ones(len(scales)))
        self.scales, self.slope = torch.from_numpy(scales).float(), slope

    def forward(
        self, input_ids: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, **_: Any
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        masked_share = (input_ids == len(self.theta)).float().mean(dim=1)  # [rows]
        row_of = (input_ids == len(self.theta)).nonzero()[:, 0]  # [masked]
        factors = self.scales[targets] * (1 + self.slope * masked_share[row_of])
        losses = factors * self.theta[targets]
        return (weights * losses).sum(), losses.detach(), factors.square()


class ToySource:
    """Samples of `kinds` kinds: kind k has the tokens k n to k n + n - 1."""

    num_train = num_held_out = 1 << 20
    fingerprint = description = "toy"

    def __init__(self, n: int, kinds: int = 1) -> None:
        self.n, self.kinds = n, kinds

    def train_sample(self, index: int) -> Sample:
        kind = int(np.random.default_rng(index).integers(self.kinds))
        return Sample(np.arange(self.n) + kind * self.n, np.ones(self.n, dtype=bool))

    def held_out_sample(self, index: int) -> Sample:
        return self.train_sample(index)


def measured(
    toy: Toy,
    source: ToySource,
    ranks: Ranks,
    names: list[str],
    samples: int,
    batch_rows: int = 8,
    **keys: Any,
) -> tuple[Collected, Measurer]:
    """What the report collects of a toy. `keys`: of the config's `diffusion` section."""
    values = tiny_values(Path("unused"), Path("unused"))
    values["diffusion"] = {"p_pots": {"num_x0": 4, "num_masks": 50}, **keys}
    config = RunConfig.model_validate(values)
    collate = Collator(mask_token_id=len(toy.theta))
    engine: Any = toy.eval()
    probes = Probes(engine, source, collate, 0, ranks)
    estimators = make_estimators(chosen_methods(names, batch_rows), config.diffusion, 0, probes, ranks)
    gauge = Gauge(engine, [toy.theta], collate, ranks.device)
    metric = measure_metric(gauge, estimators[0], source, batch_rows, 0, ranks)
    measurer = Measurer(gauge, metric, 0)
    return collect(measurer, estimators, source, Budget(samples, None), ranks, lambda *_: None), measurer
