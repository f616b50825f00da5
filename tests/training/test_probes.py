"""Probes and evaluation compared with plain loops over samples, t and masks."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import binom
from torch.nn import functional as F

from mdmscale.config.diffusion import DiffusionSection, PPotsSection
from mdmscale.config.model import ModelSection
from mdmscale.config.training import EvalSection
from mdmscale.data.collate import Collator
from mdmscale.diffusion.noise import Noise
from mdmscale.diffusion.p_pots import ProbeStatistics, probe_edges
from mdmscale.diffusion.sample import Sample
from mdmscale.diffusion.uniforms import Stream, mask_uniforms
from mdmscale.models.backbone import Backbone, build_backbone
from mdmscale.models.mdm import MaskedDiffusionModel
from mdmscale.parallel.ranks import Ranks
from mdmscale.training.evaluation import EVAL_SEED, evaluate
from mdmscale.training.p_pots_probe import measure_p_pots

EPS = 0.01
SEED = 7


class PairSource:
    """Prompts and responses of different lengths. Training and evaluation samples differ."""

    num_train, num_held_out, fingerprint, description = 100, 5, "pairs", "pairs"

    def train_sample(self, index: int) -> Sample:
        length = 6 + index % 5
        return Sample((np.arange(length) * 7 + index) % 500 + 3, np.arange(length) >= index % 3)

    def held_out_sample(self, index: int) -> Sample:
        assert 0 <= index < self.num_held_out
        return self.train_sample(1000 + index)


@pytest.fixture(scope="module")
def backbone(corpus: Path) -> Backbone:
    options = ModelSection(
        tokenizer=str(corpus / "tokenizer"),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        initializer_range=0.2,  # far from uniform predictions
        dtype="fp32",
    )
    return build_backbone(options, EPS, seed=0)


@pytest.fixture
def model(backbone: Backbone, ranks: Ranks) -> MaskedDiffusionModel:
    """Replaces DeepSpeed's engine: the probes only call it and switch its mode."""
    return MaskedDiffusionModel(backbone.model, head_chunk_size=5).to(ranks.device).train()


def probe(
    model: MaskedDiffusionModel, diffusion: DiffusionSection, backbone: Backbone, first: int, ranks: Ranks
) -> ProbeStatistics:
    noise, made, options = Noise(diffusion), collate(backbone), diffusion.p_pots
    edges = probe_edges(options, diffusion.drawn_range)
    loss_weight = diffusion.initial_loss_weight
    return measure_p_pots(model, PairSource(), noise, options, edges, made, first, loss_weight, SEED, ranks)


def naive_logits(backbone: Backbone, token_ids: np.ndarray, mask: np.ndarray) -> torch.Tensor:
    """The logits [length, vocab] of a single row."""
    noised = np.where(mask, backbone.mask_token_id, token_ids)
    with torch.no_grad():
        row = torch.from_numpy(noised)[None].to(backbone.model.device)
        return backbone.model(input_ids=row).logits[0].cpu().double()


def naive_loss(logits: torch.Tensor, sample: Sample, mask: np.ndarray, rate: float) -> torch.Tensor:
    """(1 / n) times the sum of the masked positions' cross-entropies, divided by r."""
    losses = F.cross_entropy(logits, torch.from_numpy(sample.token_ids), reduction="none")
    return (losses * torch.from_numpy(mask)).sum() / (rate * int(sample.eligible.sum()))


def naive_evaluation(backbone: Backbone, source: PairSource, num_samples: int, num_t: int) -> float:
    losses = []
    for place in range(num_samples):
        sample = source.held_out_sample(place * source.num_held_out // num_samples)  # evenly spread
        for t_place in range(num_t):
            rate = (1 - EPS) * (t_place + 0.5) / num_t + EPS
            index = place * num_t + t_place
            uniforms = mask_uniforms(EVAL_SEED, index, len(sample.token_ids), Stream.EVAL)
            mask = (uniforms < rate) & sample.eligible
            losses.append(
                naive_loss(naive_logits(backbone, sample.token_ids, mask), sample, mask, rate).item()
            )
    return float(np.mean(losses))


def collate(backbone: Backbone) -> Collator:
    return Collator(backbone.mask_token_id)


def run_evaluation(
    model: MaskedDiffusionModel,
    backbone: Backbone,
    ranks: Ranks,
    samples: int = 4,
    rows: int = 3,
) -> float:
    options = EvalSection(samples=samples, num_t=3)
    return evaluate(model, PairSource(), options, DiffusionSection(eps=EPS), collate(backbone), rows, ranks)


@pytest.mark.parametrize(("samples", "used"), [(1, 1), (2, 2), (4, 4), (64, 5)])
def test_evaluation_is_the_plain_average(
    model: MaskedDiffusionModel, backbone: Backbone, ranks: Ranks, samples: int, used: int
) -> None:
    expected = naive_evaluation(backbone, PairSource(), used, num_t=3)
    assert run_evaluation(model, backbone, ranks, samples) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("rows", [1, 2, 5, 12, 100])
def test_evaluation_does_not_depend_on_the_rows_of_a_forward(
    model: MaskedDiffusionModel, backbone: Backbone, ranks: Ranks, rows: int
) -> None:
    reference = run_evaluation(model, backbone, ranks)
    assert run_evaluation(model, backbone, ranks, rows=rows) == pytest.approx(reference, rel=1e-6)


P_POTS = {
    "mirror": DiffusionSection(
        eps=EPS, masking="mirror", p_pots=PPotsSection(fit="epr", num_x0=2, num_t=8, num_masks=3)
    ),
    "bernoulli": DiffusionSection(
        eps=EPS, weights="rate", p_pots=PPotsSection(fit="epr", num_x0=2, num_t=9, num_masks=3)
    ),
    "count": DiffusionSection(eps=EPS, p_pots=PPotsSection(fit="epr", num_x0=2, num_t=9, num_masks=3)),
    "exact": DiffusionSection(
        eps=EPS, masking="exact", rows=3, p_pots=PPotsSection(fit="epr", num_x0=2, num_t=8, num_masks=2)
    ),
    "complement": DiffusionSection(
        eps=EPS, masking="complement", p_pots=PPotsSection(fit="epr", num_x0=2, num_t=8, num_masks=3)
    ),
    "token": DiffusionSection(
        eps=EPS,
        normalization="token",
        weights="rate",
        p_pots=PPotsSection(fit="epr", num_x0=2, num_t=8, num_masks=2),
    ),
}


def naive_masks(
    diffusion: DiffusionSection, t: float, uniforms: np.ndarray, eligible: np.ndarray
) -> tuple[list[np.ndarray], list[float]]:
    """The masks of an estimator's rows, and what each row's loss is divided by instead of by r."""
    n, rate = int(eligible.sum()), (1 - EPS) * t + EPS
    mask = (uniforms < rate) & eligible
    if diffusion.masking == "exact":  # of several rows one is probed
        count = int(t * n) + 1
        mask = eligible & (uniforms <= np.sort(uniforms[eligible])[count - 1])
    if diffusion.masking == "exact" or (diffusion.weights is None and diffusion.masking == "bernoulli"):
        count = int(mask.sum())
        a = binom.cdf(count - 1, n, EPS) / max(1, count) / (1 - EPS)
        exact, random = 1 / n, binom.cdf(count, n + 1, EPS) / (n + 1) / (1 - EPS)
        return [mask], [(exact if diffusion.masking == "exact" else random) / a if count else 1.0]
    if diffusion.masking == "bernoulli":
        return [mask], [rate]
    other = (1 - EPS) * (t if diffusion.masking == "mirror" else 1 - t) + EPS
    return [mask, (uniforms >= 1 - other) & eligible], [rate, other]


def naive_statistics(
    backbone: Backbone, diffusion: DiffusionSection, first_index: int
) -> tuple[np.ndarray, np.ndarray]:
    """Losses and squared logit-gradient norms [num_x0, num_t, num_masks]. The norms come from autograd."""
    options = diffusion.p_pots
    shape = (options.num_x0, options.num_t, options.num_masks)
    losses, squared_norms = np.empty(shape), np.empty(shape)
    for draw, place in enumerate(np.ndindex(shape)):
        sample = PairSource().train_sample(first_index + place[0])
        uniforms = mask_uniforms(SEED, draw, len(sample.token_ids), Stream.PROBE)
        masks, rates = naive_masks(diffusion, (place[1] + 0.5) / options.num_t, uniforms, sample.eligible)
        logits = [naive_logits(backbone, sample.token_ids, mask).requires_grad_() for mask in masks]
        rows = [
            naive_loss(row, sample, mask, each) for row, mask, each in zip(logits, masks, rates, strict=True)
        ]
        loss = torch.stack(rows).mean()
        if diffusion.normalization == "token":  # up to the mean number of tokens, which scales every t alike
            loss = loss * int(sample.eligible.sum())
        gradients = torch.autograd.grad(loss, logits)
        losses[place] = loss.item()
        squared_norms[place] = sum(gradient.square().sum().item() for gradient in gradients)
    return losses, squared_norms


@pytest.mark.parametrize("name", P_POTS)
def test_a_probe_measures_the_estimator_that_training_uses(
    model: MaskedDiffusionModel, backbone: Backbone, ranks: Ranks, name: str
) -> None:
    diffusion = P_POTS[name]
    options = diffusion.p_pots
    measured = probe(model, diffusion, backbone, 40, ranks)
    losses, squared_norms = naive_statistics(backbone, diffusion, first_index=40)
    assert np.allclose(measured.t, (np.arange(options.num_t) + 0.5) / options.num_t)
    assert measured.losses.shape == (options.num_x0, options.num_t, options.num_masks)
    np.testing.assert_allclose(measured.losses, losses, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(measured.squared_norms, squared_norms, rtol=1e-4, atol=1e-7)
    assert np.ptp(losses) > 0.1


def test_the_table_is_probed_at_the_midpoints_of_its_own_cells(
    model: MaskedDiffusionModel, backbone: Backbone, ranks: Ranks
) -> None:
    options = PPotsSection(fit="table", num_x0=2, num_t=8, num_masks=2)
    diffusion = DiffusionSection(eps=EPS, p_pots=options)
    measured = probe(model, diffusion, backbone, 0, ranks)
    assert measured.t[0] == pytest.approx(0.0025) and measured.t[-1] == pytest.approx(0.95)
    assert measured.losses.shape == (2, len(measured.t), 2)


def test_passes_are_repeatable_and_leave_the_global_generators_alone(
    model: MaskedDiffusionModel, backbone: Backbone, ranks: Ranks
) -> None:
    def both() -> tuple[float, np.ndarray]:
        diffusion = P_POTS["mirror"]
        statistics = probe(model, diffusion, backbone, 0, ranks)
        return run_evaluation(model, backbone, ranks), statistics.losses

    state = torch.random.get_rng_state()
    first = both()
    torch.manual_seed(5)
    np.random.seed(5)
    second = both()
    assert first[0] == second[0]
    np.testing.assert_array_equal(first[1], second[1])
    torch.random.set_rng_state(state)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluating"])
def test_no_gradient_is_left_and_the_mode_is_restored(
    model: MaskedDiffusionModel, backbone: Backbone, ranks: Ranks, training: bool
) -> None:
    modes: list[tuple[bool, bool]] = []

    def note(module: torch.nn.Module, inputs: object) -> None:
        modes.append((module.training, torch.is_grad_enabled()))

    hook = model.register_forward_pre_hook(note)
    try:
        model.train(training)
        run_evaluation(model, backbone, ranks)
        probe(model, P_POTS["mirror"], backbone, 0, ranks)
        assert model.training is backbone.model.training is training
    finally:
        hook.remove()
        model.train()
    assert set(modes) == {(False, False)}
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.is_grad_enabled()
