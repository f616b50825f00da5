"""What the report must know of each `diffusion.masking`: its name, its noise and the t of its rows.

This is the only module of the report that names maskings.
"""

import numpy as np

from mdmscale.config.diffusion import DiffusionSection
from mdmscale.diffusion.bernoulli import BernoulliMasks
from mdmscale.diffusion.maskings import CORRUPTIONS
from mdmscale.diffusion.noise import Noise

SINGLE = "bernoulli"  # one row a sample
MIRROR, COMPLEMENT = "mirror", "complement"
PAIRED = (MIRROR, COMPLEMENT)  # two rows a sample
MASKINGS = (SINGLE, *PAIRED)


def noise_of(masking: str, options: DiffusionSection) -> Noise:
    """The noise of `masking` under the config's other options, without ISAD and SyRM."""
    return Noise(
        options.model_copy(update={"masking": masking, "weights": "rate", "isad": None, "syrm": None})
    )


def row_times(masking: str, t: np.ndarray) -> tuple[np.ndarray, ...]:
    """The t of each row of a sample at `t`."""
    corruption = CORRUPTIONS[masking]
    assert isinstance(corruption, BernoulliMasks)
    return tuple(level(t) for level in corruption.levels)
