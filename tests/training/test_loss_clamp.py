"""paper_scripts drops the gradients that torch.clamp would drop from each sample's loss."""

import json
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from diffusion.tiny_model import make_model

from mdmscale.config.diffusion import DiffusionSection
from mdmscale.config.run import RunConfig
from mdmscale.data.collate import Collator
from mdmscale.diffusion.levels import Levels
from mdmscale.diffusion.noise import Noise, noise_sample
from mdmscale.diffusion.paper_scripts import PaperScripts
from mdmscale.diffusion.sample import Sample
from mdmscale.parallel.ranks import Ranks
from mdmscale.training.metrics import read_metrics
from mdmscale.training.trainer import train, without_large_losses

P_POTS = {"target": "paper", "fit": "epr"}


def gradients(model: torch.nn.Module, loss: torch.Tensor) -> list[torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


def test_gradients_are_those_of_clamped_losses(ranks: Ranks) -> None:
    model = make_model(vocab_size=16, head_chunk_size=5)
    section = DiffusionSection(objective="paper_scripts", t_sampler="p_pots", masking="mirror", p_pots=P_POTS)
    rng, noise = np.random.default_rng(0), Noise(section)
    made = [
        noise_sample(
            Sample(rng.integers(1, 15, 9), np.arange(9) >= 2), Levels.at(float(t)), rng.random(9), noise
        )
        for t in np.linspace(0.04, 0.95, 12)
    ]
    batch = Collator(15)(made)
    with torch.no_grad():
        _, cross_entropies, _ = model(**batch.model_inputs)
    losses = batch.sum_by_draw(batch.weights * cross_entropies)
    clamp = float(losses.sort().values[-4:-2].mean())  # three samples lie above it
    run: Any = SimpleNamespace(engine=model, ranks=ranks)
    kept = without_large_losses(run, batch, clamp)
    zeroed = torch.zeros(12, dtype=torch.bool).index_put((batch.draw_of,), kept.weights == 0)
    assert zeroed.tolist() == (losses > clamp).tolist() and zeroed.sum() == 3

    found = gradients(model, model(**kept.model_inputs)[0])
    expected = None
    for number, sample in enumerate(made):  # the plain computation, one sample and one clamp at a time
        alone = Collator(15)([sample])
        value = cast(torch.Tensor, model(**alone.model_inputs)[0])
        own = gradients(model, torch.clamp(value, max=clamp))
        assert float(value.detach()) == pytest.approx(float(losses[number]), rel=1e-5)
        expected = own if expected is None else [a + b for a, b in zip(expected, own, strict=True)]
    assert expected is not None
    for mine, plain in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-4, atol=1e-7)


def test_a_run_shows_the_losses_whose_gradients_are_dropped(
    tiny: dict[str, Any], ranks: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them here. A loss of 0 would look like success."""
    monkeypatch.setattr(PaperScripts, "loss_clamp", 0.0)
    small = {"num_x0": 2, "num_t": 9, "num_masks": 2}
    tiny["diffusion"] |= {"objective": "paper_scripts", "p_pots": P_POTS | small}
    tiny["train"]["steps"], tiny["optimizer"] = 2, {"lr": 3e-3, "warmup_steps": 0}
    folder = train(RunConfig.model_validate(tiny)).folder
    records = read_metrics(folder)
    assert [record["grad_norm"] for record in records] == [0, 0]
    assert min(record["loss"] for record in records) > 1
    described = json.loads((folder / "hf" / "config.json").read_text())["mdm"]
    assert described["objective"] == "full", "what it has trained is a masked diffusion model"
