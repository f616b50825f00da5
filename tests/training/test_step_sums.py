"""The sums of a step compared with a plain loop over its samples."""

import numpy as np
import pytest
import torch

from mdmscale.config.diffusion import DiffusionSection
from mdmscale.data.collate import Collator
from mdmscale.diffusion.baseline import EmaBaseline
from mdmscale.diffusion.density import DensityTable
from mdmscale.diffusion.levels import Levels
from mdmscale.diffusion.noise import Noise, NoisedSample, noise_sample
from mdmscale.diffusion.p_pots import TABLE_EDGES
from mdmscale.diffusion.sample import Sample
from mdmscale.parallel.ranks import Ranks
from mdmscale.training import step_sums
from mdmscale.training.step_sums import StepSums, StepTotals

SCALE = 1.5


@pytest.fixture
def samples() -> list[NoisedSample]:
    rng = np.random.default_rng(0)
    noise = Noise(DiffusionSection(masking="mirror"))
    density = DensityTable.from_weights(np.array([0, 0.01, 0.51, 0.6, 1]), np.array([5.0, 2, 1, 0.5]), 0.05)
    samples = [Sample(np.arange(12) + 1, np.arange(12) >= place) for place in range(4)]
    made = [
        noise_sample(sample, Levels(np.array([u]), density), rng.random(12), noise)
        for sample, u in zip(samples, (0.01, 0.5, 0.8, 0.99), strict=True)
    ]
    assert len({float(sample.importance_weights[0]) for sample in made}) == 4
    return made


@pytest.mark.parametrize("turns", [1, 2], ids=["joint", "sequential"])
def test_sums_are_those_of_a_loop(samples: list[NoisedSample], turns: int, ranks: Ranks) -> None:
    """The token's id replaces the model's cross-entropy, and its square the squared norm."""
    baseline = EmaBaseline(TABLE_EDGES, 0.99)
    baseline.sums, baseline.weights = np.linspace(1, 2, 16), np.ones(16)
    sums = StepSums(baseline, SCALE, Ranks(0, 1, torch.device("cpu")))
    for first, part in ((0, samples[:2]), (2, samples[2:])):
        rows = [part] if turns == 1 else [[sample.row(number) for sample in part] for number in range(2)]
        for batch in (Collator(0)(row, first_draw=first) for row in rows):
            sums.add(batch, batch.targets.float(), batch.targets.float() ** 2)
    totals = StepTotals.of(sums.reduce(stop=True))

    expected = np.zeros((4, 16))
    loss, value = 0.0, 0.0
    for sample in samples:
        (importance_weight,) = sample.importance_weights
        weighted = SCALE * sample.weights * sample.masks
        own = float((weighted * sample.token_ids).sum())
        plain = own / importance_weight
        norm = float((weighted**2 * sample.token_ids**2).sum()) / importance_weight**2
        cell = int(np.searchsorted(TABLE_EDGES, sample.t[0], side="right")) - 1
        expected[:, cell] += (1, plain, plain**2, norm)
        loss += own
        value += importance_weight * float(baseline.values(sample.t)[0])
    assert totals.cells == pytest.approx(expected, rel=1e-5)
    assert (totals.loss, totals.baseline) == pytest.approx((loss, value), rel=1e-5)
    assert totals.num_tokens == 2 * 48, "of both rows"
    assert totals.num_masked == sum(int(sample.masks.sum()) for sample in samples)
    assert totals.num_stops == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_sums_leave_the_device_without_waiting(
    samples: list[NoisedSample], monkeypatch: pytest.MonkeyPatch
) -> None:
    device = torch.device("cuda")
    monkeypatch.setattr(step_sums, "all_reduce_sum", lambda tensor: tensor)  # the process group is the CPU's
    batch = Collator(0)(samples).to(device)
    norms = torch.ones(len(batch.targets), device=device)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        sums = StepSums(EmaBaseline(TABLE_EDGES, 0.99), SCALE, Ranks(0, 1, device))
        sums.add(batch, norms, norms)
        sent = sums.reduce(stop=False)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert StepTotals.of(sent).loss == pytest.approx(float(batch.weights.sum()) * SCALE, rel=1e-5)
