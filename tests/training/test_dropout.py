"""A model whose config has dropout trains without it, so losses follow from the seed alone."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models.tiny_folder import write_model_folder

from mdmscale.config.run import RunConfig
from mdmscale.parallel.ranks import Ranks
from mdmscale.training.metrics import read_metrics
from mdmscale.training.trainer import train


def test_losses_do_not_depend_on_splits_and_packing(
    tiny: dict[str, Any], tmp_path: Path, ranks: Ranks, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_model_folder(tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"attention_dropout": 0.3}))
    pairs = [{"prompt": f"for {n}:", "response": "return a + b" * (1 + n % 3)} for n in range(24)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    tiny["model"] = {"path": str(model), "dtype": "fp32"}
    tiny["data"] = {"kind": "sft", "path": str(tmp_path / "pairs.jsonl"), "sequence_length": 48}
    tiny["diffusion"], tiny["optimizer"]["warmup_steps"] = {"masking": "mirror"}, 0
    layouts = {"packed": (4, True), "again": (4, True), "padded": (4, False), "split": (2, False)}
    losses = {}
    for name, (micro, packs) in layouts.items():
        tiny["run"]["name"] = name
        tiny["train"] = {
            "steps": 4,
            "global_batch_size": 8,
            "micro_batch_size": micro,
            "packing": packs,
        }
        losses[name] = [
            record["loss"] for record in read_metrics(train(RunConfig.model_validate(tiny)).folder)
        ]
    assert losses["again"] == losses["packed"]
    for name in ("padded", "split"):
        np.testing.assert_allclose(losses[name], losses["packed"], rtol=1e-5)
    output = capsys.readouterr().out
    assert output.count(f"{model}/config.json has attention_dropout = 0.3; training sets it to 0") == len(
        losses
    )
    exported = json.loads((tmp_path / "runs" / "packed" / "hf" / "config.json").read_text())
    assert exported["attention_dropout"] == 0
