"""P-POTS on a stack: each lane measures and fits its own p(t), as a run of its seed would.

Pooled statistics would be less noisy, but then a lane's steps would depend on its neighbours, and the noise
of a probe, which is part of the method, would be missing from its results.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch

from mdmscale.analysis.decision.noised_steps import rows_of
from mdmscale.analysis.decision.stacked_model import StackedModel
from mdmscale.config.diffusion import DiffusionSection
from mdmscale.data.order import sequence_of_sample
from mdmscale.diffusion.noise import Noise
from mdmscale.diffusion.p_pots import ProbeStatistics, fit_density, probe_edges
from mdmscale.diffusion.sample import Sample
from mdmscale.diffusion.t_samplers import TSampler
from mdmscale.training.p_pots import fitted_density
from mdmscale.training.p_pots_probe import probe_noise


def probed(
    model: StackedModel,
    samples: Sequence[Sample],
    samplers: Sequence[TSampler],
    step: int,
    noise: Noise,
    first: int,
) -> list[TSampler]:
    """The samplers of all lanes with the p(t) that a probe before `step` gives them. See `PPots`."""
    section: DiffusionSection = noise.options  # type: ignore[assignment]
    edges = probe_edges(section.p_pots, section.drawn_range)
    statistics = measure(model, samples, samplers, step, noise, edges, first)
    moments = [each.second_moment(section.p_pots.target) for each in statistics]
    with without_warnings():
        return [
            replace(sampler, density=fitted_density(moment, edges, section))
            for sampler, moment in zip(samplers, moments, strict=True)
        ]


@contextmanager
def without_warnings() -> Iterator[None]:
    """Fits without warnings of empty masks at small t, which short answers give in every other lane."""
    logger = logging.getLogger(fit_density.__module__)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


@torch.no_grad()
def measure(
    model: StackedModel,
    samples: Sequence[Sample],
    samplers: Sequence[TSampler],
    step: int,
    noise: Noise,
    edges: np.ndarray,
    first: int,
) -> list[ProbeStatistics]:
    """The statistics of each lane, from the samples that it trains on next. See `measure_p_pots`."""
    section: DiffusionSection = noise.options  # type: ignore[assignment]
    options, clamp = section.p_pots, noise.corruption.probed.loss_clamp
    t = (edges[:-1] + edges[1:]) / 2
    shape = (len(samplers), len(t), options.num_masks, -1)  # the last one: rows of a draw
    losses, squared_norms = [], []
    for place in range(options.num_x0):
        first_of = {sampler.seed: sampler for sampler in samplers}  # lanes of a seed have the same draws
        of_seed = {
            seed: _draws(samples, sampler, step, place, t, edges, noise) for seed, sampler in first_of.items()
        }
        parts = zip(*(of_seed[sampler.seed] for sampler in samplers), strict=True)
        rows = [torch.from_numpy(np.stack(part)) for part in parts]
        of_losses, of_norms = (values.view(shape).sum(dim=-1) for values in _sums(model, rows, first))
        losses.append(of_losses.clamp(max=math.inf if clamp is None else clamp).numpy())
        squared_norms.append(of_norms.numpy())
    return [
        ProbeStatistics(t, of_losses, of_norms)
        for of_losses, of_norms in zip(np.stack(losses, axis=1), np.stack(squared_norms, axis=1), strict=True)
    ]


def _draws(
    samples: Sequence[Sample],
    sampler: TSampler,
    step: int,
    place: int,
    t: np.ndarray,
    edges: np.ndarray,
    noise: Noise,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The rows of the probe's sample number `place`: all masks at the first t, then at the next."""
    options = noise.options.p_pots  # type: ignore[attr-defined]
    index = step * sampler.global_batch_size + place
    sample = samples[sequence_of_sample(index, len(samples), sampler.seed)]
    levels = np.repeat(t, options.num_masks)
    first = place * len(levels)
    return rows_of(
        [
            probe_noise(sample, level, edges, first + draw, sampler.loss_weight, sampler.seed, noise)
            for draw, level in enumerate(levels)
        ]
    )


def _sums(model: StackedModel, rows: list[torch.Tensor], first: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Each row's weighted loss and squared norm of its logit gradient, float64 [lanes, rows] each."""
    targets, masks, weights = rows
    logits = model.logits(targets.masked_fill(masks, model.shape.mask_token_id), first)
    log_shares = logits.log_softmax(dim=-1)  # [lanes, rows, length - first, vocab]
    chosen = log_shares.gather(-1, targets[..., first:, None]).squeeze(-1).double()
    # ||softmax - onehot||^2 = sum of squares - 2 softmax at the target + 1
    norms = log_shares.exp().square().sum(dim=-1).double() - 2 * chosen.exp() + 1
    factors = weights[..., first:].double()
    return -(factors * chosen).sum(dim=-1), (factors.square() * norms).sum(dim=-1)
