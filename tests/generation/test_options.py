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
        ({"threshold": 0.9, "steps": 4}, "steps and threshold are all set"),
        ({"threshold": 0.9, "factor": 1.0}, "threshold and factor are all set"),
        ({"factor": 0.0}, "factor = 0.0: must be a positive number"),
        ({"threshold": 0.9, "remasking": "entropy"}, "threshold = 0.9 compares probabilities"),
        ({"factor": 1.0, "remasking": "random"}, "factor = 1.0 compares probabilities"),
        ({"threshold": 0.9, "schedule": "dream"}, "schedule = dream: has no effect with threshold"),
        ({"factor": 1.0, "order_temperature": 0.5}, "order_temperature = 0.5: has no effect with factor"),
        ({"remasking": "random", "order_temperature": 0.5}, "has no effect on random remasking"),
        ({"order_temperature": -1.0}, "order_temperature = -1.0: must be 0 or a positive number"),
        ({"top_k": 0, "temperature": 1.0}, "top_k = 0: must be at least 1"),
        ({"top_k": 5}, "top_k = 5: changes nothing at temperature 0"),
        ({"schedule": "cosine"}, "schedule = 'cosine': choose one of even, dream, independent"),
        ({"scores": "raw"}, "scores = 'raw': choose one of model, sampling"),
        ({"cache": True, "block_length": 4}, "cache = True: choose one of prefix, dual"),
        ({"remasking": "best"}, "remasking = 'best': choose one of confidence, margin, entropy, random"),
        ({"eos": "no"}, "eos = 'no': choose one of stop, keep, late, never"),
        ({"cache": "prefix"}, "cache: keeps what each block does not compute; set block_length"),
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


@pytest.mark.parametrize(
    "values",
    [
        {"schedule": "dream", "length": 8, "steps": 20},  # a step may commit nothing
        {"schedule": "independent", "length": 8, "block_length": 2, "steps": 3},
        {"top_p": 0.9, "scores": "sampling"},  # at temperature 0 it changes the scores
        {"threshold": 0.9, "remasking": "margin"},
    ],
)
def test_accepts(values: dict[str, Any]) -> None:
    GenerationOptions(**values)
