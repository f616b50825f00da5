"""The slices together are the batch: every masked position once, with the state that predicts it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mdmscale.data.batch import Batch
from mdmscale.data.collate import Collator
from mdmscale.data.slicing import WHOLE, Slicer
from mdmscale.diffusion.noise import NoisedSample

MASK = 99


def make_batch(*lengths: int, logit_shift: bool = False, packs: bool = False) -> Batch:
    """Rows of the tokens 0, 1, ... in which every third token is masked, starting with the first."""
    samples = []
    for length in lengths:
        masks = (np.arange(length) % 3 == 0)[None]
        samples.append(
            NoisedSample(
                np.arange(length),
                masks,
                masks / (1.0 + np.arange(length)),
                length,
                np.array([0.5]),
                np.ones(1),
            )
        )
    return Collator(MASK, logit_shift, packs)(samples)


@pytest.mark.parametrize("packs", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("logit_shift", [False, True])
@pytest.mark.parametrize("lengths", [(8, 8), (7, 5), (3, 3)])
@pytest.mark.parametrize("ranks", [2, 4])
def test_every_masked_position_is_in_one_slice(
    packs: bool, logit_shift: bool, lengths: tuple[int, ...], ranks: int
) -> None:
    batch = make_batch(*lengths, logit_shift=logit_shift, packs=packs)
    slices = [Slicer(place, ranks)(batch) for place in range(ranks)]
    width = slices[0].input_ids.shape[1]
    length = batch.input_ids.shape[1]
    assert width == -(-length // ranks)
    np.testing.assert_array_equal(
        torch.cat([each.input_ids for each in slices], dim=1)[:, :length], batch.input_ids
    )
    found = []
    for place, each in enumerate(slices):
        assert each.position_ids is not None and each.position_ids.shape == (1, width)
        assert (each.num_draws, each.num_tokens) == (batch.num_draws, batch.num_tokens)
        rows, columns = each.positions // width, each.positions % width + place * width
        found += list(
            zip(rows.tolist(), columns.tolist(), each.targets.tolist(), each.weights.tolist(), strict=True)
        )
    rows, columns = batch.positions // length, batch.positions % length
    expected = zip(
        rows.tolist(), columns.tolist(), batch.targets.tolist(), batch.weights.tolist(), strict=True
    )
    assert sorted(found) == sorted(expected)
    whole = range(length) if batch.position_ids is None else batch.position_ids[0].tolist()
    sliced = torch.cat([each.position_ids[0] for each in slices if each.position_ids is not None])
    assert sliced.tolist()[:length] == list(whole)
    if packs and len(set(lengths)) > 1:
        assert slices[0].row_lengths is not None
        assert (
            sum(slices[0].row_lengths) == width * ranks and slices[0].row_lengths[: len(lengths)] == lengths
        )


def test_masks_are_those_of_whole_rows() -> None:
    assert Slicer(0, 2)(make_batch(8, 8)).attention_mask is None
    mask = Slicer(1, 2)(make_batch(7, 5)).attention_mask
    assert mask is not None
    assert mask[:, 0, 0].tolist() == [[True] * 7 + [False], [True] * 5 + [False] * 3]


def test_masks_of_pairs_let_added_positions_see_themselves() -> None:
    batch = make_batch(3, 3)
    pairs = torch.ones(2, 1, 3, 3, dtype=torch.bool).tril()
    mask = Slicer(0, 2)(replace(batch, attention_mask=pairs)).attention_mask
    assert mask is not None and mask.shape == (2, 1, 4, 4)
    assert mask[0, 0].tolist() == [
        [True, False, False, False],
        [True, True, False, False],
        [True, True, True, False],
        [False, False, False, True],
    ]


def test_one_slice_is_the_batch_itself() -> None:
    batch = make_batch(4)
    assert WHOLE(batch) is batch
