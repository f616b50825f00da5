"""The annealed mask, through the schedule, the loader and real attention."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mdmscale.config.model import ModelSection
from mdmscale.config.run import RunConfig
from mdmscale.data.collate import Collator
from mdmscale.data.loader import TrainLoader, make_t_sampler
from mdmscale.diffusion.noise import Noise
from mdmscale.diffusion.sample import Sample
from mdmscale.models.annealing import annealed_mask, for_attention, open_share, visible_positions
from mdmscale.models.backbone import build_backbone
from mdmscale.parallel.batch_layout import BatchLayout

LENGTH = 64


def test_the_share_grows_to_one() -> None:
    assert [open_share(step, 4) for step in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]


@pytest.mark.parametrize("step", [0, 3, 9])
def test_looking_back_is_open_and_a_share_of_looking_ahead(step: int) -> None:
    pairs = visible_positions(seed=1, step=step, num_steps=10, longest=200)
    assert pairs[np.tril_indices(200)].all()
    ahead = pairs[np.triu_indices(200, k=1)]
    assert ahead.mean() == pytest.approx((step + 1) / 10, abs=0.02)
    assert np.array_equal(pairs, visible_positions(1, step, 10, 200))
    assert not np.array_equal(pairs, visible_positions(2, step, 10, 200)) or step == 9


class Source:
    """Samples of two lengths, so that batches are padded."""

    num_train, num_held_out, fingerprint, description = 100, 0, "lengths", "lengths"

    def train_sample(self, index: int) -> Sample:
        length = 24 + 8 * (index % 2)
        return Sample(np.arange(length, dtype=np.int64) + 5, np.ones(length, dtype=bool))

    def held_out_sample(self, index: int) -> Sample:
        raise AssertionError


def test_every_layout_sees_the_same_pairs_and_none_once_it_is_over(tiny: dict[str, Any]) -> None:
    tiny["model"]["attention_annealing_steps"] = 5
    config = RunConfig.model_validate(tiny)
    sampler = make_t_sampler(config)

    def masks(layout: BatchLayout, rank: int, step: int) -> list[torch.Tensor | None]:
        loader = TrainLoader(Source(), config, layout, rank, Noise(config.diffusion), Collator(3))
        return [batch.attention_mask for batch in loader.micro_batches(step, sampler)]

    (whole,) = masks(BatchLayout(1, 8, 1), 0, step=2)
    assert whole is not None and whole.shape == (16, 1, 32, 32)
    parts = [mask for rank in range(2) for mask in masks(BatchLayout(2, 2, 2), rank, step=2)]
    order = [0, 2, 1, 3]  # [turn][rank]
    joined = torch.cat([parts[place] for place in order])  # type: ignore[arg-type]
    assert torch.equal(joined, whole)
    assert torch.equal(whole[0], whole[1]), "both rows of a pair"
    (after,) = masks(BatchLayout(1, 8, 1), 0, step=5)
    assert after is not None and after.shape == (16, 32), "padding alone"


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_position_depends_on_the_open_ones_alone(corpus: Path, attention: str) -> None:
    """A change of a closed or padded token does not change a position's output of one layer."""
    options = ModelSection(
        tokenizer=str(corpus / "tokenizer"),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        dtype="fp32",
        attention=attention,
    )
    model = build_backbone(options, 1e-3, seed=0).model.eval()
    pairs = visible_positions(seed=0, step=1, num_steps=4, longest=LENGTH)
    real = torch.ones(1, 24, dtype=torch.int64)
    real[:, 20:] = 0
    mask = annealed_mask(real, pairs, 1, 24)
    taken = for_attention(mask, attention, torch.float32)
    ids = torch.arange(24)[None] + 5

    def output(token_ids: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return model.model(input_ids=token_ids, attention_mask=taken).last_hidden_state[0]

    reference = output(ids)
    assert reference.isfinite().all()
    for place in (5, 12, 19, 21):
        changed = ids.clone()
        changed[0, place] = 300
        moved = (output(changed) - reference).abs().amax(dim=1) > 1e-6  # [length]
        assert moved.tolist() == mask[0, 0, :, place].tolist()


def test_without_padding_the_mask_is_the_pairs() -> None:
    pairs = visible_positions(0, 0, 3, LENGTH)
    mask = annealed_mask(None, pairs, 2, 10)
    assert torch.equal(mask[1, 0], torch.from_numpy(pairs[:10, :10]))
