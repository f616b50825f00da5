"""`loss_weight: learned` in a run: renewed from the baseline, kept in checkpoints, told by the metrics."""

from typing import Any

import numpy as np
import pytest

from mdmscale.config.run import RunConfig
from mdmscale.parallel.ranks import Ranks
from mdmscale.training import p_pots
from mdmscale.training.metrics import read_metrics
from mdmscale.training.trainer import train

KEYS = ("step", "loss", "loss_controlled", "grad_norm", "w_of_t", "p_of_t")


def test_it_resumes_bit_for_bit(tiny: dict[str, Any], ranks: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(p_pots, "LEARNT_EVERY", 4)
    tiny["diffusion"] |= {"loss_weight": "learned", "masking": "exact", "rows": 2}
    tiny["eval"] = {"every": 5, "samples": 2, "num_t": 2}

    def run(name: str, steps: int) -> list[dict[str, Any]]:
        tiny["run"]["name"], tiny["train"]["steps"] = name, steps
        tiny["optimizer"] = {"lr": 3e-3, "warmup_steps": 0, "schedule": "constant"}
        return read_metrics(train(RunConfig.model_validate(tiny)).folder)

    whole = run("whole", 10)
    run("parts", 6)
    parts = run("parts", 10)
    assert [{key: record.get(key) for key in KEYS} for record in parts] == [
        {key: record.get(key) for key in KEYS} for record in whole
    ]
    learnt = [record for record in whole if "w_of_t" in record]
    assert [record["step"] for record in learnt] == [5, 9]
    assert np.ptp(learnt[-1]["w_of_t"]["values"]) > 0.01
    assert "eval_loss" in whole[-1] and "eval_loss_controlled" not in whole[-1], "of another w(t)"
