"""Presets: what each sets, and that given options take the place of theirs."""

import pytest

from mdmscale.generation import GenerationOptions
from mdmscale.generation.presets import PRESETS, preset_options
from mdmscale.system.errors import UserError


def test_the_paper_s_lengths_steps_and_blocks() -> None:
    paper = {
        "paper-gsm8k": (128, 128, 32),
        "paper-openscience": (256, 256, 256),
        "paper-hitab": (512, 256, 16),
    }
    for name, expected in paper.items():
        options = preset_options(name)
        assert (options.length, options.steps, options.block_length) == expected
        assert options == GenerationOptions(
            length=options.length, steps=options.steps, block_length=options.block_length
        )


def test_llada_is_greedy_in_blocks_and_dream_has_its_own_schedule_and_scores() -> None:
    assert preset_options("llada") == GenerationOptions(length=128, block_length=32)
    dream = preset_options("dream")
    assert (dream.schedule, dream.scores, dream.remasking) == ("dream", "sampling", "entropy")
    assert (dream.temperature, dream.top_p, dream.block_length) == (0.2, 0.95, None)


def test_given_options_win() -> None:
    options = preset_options("dream", length=64, temperature=0.0)
    assert (options.length, options.temperature, options.top_p) == (64, 0.0, 0.95)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_goes_with_a_threshold_or_a_factor_in_place_of_its_steps(name: str) -> None:
    for given in ({"threshold": 0.9}, {"factor": 1.0}):
        options = preset_options(name, remasking="confidence", **given)
        assert options.steps is None and options.schedule == "even"


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(UserError, match="preset = 'best': choose one of llada, dream, paper-gsm8k"):
        preset_options("best")
