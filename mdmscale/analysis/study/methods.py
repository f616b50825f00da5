"""The methods that a stability study compares, all with the same number of forward rows in a step."""

from typing import Any

from mdmscale.config.run import RunConfig
from mdmscale.diffusion.corruption import CORRUPTIONS

METHODS: dict[str, dict[str, Any]] = {
    "standard": {"t_sampler": "uniform", "masking": "bernoulli"},
    "clipped": {"t_sampler": "clipped", "masking": "bernoulli"},
    "p_pots": {"t_sampler": "p_pots", "masking": "bernoulli"},
    "mirror": {"t_sampler": "uniform", "masking": "mirror"},
    "p_pots+mirror": {"t_sampler": "p_pots", "masking": "mirror"},
}
BASELINE = "standard"
OURS = ("p_pots", "mirror", "p_pots+mirror")


def method_overrides(config: RunConfig, method: str) -> list[str]:
    """The overrides that turn the config of a study into that of a method, at equal forward rows.

    The batch sizes of the config count pairs. A pair has two rows, so methods without pairs get twice the
    samples.
    """
    options = METHODS[method]
    times = 2 // CORRUPTIONS[options["masking"]].num_rows
    return [
        *(f"diffusion.{name}={value}" for name, value in options.items()),
        f"train.global_batch_size={config.train.global_batch_size * times}",
        f"train.micro_batch_size={config.train.micro_batch_size * times}",
    ]
