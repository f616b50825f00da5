"""Dropout is off in training, whatever a model's config says.

Dropout draws from torch's global generator in the order in which rows are computed. So with it the losses of
one seed would depend on micro-batches, ranks and packing. Masks are the noise of this training.
"""

from transformers import PretrainedConfig


def remove_dropout(config: PretrainedConfig) -> dict[str, float]:
    """Set every dropout rate of `config` to 0. Returns the rates that were not 0, by their names."""
    rates = {
        name: float(value)
        for name, value in config.to_dict().items()
        if "drop" in name and isinstance(value, int | float) and not isinstance(value, bool) and value
    }
    for name in rates:
        setattr(config, name, 0.0)
    return rates
