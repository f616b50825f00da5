from typing import Any

import numpy as np
import pytest
import torch

from mdmscale.config.run import RunConfig
from mdmscale.data.collate import Collator
from mdmscale.data.loader import TrainLoader, make_t_sampler
from mdmscale.data.order import sequence_of_sample
from mdmscale.diffusion.noise import Noise
from mdmscale.diffusion.sample import Sample
from mdmscale.parallel.batch_layout import BatchLayout, make_layout
from mdmscale.system.errors import UserError


@pytest.mark.parametrize(
    "layout", [BatchLayout(1, 8, 1), BatchLayout(2, 4, 1), BatchLayout(4, 1, 2), BatchLayout(8, 1, 1)]
)
def test_every_sample_is_drawn_once_in_any_layout(layout: BatchLayout) -> None:
    drawn = [
        index
        for step in range(3)
        for rank in range(layout.dp_size)
        for micro_batch in layout.sample_indices(step, rank)
        for index in micro_batch
    ]
    assert sorted(drawn) == list(range(24))


EPOCH = 20_011  # sequences


class CountingSource:
    """Sample n has a few tokens that depend on n only."""

    num_train, num_held_out, fingerprint, description = 100, 0, "counting", "counting"

    def train_sample(self, index: int) -> Sample:
        length = 5 + index % 4
        return Sample(np.arange(length, dtype=np.int64) + index, np.ones(length, dtype=bool))

    def held_out_sample(self, index: int) -> Sample:
        raise AssertionError


@pytest.mark.parametrize("t_sampler", ["uniform", "stratified", "low_discrepancy"])
def test_noise_is_the_same_in_any_layout(tiny: dict[str, Any], t_sampler: str) -> None:
    """The masked rows of every sample, whichever rank and micro-batch has it."""
    tiny["diffusion"]["t_sampler"] = t_sampler
    config = RunConfig.model_validate(tiny)

    def rows(layout: BatchLayout) -> dict[int, list[tuple[int, ...]]]:
        seen = {}
        for rank in range(layout.dp_size):
            noise = Noise(config.diffusion)
            loader = TrainLoader(CountingSource(), config, layout, rank, noise, Collator(999))
            indices = layout.sample_indices(2, rank)
            for micro_batch, batch in zip(
                indices, loader.micro_batches(2, make_t_sampler(config)), strict=True
            ):
                for place, index in enumerate(micro_batch):
                    length = 5 + index % 4
                    pair = batch.input_ids[2 * place : 2 * place + 2, :length]
                    weights = batch.weights[batch.draw_of == place]
                    seen[index] = [tuple(row) for row in pair.tolist()] + [tuple(weights.tolist())]
        return seen

    reference = rows(BatchLayout(1, 8, 1))
    assert len(reference) == 8
    assert any(999 in row for index in reference for row in reference[index])
    for layout in (BatchLayout(2, 4, 1), BatchLayout(2, 1, 4), BatchLayout(4, 2, 1), BatchLayout(8, 1, 1)):
        assert rows(layout) == reference


def test_a_job_that_grows_and_shrinks_within_epochs_visits_every_sequence_once_in_each(
    tiny: dict[str, Any],
) -> None:
    """Twenty steps of 2,048 samples on 1,024 ranks, then fewer, then more: just over two epochs."""
    tiny["train"]["global_batch_size"] = 2048
    tiny["diffusion"] = {"t_sampler": "stratified", "masking": "mirror"}
    visited, strata, step = [], [], 0
    phases = ((1024, 2, 5), (128, 4, 6), (1, 64, 1), (256, 8, 3), (1024, 1, 5))
    for num_ranks, micro_batch_size, steps in phases:
        tiny["train"]["micro_batch_size"] = micro_batch_size
        config = RunConfig.model_validate(tiny)
        layout, sampler = make_layout(config, num_ranks), make_t_sampler(config)
        for _ in range(steps):
            indices = [
                index
                for rank in range(num_ranks)
                for micro_batch in layout.sample_indices(step, rank)
                for index in micro_batch
            ]
            assert sorted(indices) == list(range(step * 2048, (step + 1) * 2048))
            strata.append({int(sampler.uniform(index) * 2048) for index in indices})
            visited += [sequence_of_sample(index, EPOCH, seed=3) for index in sorted(indices)]
            step += 1
    assert all(len(each) == 2048 for each in strata)
    first, second = visited[:EPOCH], visited[EPOCH : 2 * EPOCH]
    assert sorted(first) == sorted(second) == list(range(EPOCH)) and first != second


def test_a_batch_that_does_not_divide_is_refused_with_the_mend(tiny: dict[str, Any]) -> None:
    config = RunConfig.model_validate(tiny)
    with pytest.raises(
        UserError, match=r"global_batch_size = 8 is not a multiple of 3 ranks x .* = 4 = 12; 12 would be"
    ):
        make_layout(config, 3)
    assert make_layout(config, 2) == BatchLayout(2, 4, 1, rows_per_sample=2)
    assert make_layout(config, 1).gradient_accumulation_steps == 2


def test_a_job_of_1024_ranks_draws_every_sample_once_with_the_noise_of_one_rank(tiny: dict[str, Any]) -> None:
    """Five steps of 4,096 samples: indices, strata, t and masks agree in layouts that differ in every way."""
    tiny["train"] |= {"global_batch_size": 4096, "micro_batch_size": 2}
    tiny["diffusion"] = {"t_sampler": "stratified", "masking": "mirror"}
    config = RunConfig.model_validate(tiny)
    sampler, noise = make_t_sampler(config), Noise(config.diffusion)
    layouts = [make_layout(config, 1024), BatchLayout(1, 4096, 1), BatchLayout(512, 1, 8)]
    for step in range(5):
        drawn = [
            [
                index
                for rank in range(layout.dp_size)
                for micro in layout.sample_indices(step, rank)
                for index in micro
            ]
            for layout in layouts
        ]
        assert all(sorted(indices) == list(range(step * 4096, (step + 1) * 4096)) for indices in drawn)
        strata = [int(sampler.uniform(index) * 4096) for index in drawn[0]]
        assert sorted(strata) == list(range(4096))
    for rank in (0, 511, 1023):
        alone = TrainLoader(CountingSource(), config, layouts[1], 0, noise, Collator(9999))
        among = TrainLoader(CountingSource(), config, layouts[0], rank, noise, Collator(9999))
        for indices, batch in zip(
            layouts[0].sample_indices(4, rank), among.micro_batches(4, sampler), strict=True
        ):
            reference = alone.collate([alone.noised(index, sampler) for index in indices])
            assert batch.t.tolist() == reference.t.tolist()
            assert torch.equal(batch.input_ids, reference.input_ids)
            assert torch.equal(batch.weights, reference.weights)
