"""The statements of docs/generation.md about blocks and thresholds hold for a model that this test trains."""

from pathlib import Path

import pytest

from mdmscale.generation import GenerationOptions
from tools.measure_generation import WIDTH, make_tests, measure, open_model, train_model


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_blocks_and_a_threshold_are_as_right_in_far_fewer_passes(tmp_path: Path) -> None:
    loaded = open_model(train_model(steps=1200), tmp_path)
    requests, answers = make_tests(loaded, 300)
    one, blocks, cached, at_once = (
        measure(loaded, requests, answers, GenerationOptions(length=WIDTH, **values))  # type: ignore[arg-type]
        for values in (
            {},
            {"block_length": 4, "threshold": 0.9},
            {"block_length": 4, "threshold": 0.9, "cache": "prefix"},
            {"steps": 1},
        )
    )
    assert one["accuracy"] > 0.9 > 0.2 > at_once["accuracy"]
    for way in (blocks, cached):
        assert way["passes"] < 0.5 * one["passes"]
        assert way["accuracy"] > one["accuracy"] - 3 * (way["error"] + one["error"]) - 0.01
