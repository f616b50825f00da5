"""A lane of a stack is a run of its own: the numbers of the loop of training with Llama and AdamW."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from analysis.decision.small import SHAPE, as_llama, named, samples

from mdmscale.analysis.decision.arms import FINE_TUNING, Arm
from mdmscale.analysis.decision.noised_steps import step_rows
from mdmscale.analysis.decision.stacked_loss import sample_losses
from mdmscale.analysis.decision.stacked_model import StackedModel
from mdmscale.analysis.decision.stacked_probe import measure
from mdmscale.analysis.decision.stacked_training import Lane, Trained, TrainingPlan, train
from mdmscale.config.training import OptimizerSection
from mdmscale.data.collate import Collator
from mdmscale.data.loader import t_sampler_of
from mdmscale.data.order import sequence_of_sample
from mdmscale.diffusion.noise import Noise, training_noise
from mdmscale.diffusion.p_pots import probe_edges
from mdmscale.engine.optim import learning_rate, make_optimizer, set_learning_rate
from mdmscale.training.p_pots_probe import measure_p_pots

ARMS = {arm.name: arm for arm in FINE_TUNING}
BATCH, STEPS = 4, 5
DECAY = 0.9


def lanes() -> list[Lane]:
    """Lanes that differ in seed, learning rate and clipping."""
    options = OptimizerSection(lr=2e-2, schedule="linear", warmup_steps=1)
    return [
        Lane(0, options),
        Lane(1, options.model_copy(update={"lr": 1e-2, "gradient_clipping": 0.5})),
        Lane(0, options.model_copy(update={"gradient_clipping": 0.0})),
    ]


def trained(arm: Arm, chosen: list[Lane]) -> Trained:
    model = StackedModel.fresh(SHAPE, [lane.seed for lane in chosen])
    return train(model, samples(), chosen, TrainingPlan(arm.probing(2, [0]), BATCH, STEPS, DECAY))


@pytest.mark.parametrize(
    "name",
    ["standard", "mirror", "complement", "independent_2", "exact_pair", "clipped", "paper_scripts", "ar"],
)
def test_the_loss_and_its_gradient_are_those_of_the_collator_and_the_model_of_training(name: str) -> None:
    diffusion = ARMS[name].diffusion
    noise, is_causal = Noise(diffusion), diffusion.objective == "ar"
    model = StackedModel.fresh(SHAPE, [3, 5])
    data, samplers = samples(), [t_sampler_of(diffusion, seed, BATCH) for seed in (3, 5)]
    losses = sample_losses(model, step_rows(data, samplers, 2, noise), BATCH, 1, is_causal).mean(dim=1)
    model.set_gradients(losses.sum())
    collate = Collator(SHAPE.mask_token_id, logit_shift=is_causal)
    for lane, sampler in enumerate(samplers):
        indices = range(2 * BATCH, 3 * BATCH)
        chosen = [data[sequence_of_sample(index, len(data), sampler.seed)] for index in indices]
        noised = [
            training_noise(sample, index, sampler, noise)
            for sample, index in zip(chosen, indices, strict=True)
        ]
        twin = as_llama(SHAPE, model.values[lane], is_causal)
        loss = twin(**collate(noised).model_inputs).loss / BATCH
        loss.backward()
        assert losses[lane].item() == pytest.approx(loss.item(), rel=1e-5)
        of_twin = {name: each.grad for name, each in twin.backbone.named_parameters()}
        for parameter, gradient in named(SHAPE, model.gradients[lane]).items():
            torch.testing.assert_close(gradient, of_twin[parameter], rtol=1e-3, atol=1e-6, msg=parameter)


@pytest.mark.parametrize("name", ["standard", "exact_pair_gradient"])
def test_lanes_of_a_stack_are_separate_models(name: str) -> None:
    """Also with P-POTS, of which every lane has a density of its own."""
    arm = ARMS[name]
    stacked = trained(arm, lanes())
    for lane, each in enumerate(lanes()):
        alone = trained(arm, [each])
        for ours, theirs in (
            (stacked.model.values[lane], alone.model.values[0]),
            (stacked.averages[lane], alone.averages[0]),
            (stacked.gradient_norms[lane], alone.gradient_norms[0]),
        ):
            np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=2e-5)
    assert not torch.allclose(stacked.model.values[0], stacked.model.values[2], atol=1e-4), "clipping acts"


def test_steps_are_those_of_the_optimizer_of_training() -> None:
    """Clipping, AdamW with its groups, the schedule and the average of the weights."""
    arm = ARMS["mirror"]
    noise, data = Noise(arm.diffusion), samples()
    stacked = trained(arm, lanes())
    collate = Collator(SHAPE.mask_token_id)
    for lane, each in enumerate(lanes()):
        values = StackedModel.fresh(SHAPE, [each.seed]).values[0]
        twin, sampler = as_llama(SHAPE, values), t_sampler_of(arm.diffusion, each.seed, BATCH)
        optimizer = make_optimizer(twin, each.optimizer)
        averages = {name: value.detach().clone() for name, value in twin.backbone.named_parameters()}
        for step in range(STEPS):
            indices = range(step * BATCH, (step + 1) * BATCH)
            chosen = [data[sequence_of_sample(index, len(data), each.seed)] for index in indices]
            noised = [
                training_noise(sample, index, sampler, noise)
                for sample, index in zip(chosen, indices, strict=True)
            ]
            twin.zero_grad()
            (twin(**collate(noised).model_inputs).loss / BATCH).backward()
            limit = each.optimizer.gradient_clipping or float("inf")
            norm = torch.nn.utils.clip_grad_norm_(twin.parameters(), limit)
            assert stacked.gradient_norms[lane, step] == pytest.approx(norm.item(), rel=1e-3)
            set_learning_rate(optimizer, learning_rate(step, STEPS, each.optimizer))
            optimizer.step()
            for name, value in twin.backbone.named_parameters():
                averages[name].lerp_(value.detach(), 1 - DECAY)
        final = dict(twin.backbone.named_parameters())
        for name, value in named(SHAPE, stacked.model.values[lane]).items():
            torch.testing.assert_close(value, final[name].detach(), rtol=1e-2, atol=2e-4, msg=name)
        for name, value in named(SHAPE, stacked.averages[lane]).items():
            torch.testing.assert_close(value, averages[name], rtol=1e-2, atol=2e-4, msg=name)


class Source:
    """The samples in the order of a seed, as a run reads them."""

    def __init__(self, seed: int) -> None:
        self.data, self.seed = samples(), seed

    def train_sample(self, index: int):  # type: ignore[no-untyped-def]
        return self.data[sequence_of_sample(index, len(self.data), self.seed)]


@pytest.mark.parametrize("name", ["p_pots_gradient", "exact_pair_gradient", "paper_scripts"])
def test_a_probe_is_that_of_training(name: str, ranks) -> None:  # type: ignore[no-untyped-def]
    diffusion = ARMS[name].diffusion
    small = diffusion.p_pots.model_copy(update={"num_x0": 2, "num_masks": 3})
    diffusion = diffusion.model_copy(update={"p_pots": small})
    noise, edges = Noise(diffusion), probe_edges(small, diffusion.drawn_range)
    model = StackedModel.fresh(replace(SHAPE, initializer_range=0.5), [3, 5])
    samplers = [t_sampler_of(diffusion, seed, BATCH) for seed in (3, 5)]
    ours = measure(model, samples(), samplers, 1, noise, edges, first=3)
    for lane, sampler in enumerate(samplers):
        theirs = measure_p_pots(
            as_llama(SHAPE, model.values[lane]),
            Source(sampler.seed),  # type: ignore[arg-type]
            noise,
            small,
            edges,
            Collator(SHAPE.mask_token_id),
            BATCH,
            sampler.loss_weight,
            sampler.seed,
            ranks,
        )
        np.testing.assert_allclose(ours[lane].losses, theirs.losses, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(ours[lane].squared_norms, theirs.squared_norms, rtol=1e-4, atol=1e-7)
