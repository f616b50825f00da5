"""Corruption is general enough: other kinds of corruption need only one more entry in a dict."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from diffusion.tiny_model import make_model

from mdmscale.config.diffusion import DiffusionSection
from mdmscale.config.run import RunConfig
from mdmscale.data.collate import Collator
from mdmscale.data.loader import TrainLoader, make_t_sampler
from mdmscale.diffusion.corruption import Corruption, Draw, NoisedRows
from mdmscale.diffusion.levels import Levels
from mdmscale.diffusion.maskings import CORRUPTIONS
from mdmscale.diffusion.noise import Noise, noise_sample
from mdmscale.diffusion.sample import Sample
from mdmscale.diffusion.schedule import mask_rate
from mdmscale.models.mdm import MaskedDiffusionModel
from mdmscale.parallel.batch_layout import make_layout


@dataclass(frozen=True)
class Blocks(Corruption):
    """Masks each block of `size` tokens at its own t. A block attends to itself and earlier blocks."""

    size: int
    has_attention_pattern = True

    def num_t(self, length: int) -> int:
        return -(-length // self.size)

    def corrupt(self, draw: Draw) -> NoisedRows:
        t_of = np.arange(draw.length) // self.size
        rates = mask_rate(draw.levels.t, draw.eps)[t_of] * draw.eligible
        masked = draw.uniforms[0] < rates
        weights = np.zeros(len(rates))
        weights[masked] = (draw.share * draw.levels.importance_weights[t_of] / rates)[masked]
        return NoisedRows(masked[None], weights[None], t_of=t_of, attention=t_of[:, None] >= t_of)


@dataclass(frozen=True)
class Views(Corruption):
    """One row of two noisy views and the clean sample. A view attends to itself and the clean past."""

    has_attention_pattern = True

    def corrupt(self, draw: Draw) -> NoisedRows:
        length, pair = draw.length, CORRUPTIONS["mirror"].corrupt(draw)
        nothing = np.zeros(length)
        masked = np.concatenate([*pair.masks, nothing.astype(bool)])
        weights = np.concatenate([*pair.weights, nothing])
        view, at = np.repeat([0, 1, 2], length), np.tile(np.arange(length), 3)
        past = (view == 2) & (at < at[:, None])
        attention = (view[:, None] == view) | past
        return NoisedRows(masked[None], weights[None], position_ids=at, attention=attention)


NEW: dict[str, Corruption] = {"blocks": Blocks(4), "views": Views()}
BUILT_IN = ("independent", "exact_pair")  # also with rows that have a t each


@pytest.fixture
def new_names(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, corruption in NEW.items():
        monkeypatch.setitem(CORRUPTIONS, name, corruption)


class Source:
    """Samples with two different lengths."""

    num_train, num_held_out, fingerprint, description = 100, 0, "two lengths", "two lengths"

    def train_sample(self, index: int) -> Sample:
        return Sample(np.arange(9 + 3 * (index % 2)) % 7 + 1, np.ones(9 + 3 * (index % 2), dtype=bool))

    def held_out_sample(self, index: int) -> Sample:
        raise AssertionError


@pytest.mark.parametrize("name", [*NEW, *BUILT_IN])
@pytest.mark.parametrize("pair_forward", ["joint", "sequential"])
def test_a_new_corruption_needs_no_other_change(
    name: str, pair_forward: str, tiny: dict[str, Any], new_names: None
) -> None:
    """The path from the config's name to a model's losses: rows, weights, several t, attention patterns."""
    if pair_forward == "sequential" and CORRUPTIONS[name].num_rows == 1:
        pytest.skip("has one row")
    tiny["diffusion"] |= {"masking": name, "pair_forward": pair_forward}
    config = RunConfig.model_validate(tiny)
    layout = make_layout(config, 1)
    noise = Noise(config.diffusion)
    loader = TrainLoader(Source(), config, layout, 0, noise, Collator(0))
    batches = loader.micro_batches(3, make_t_sampler(config))
    assert len(batches) == layout.forwards_per_step
    assert layout.rows_per_sample == config.diffusion.rows_per_sample == CORRUPTIONS[name].num_rows

    expected: dict[int, float] = {}
    first = 0
    for index in [index for indices in layout.sample_indices(3, 0) for index in indices]:
        noised = loader.noised(index, make_t_sampler(config))
        t_of = np.broadcast_to(noised.t_of, noised.masks.shape)
        for number in range(len(noised.t)):
            expected[first + number] = float(noised.weights[noised.masks & (t_of == number)].sum())
        first += len(noised.t)
    found = dict.fromkeys(expected, 0.0)
    for batch in batches:
        for number, value in enumerate(batch.sum_by_draw(batch.weights.double()).tolist()):
            found[batch.first_draw + number] += value
        assert len(batch.importance_weights) == batch.num_draws
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.fixture(scope="module")
def model() -> MaskedDiffusionModel:
    return make_model(vocab_size=8, head_chunk_size=None)


def hidden_states(model: MaskedDiffusionModel, name: str, samples: list[Sample], t: float) -> torch.Tensor:
    """The decoder's output for a batch, [rows, length, hidden]."""
    noise = Noise(DiffusionSection(masking=name))
    levels = [Levels.at(t, noise.corruption.num_t(len(sample.token_ids))) for sample in samples]
    made = [
        noise_sample(sample, level, np.linspace(0.2, 0.99, len(sample.token_ids)), noise)
        for sample, level in zip(samples, levels, strict=True)
    ]
    batch = Collator(0)(made)
    assert batch.attention_mask is not None
    with torch.no_grad():
        return model.backbone.model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, position_ids=batch.position_ids
        ).last_hidden_state


def test_attention_follows_the_pattern_of_a_corruption(model: MaskedDiffusionModel, new_names: None) -> None:
    """Padding and other samples change nothing. A later block or view changes only what attends to it."""
    long, short = (Sample(np.arange(size) % 7 + 1, np.ones(size, dtype=bool)) for size in (12, 9))
    changed = Sample(np.where(np.arange(12) == 11, 3, long.token_ids), long.eligible)
    for name in ("blocks", "views"):
        together = hidden_states(model, name, [long, short], 0.1)
        alone = hidden_states(model, name, [short], 0.1)
        assert torch.allclose(together[1, : alone.shape[1]], alone[0], atol=1e-9)
    before, after = (hidden_states(model, "blocks", [each, short], 0.0)[0] for each in (long, changed))
    moved = (before - after).abs().amax(dim=-1) > 1e-9
    assert moved.tolist() == [False] * 8 + [True] * 4, "only the last block sees position 11"
    before, after = (hidden_states(model, "views", [each, short], 0.0)[0] for each in (long, changed))
    moved = (before - after).abs().amax(dim=-1) > 1e-9
    assert moved[24:].all(), "the clean columns see each other"


def test_views_share_the_positions_of_their_sample(new_names: None) -> None:
    sample = Sample(np.arange(5) + 1, np.ones(5, dtype=bool))
    noised = noise_sample(
        sample, Levels.at(0.5), np.linspace(0, 0.9, 5), Noise(DiffusionSection(masking="views"))
    )
    batch = Collator(0)([noised])
    assert batch.position_ids is not None
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4] * 3]
    assert (batch.num_tokens, batch.num_row_tokens, batch.num_token_pairs) == (5, 15, 225)


def test_shifted_views_are_predicted_within_themselves(new_names: None) -> None:
    """With logit_shift a token is predicted from the one before it in its view, the first from itself."""
    sample = Sample(np.arange(4) + 1, np.ones(4, dtype=bool))
    noised = noise_sample(sample, Levels.at(1.0), np.full(4, 0.5), Noise(DiffusionSection(masking="views")))
    batch = Collator(0, logit_shift=True)([noised])
    assert batch.positions.tolist() == [0, 0, 1, 2, 4, 4, 5, 6]


def test_annealing_hides_positions_whichever_column_shows_them(new_names: None) -> None:
    sample = Sample(np.arange(3) + 1, np.ones(3, dtype=bool))
    noised = noise_sample(sample, Levels.at(0.5), np.full(3, 0.5), Noise(DiffusionSection(masking="views")))
    batch = Collator(0)([noised], np.tri(8, dtype=bool))
    assert batch.attention_mask is not None and noised.attention is not None
    mask = batch.attention_mask[0, 0].numpy()
    assert np.array_equal(mask, noised.attention & np.tile(np.tri(3, dtype=bool), (3, 3)))


def test_rows_may_have_a_t_each() -> None:
    noise = Noise(DiffusionSection(masking="independent"))
    sample, uniforms = Sample(np.arange(4), np.ones(4, dtype=bool)), np.tile([0.1, 0.2, 0.5, 0.8], (2, 1))
    noised = noise_sample(sample, Levels(np.array([0.3, 0.9])), uniforms, noise)
    together, rows = Collator(9)([noised]), [Collator(9)([noised.row(number)]) for number in range(2)]
    assert together.draw_of.tolist() == [0, 0, 1, 1, 1, 1]
    assert torch.cat([batch.draw_of for batch in rows]).tolist() == together.draw_of.tolist()


def test_a_pattern_is_refused_where_attention_takes_none(tiny: dict[str, Any], new_names: None) -> None:
    tiny["diffusion"]["masking"] = "blocks"
    tiny["model"]["attention"] = "flash_attention_2"
    with pytest.raises(ValueError, match="masking = blocks has an attention pattern"):
        RunConfig.model_validate(tiny)
