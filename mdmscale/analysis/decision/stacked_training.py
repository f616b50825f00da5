"""Trains a stack: steps of noise, loss, clipping, AdamW and the average of the weights."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mdmscale.analysis.decision.noised_steps import step_rows
from mdmscale.analysis.decision.stacked_loss import sample_losses
from mdmscale.analysis.decision.stacked_model import StackedModel
from mdmscale.analysis.decision.stacked_optimizer import StackedOptimizer
from mdmscale.analysis.decision.stacked_probe import probed
from mdmscale.config.diffusion import DiffusionSection
from mdmscale.config.training import OptimizerSection
from mdmscale.data.loader import t_sampler_of
from mdmscale.diffusion.noise import Noise
from mdmscale.diffusion.sample import Sample
from mdmscale.diffusion.t_samplers import TSampler


@dataclass(frozen=True)
class Lane:
    """A run in a stack: the seed of its order and noise, and its optimizer."""

    seed: int
    optimizer: OptimizerSection


@dataclass(frozen=True)
class TrainingPlan:
    """What all lanes of a stack share. batch_size: samples a step. ema_decay: of the weights' average."""

    diffusion: DiffusionSection
    batch_size: int
    num_steps: int
    ema_decay: float


@dataclass(frozen=True, eq=False)
class Trained:
    """The stack after its steps. averages: float32 [lanes, parameters]. gradient_norms and losses: float32
    [lanes, steps], the norms before clipping."""

    model: StackedModel
    averages: torch.Tensor
    gradient_norms: np.ndarray
    losses: np.ndarray


def train(
    model: StackedModel,
    samples: Sequence[Sample],
    lanes: Sequence[Lane],
    plan: TrainingPlan,
    on_step: Callable[[int], None] = lambda step: None,
) -> Trained:
    """Train the model, whose values change. All samples have the same length."""
    noise = Noise(plan.diffusion)
    clamp = math.inf if noise.corruption.loss_clamp is None else noise.corruption.loss_clamp
    is_causal = plan.diffusion.objective == "ar"
    first = max(int(is_causal), min(int(sample.eligible.argmax()) for sample in samples))
    options = [lane.optimizer for lane in lanes]
    optimizer = StackedOptimizer(model, options, plan.num_steps, plan.ema_decay)
    samplers = make_samplers(lanes, plan)
    norms, losses = [], []
    for step in range(plan.num_steps):
        if plan.diffusion.t_sampler == "p_pots" and step in plan.diffusion.p_pots.probe_steps:
            samplers = probed(model, samples, samplers, step, noise, first)
        rows = step_rows(samples, samplers, step, noise)
        each = sample_losses(model, rows, plan.batch_size, first, is_causal)  # [lanes, samples]
        loss = each.clamp(max=clamp).mean(dim=1)  # [lanes]
        model.set_gradients(loss.sum())
        norms.append(optimizer.step(step))
        losses.append(loss.detach())
        on_step(step)
    return Trained(
        model, optimizer.averages, torch.stack(norms, dim=1).numpy(), torch.stack(losses, dim=1).numpy()
    )


def make_samplers(lanes: Sequence[Lane], plan: TrainingPlan) -> list[TSampler]:
    """The lanes' t-samplers. Lanes of one seed share theirs, and so their noise."""
    of_seed = {lane.seed: t_sampler_of(plan.diffusion, lane.seed, plan.batch_size) for lane in lanes}
    return [of_seed[lane.seed] for lane in lanes]
