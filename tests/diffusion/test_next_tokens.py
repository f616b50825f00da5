"""Autoregressive training as a corruption: what is predicted, with which weight, from which tokens."""

import numpy as np
import pytest

from mdmscale.config.diffusion import DiffusionSection
from mdmscale.data.collate import Collator
from mdmscale.diffusion.levels import Levels
from mdmscale.diffusion.noise import Noise, NoisedSample, noise_sample
from mdmscale.diffusion.sample import Sample

MASK = 99


def noised(eligible: list[int], normalization: str = "sample") -> NoisedSample:
    options = DiffusionSection(objective="ar", normalization=normalization)  # type: ignore[arg-type]
    sample = Sample(np.arange(10, 10 + len(eligible)), np.array(eligible, dtype=bool))
    return noise_sample(sample, Levels.at(0.3), np.linspace(0, 0.9, len(eligible)), Noise(options))


def test_every_eligible_token_but_the_first_is_predicted_with_equal_weight() -> None:
    whole, response = noised([1, 1, 1, 1]), noised([0, 0, 1, 0, 1])
    assert whole.masks.tolist() == [[False, True, True, True]]
    assert whole.weights.tolist() == [[0, 1 / 3, 1 / 3, 1 / 3]]
    assert response.masks.tolist() == [[False, False, True, False, True]]
    assert response.weights.sum() == 1 and response.num_eligible == 2
    assert noised([1, 1, 1], "token").weights.tolist() == [[0, 1, 1]]


def test_a_sample_of_one_token_has_nothing_to_predict() -> None:
    alone = noised([1])
    assert not alone.masks.any() and alone.weights.sum() == 0 and alone.num_eligible == 0


def test_its_tokens_stay_visible_and_are_predicted_from_the_position_before() -> None:
    batch = Collator(MASK, logit_shift=True)([noised([0, 1, 1]), noised([1, 1, 1, 1])])
    assert batch.input_ids.tolist() == [[10, 11, 12, MASK], [10, 11, 12, 13]]
    assert batch.positions.tolist() == [0, 1, 4, 5, 6]
    assert batch.targets.tolist() == [11, 12, 11, 12, 13]
    assert batch.num_token_pairs == 6 + 10, "a position attends to itself and to earlier ones"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"masking": "mirror"},
            "objective is ar, so nothing is masked, but masking = mirror; leave masking out",
        ),
        ({"t_sampler": "p_pots"}, "so no t is drawn, but t_sampler = p_pots"),
        ({"t_sampler": "stratified", "strata": 4}, "strata = 4"),
        ({"loss_weight": "window", "window": [0.2, 0.8]}, "window = "),
        ({"loss_weight": "bell"}, "so no t is drawn, but loss_weight = bell"),
        ({"rows": 2}, "so nothing is masked, but rows = 2"),
        ({"weights": "rate"}, "so nothing is masked, but weights = rate"),
        ({"isad": {"tokens": [5]}}, "so nothing is masked, but isad = "),
        ({"syrm": {"extra": 0.1}}, "so nothing is masked, but syrm = "),
        ({"ema_decay": 0.9}, "does not depend on t, but ema_decay = 0.9"),
        ({"eps": 0.01}, "eps = 0.01"),
        ({"pair_forward": "sequential"}, "so there are no pairs, but pair_forward = sequential"),
    ],
)
def test_options_of_noise_are_refused_by_name(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError) as refused:
        DiffusionSection.model_validate({"objective": "ar", **changes})
    assert message in str(refused.value)


def test_a_baseline_that_is_off_anyway_may_be_written() -> None:
    assert DiffusionSection(objective="ar", ema_decay=0.0).objective == "ar"
