"""Which options may be combined, and how wrong combinations are refused."""

from typing import Any

import pytest

from mdmscale.generation import GenerationOptions
from mdmscale.system.errors import UserError


@pytest.mark.parametrize(
    "values, message",
    [
        ({"length": 0}, "length = 0: must be at least 1"),
        ({"block_length": 0}, "block_length = 0: must be at least 1"),
        ({"length": 8, "steps": 0}, "steps = 0: must be at least 1"),
        ({"length": 8, "steps": 9}, "steps = 9: exceeds length = 8"),
        ({"length": 9, "block_length": 4, "steps": 2}, "steps = 2: fewer than the 3 blocks"),
        ({"temperature": -1.0}, "temperature = -1.0: must be 0 or a positive number"),
        ({"temperature": float("nan")}, "temperature = nan: must be 0 or a positive number"),
        ({"guidance": -0.5}, "guidance = -0.5: must be 0 or a positive number"),
        ({"temperature": 1.0, "top_p": 0.0}, "top_p = 0.0: must be above 0 and at most 1"),
        ({"top_p": 0.9}, "top_p = 0.9: changes nothing at temperature 0"),
        ({"threshold": 1.5}, "threshold = 1.5: must be above 0 and at most 1"),
        ({"threshold": 0.9, "steps": 4}, "steps and threshold are both set"),
        ({"threshold": 0.9, "remasking": "entropy"}, "threshold = 0.9 is a probability"),
        ({"remasking": "best"}, "remasking = 'best': choose one of confidence, margin, entropy, random"),
        ({"eos": "no"}, "eos = 'no': choose one of stop, late, never"),
        ({"cache": "prefix"}, "cache: stores the keys and values of finished blocks; set block_length"),
        ({"cache": "prefix", "block_length": 4, "padding": "right"}, "set padding to left"),
        ({"seed": -1}, "seed = -1: must be between 0 and"),
    ],
)
def test_refuses(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        GenerationOptions(**values)
    (problem,) = caught.value.problems
    assert message in problem


def test_names_all_problems_at_once() -> None:
    with pytest.raises(UserError) as caught:
        GenerationOptions(length=0, temperature=-1.0, seed=-1)
    assert len(caught.value.problems) == 3
