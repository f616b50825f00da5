"""What a request of lm-evaluation-harness asks for, as options of sampling."""

from typing import Any

import pytest

from mdmscale.evaluation.lm_eval.decoding import Decoding, decoding, requested, unread
from mdmscale.generation import GenerationOptions
from mdmscale.system.errors import UserError


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        ({}, {"length": 256}),
        ({"max_gen_toks": 9, "max_new_tokens": 7}, {"length": 9}),
        ({"max_new_tokens": "7"}, {"length": 7}),
        ({"do_sample": False, "temperature": 0.7, "top_p": 0.9}, {"length": 256}),
        ({"temperature": 0.0}, {"length": 256}),
        ({"do_sample": True}, {"length": 256, "temperature": 1.0}),
        ({"temperature": 0.7, "top_p": 0.9}, {"length": 256, "temperature": 0.7, "top_p": 0.9}),
        ({"do_sample": True, "top_p": 1.0, "top_k": 0}, {"length": 256, "temperature": 1.0}),
        ({"block_length": 32, "steps": 64}, {"length": 256, "block_length": 32, "steps": 64}),
        ({"until": ["x"], "num_beams": 1}, {"length": 256}),
    ],
)
def test_what_a_request_asks_for(request_: dict[str, Any], expected: dict[str, Any]) -> None:
    assert requested(request_) == expected


def test_chosen_options_come_first() -> None:
    found = decoding({"max_gen_toks": 9, "temperature": 0.5, "until": "x"}, {"length": 12, "steps": 6})
    assert found == Decoding(GenerationOptions(length=12, steps=6, temperature=0.5), ("x",))


def test_a_preset_comes_before_the_task_and_after_what_is_given() -> None:
    found = decoding({"max_gen_toks": 9}, {"preset": "llada", "block_length": 16})
    assert found.options == GenerationOptions(length=128, block_length=16)
    sampled = decoding({"do_sample": True, "max_gen_toks": 9}, {"preset": "llada", "length": 64})
    assert sampled.options == GenerationOptions(length=64, block_length=32, temperature=1.0)
    with pytest.raises(UserError, match="preset = 'lada': choose one of llada, "):
        decoding({}, {"preset": "lada"})


def test_arguments_without_meaning_are_named() -> None:
    assert unread({"num_beams": 4, "repetition_penalty": 1.1, "until": [], "steps": 4, "max_tokens": 3}) == [
        "num_beams",
        "repetition_penalty",
    ]


def test_options_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(UserError, match="steps = 64: exceeds length = 9"):
        decoding({"max_gen_toks": 9}, {"steps": 64})
