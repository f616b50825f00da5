"""A sample: clean tokens, before any noise."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Sample:
    """Clean tokens, and which of them may be masked."""

    token_ids: np.ndarray  # int64 [length]
    eligible: np.ndarray  # bool [length]; tokens: all; sft: the response with its EOS and fill
