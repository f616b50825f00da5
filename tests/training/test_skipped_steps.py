"""Which steps are skipped, how they are counted, and that runs with skipped steps resume bit for bit."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mdmscale.config.run import RunConfig
from mdmscale.parallel.ranks import Ranks
from mdmscale.training.metrics import read_metrics
from mdmscale.training.skipped_steps import (
    MOST_NOT_FINITE,
    NOT_FINITE,
    SPIKE,
    WARM_UP,
    WINDOW,
    SkippedSteps,
    robust_z,
)
from mdmscale.training.trainer import train


def after(steps: int, threshold: float | None = 5.0, seed: int = 0) -> SkippedSteps:
    """After `steps` steps of losses around 4 and gradient norms around 1."""
    skipped, rng = SkippedSteps(threshold), np.random.default_rng(seed)
    for step, (loss, norm) in enumerate(rng.normal((4, 1), 0.1, (steps, 2)).tolist(), 1):
        skipped.observe(step, loss, norm, None)
    return skipped


def test_the_z_score_is_that_of_a_normal_and_heeds_no_outliers() -> None:
    values = np.random.default_rng(0).normal(3, 0.5, 20_000)
    assert robust_z(4.5, values) == pytest.approx(3, abs=0.1)
    values[:2000] = 1e9
    assert robust_z(4.5, values) == pytest.approx(3, abs=0.7)
    assert robust_z(1e9, [1.0] * 50) == 0.0, "no scale"


def test_a_spike_of_loss_or_norm_is_skipped_once_enough_steps_are_known() -> None:
    assert after(WARM_UP - 1).reason(100.0, 1.0) is None
    skipped = after(WARM_UP)
    assert skipped.reason(4.1, 1.1) is None
    assert skipped.reason(5.0, 1.0) == skipped.reason(4.0, 2.0) == SPIKE
    assert skipped.reason(-5.0, 0.0) is None, "low ones are no spikes"
    assert after(50, threshold=None).reason(1e9, 1e9) is None, "off by default"


@pytest.mark.parametrize("threshold", [None, 5.0])
@pytest.mark.parametrize(
    ("loss", "norm"), [(math.nan, 1.0), (math.inf, 1.0), (4.0, math.inf), (4.0, math.nan)]
)
def test_what_is_not_finite_is_always_skipped(threshold: float | None, loss: float, norm: float) -> None:
    assert after(3, threshold).reason(loss, norm) == NOT_FINITE


def test_a_new_level_is_soon_no_spike() -> None:
    """So a run never skips for ever."""
    skipped, rng, reasons = after(WINDOW), np.random.default_rng(1), []
    for step in range(WINDOW + 1, 3 * WINDOW):
        loss, norm = rng.normal((9, 1), 0.1).tolist()
        reasons.append(skipped.reason(loss, norm))
        skipped.observe(step, loss, norm, reasons[-1])
    assert reasons[0] == SPIKE and reasons[WINDOW // 2 :] == [None] * (len(reasons) - WINDOW // 2)


def test_skipped_steps_are_counted_over_a_window_not_in_a_row() -> None:
    """Every other step is not finite: the run ends, although none follows another."""
    skipped, step = after(10), 10
    for number in range(1, MOST_NOT_FINITE):
        found = skipped.observe(step := step + 1, math.nan, math.nan, NOT_FINITE)
        assert found == {"skipped": NOT_FINITE, "skipped_recently": number}
        skipped.observe(step := step + 1, 4.0, 1.0, None)
    with pytest.raises(FloatingPointError, match=rf"in 10 of the last 100 steps, {step + 1} the last"):
        skipped.observe(step + 1, math.nan, math.nan, NOT_FINITE)


def test_steps_that_are_rarely_skipped_end_no_run() -> None:
    skipped = SkippedSteps(None)
    for step in range(1, 2001):
        reason = NOT_FINITE if step % 20 == 0 else None
        found = skipped.observe(step, 4.0, math.nan if reason else 1.0, reason)
    assert found == {"skipped": NOT_FINITE, "skipped_recently": 5}
    assert skipped.describe() == "100 steps (100 not finite), the last 1920, 1940, 1960, 1980, 2000"


def test_the_closing_words_name_the_reasons() -> None:
    skipped = after(WARM_UP)
    assert skipped.describe() is None
    skipped.observe(21, 4.0, math.inf, NOT_FINITE)
    skipped.observe(22, 90.0, 1.0, SPIKE)
    assert skipped.describe() == "2 steps (1 not finite and 1 spike), the last 21, 22"


def test_a_loaded_state_goes_on_alike() -> None:
    first, second = after(150), SkippedSteps(5.0)
    first.observe(151, 4.0, math.inf, NOT_FINITE)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for loss in np.random.default_rng(2).normal(4, 0.3, 200).tolist():
        assert first.reason(loss, 1.0) == second.reason(loss, 1.0)
        assert first.observe(152, loss, 1.0, None) == second.observe(152, loss, 1.0, None)
    assert first.state_dict() == second.state_dict() and first.describe() == second.describe()


@pytest.fixture
def spiky(tiny: dict[str, Any]) -> dict[str, Any]:
    """With so low a threshold some ordinary steps count as spikes."""
    tiny["train"] |= {"steps": 40, "skip_spikes": 1.0}
    tiny["checkpoint"] = {"every": 30, "keep": 0}
    return tiny


def skipped_in(folder: Path) -> list[int]:
    return [record["step"] for record in read_metrics(folder) if "skipped" in record]


def test_a_run_with_skipped_steps_resumes_bit_for_bit(
    spiky: dict[str, Any], ranks: Ranks, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = train(RunConfig.model_validate(spiky)).folder
    assert min(skipped_in(folder)) < 30 < max(skipped_in(folder))
    assert not any(each["clipped"] for each in read_metrics(folder) if "skipped" in each)
    output = capsys.readouterr().out
    assert f"step {skipped_in(folder)[0]}: skipped, spike" in output
    assert f"  skipped     {len(skipped_in(folder))} steps ({len(skipped_in(folder))} spike)" in output
    shutil.copytree(folder, tmp_path / "resumed" / "tiny")
    shutil.rmtree(tmp_path / "resumed" / "tiny" / "checkpoints" / "step-00000040")
    spiky["run"]["output_dir"] = str(tmp_path / "resumed")
    resumed = train(RunConfig.model_validate(spiky)).folder
    assert "continuing from" in capsys.readouterr().out
    for name in ("loss", "loss_controlled", "grad_norm", "skipped", "skipped_recently"):
        assert [each.get(name) for each in read_metrics(folder)] == [
            each.get(name) for each in read_metrics(resumed)
        ], name
    weights = [(run / "hf" / "model.safetensors").read_bytes() for run in (folder, resumed)]
    assert weights[0] == weights[1]
