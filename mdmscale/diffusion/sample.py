"""A sample: clean tokens without noise."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Sample:
    """Clean tokens and a mask of those that training may mask."""

    token_ids: np.ndarray  # int64 [length]
    eligible: np.ndarray  # bool [length]; kind tokens: all; kind sft: answers, with EOS and fill
