"""Padded rows and packed rows have the same tokens, masks and weights."""

from dataclasses import fields

import numpy as np
import pytest
import torch

from mdmscale.data.batch import Batch
from mdmscale.data.collate import Collator, rows_and_columns
from mdmscale.diffusion.noise import NoisedSample

MASK = 99
LENGTHS = (5, 1, 7)


def samples(copies: int) -> list[NoisedSample]:
    """Samples of distinct tokens with random masks and weights."""
    random, made = np.random.default_rng(0), []
    for number, length in enumerate(LENGTHS):
        masks = random.random((copies, length)) < 0.6
        tokens = 10 * number + np.arange(length)
        made.append(
            NoisedSample(
                tokens,
                masks,
                masks * random.random(masks.shape),
                length,
                np.array([0.5]),
                np.array([2.0]),
            )
        )
    return made


def rows_of(batch: Batch) -> list[list[int]]:
    """The rows without padding."""
    if batch.row_lengths is not None:
        return [row.tolist() for row in batch.input_ids[0].split(batch.row_lengths)]
    assert batch.attention_mask is not None
    return [
        row[real.bool()].tolist() for row, real in zip(batch.input_ids, batch.attention_mask, strict=True)
    ]


@pytest.mark.parametrize("copies", [1, 2])
@pytest.mark.parametrize("packs", [False, True], ids=["padded", "packed"])
def test_rows_hold_the_samples(copies: int, packs: bool) -> None:
    made = samples(copies)
    batch = Collator(MASK, packs=packs)(made)
    assert rows_of(batch) == [
        np.where(mask, MASK, sample.token_ids).tolist() for sample in made for mask in sample.masks
    ]
    assert (batch.input_ids.flatten()[batch.positions] == MASK).all()
    clean = [token for sample in made for mask in sample.masks for token in sample.token_ids[mask]]
    assert batch.targets.tolist() == clean
    weights = np.concatenate([sample.weights[sample.masks] for sample in made])
    np.testing.assert_allclose(batch.weights, weights, rtol=1e-6)
    assert batch.draw_of.bincount().tolist() == [int(sample.masks.sum()) for sample in made]
    assert batch.num_tokens == copies * sum(LENGTHS) and batch.num_token_pairs == copies * (25 + 1 + 49)


def test_rows_of_one_length_need_no_packing() -> None:
    batch = Collator(MASK, packs=True)(samples(2)[:1])
    assert batch.input_ids.shape == (2, 5)
    assert batch.row_lengths is batch.attention_mask is batch.position_ids is None


def test_packed_rows_count_their_own_positions() -> None:
    batch = Collator(MASK, packs=True)(samples(2))
    lengths = (5, 5, 1, 1, 7, 7)
    assert batch.row_lengths == lengths
    assert batch.attention_mask is None and batch.position_ids is not None
    assert batch.position_ids[0].tolist() == [column for length in lengths for column in range(length)]


@pytest.mark.parametrize("packs", [False, True], ids=["padded", "packed"])
def test_shifted_positions_lie_one_before_their_token_but_within_its_row(packs: bool) -> None:
    made = samples(1)
    plain, shifted = (Collator(MASK, logit_shift, packs)(made) for logit_shift in (False, True))
    first = np.cumsum((0, *LENGTHS[:-1])) if packs else np.arange(3) * max(LENGTHS)
    at = plain.positions.numpy()
    assert shifted.positions.tolist() == np.where(np.isin(at, first), at, at - 1).tolist()
    for field in fields(Batch):
        if field.name != "positions":
            one, other = getattr(plain, field.name), getattr(shifted, field.name)
            assert torch.equal(one, other) if isinstance(one, torch.Tensor) else np.array_equal(one, other)


def test_places() -> None:
    rows, columns = rows_and_columns(np.array([2, 1, 3]))
    assert rows.tolist() == [0, 0, 1, 2, 2, 2] and columns.tolist() == [0, 1, 0, 0, 1, 2]
