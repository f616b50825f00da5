"""The report treats maskings as training does."""

import numpy as np
import pytest

from mdmscale.analysis.variance.maskings import MASKINGS, noise_of, row_times
from mdmscale.config.diffusion import DiffusionSection
from mdmscale.config.keys import describe_keys
from mdmscale.diffusion.noise import noise_sample
from mdmscale.diffusion.sample import Sample
from mdmscale.diffusion.schedule import mask_rate


@pytest.mark.parametrize("t", [0.1, 0.7])
@pytest.mark.parametrize("masking", MASKINGS)
def test_a_row_is_masked_at_the_rate_of_its_t(masking: str, t: float) -> None:
    options, length = DiffusionSection(), 40_000
    sample = Sample(np.zeros(length, dtype=np.int64), np.ones(length, dtype=bool))
    uniforms = np.random.default_rng(0).random(length)
    noised = noise_sample(sample, t, 1.0, uniforms, noise_of(masking, options))
    expected = [mask_rate(float(each), options.eps) for each in row_times(masking, np.array(t))]
    assert noised.masks.mean(axis=1) == pytest.approx(expected, abs=0.01)


def test_maskings_are_choices_of_the_config() -> None:
    (described,) = (key.values for key in describe_keys() if key.name == "diffusion.masking")
    assert set(MASKINGS) <= set(described.split(" | "))
