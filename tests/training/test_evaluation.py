"""Held-out data without a token, and evaluations that are not finite: neither is a result."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, run_script

from mdmscale.config.model import ModelSection
from mdmscale.config.run import RunConfig
from mdmscale.data.held_out import held_out_indices
from mdmscale.data.indexed import IndexedWriter, token_dtype
from mdmscale.models.backbone import build_backbone
from mdmscale.parallel.ranks import Ranks
from mdmscale.system.errors import UserError
from mdmscale.training.metrics import read_metrics
from mdmscale.training.setup import set_up
from mdmscale.training.trainer import run_evaluation

DOCUMENTS, SHARE, SEEN_HELD_OUT_ONLY = 20, 0.2, 300


def write_shard(prefix: Path, held_out: list[list[int]]) -> Path:
    """20 documents, of which 4 are held out: `held_out` has their tokens."""
    places = dict(zip(held_out_indices(DOCUMENTS, SHARE, "documents").tolist(), held_out, strict=True))
    with IndexedWriter(prefix, token_dtype(512)) as writer:
        for number in range(DOCUMENTS):
            writer.add_document(np.array(places.get(number, range(10, 74)), dtype=np.int64))
    return prefix


@pytest.fixture
def values(tiny: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    tiny["data"] |= {"path": str(tmp_path / "shard"), "held_out": SHARE, "random_length_fraction": 0.0}
    tiny["diffusion"] = {}
    tiny["train"]["steps"] = 2
    tiny["optimizer"]["warmup_steps"] = 0
    tiny["eval"] = {"every": 1, "samples": 4, "num_t": 4}
    return tiny


def test_held_out_documents_without_a_token_are_refused(
    values: dict[str, Any], tmp_path: Path, ranks: Ranks
) -> None:
    write_shard(tmp_path / "shard", [[], [], [], []])
    with pytest.raises(UserError, match=r"data.held_out = 0.2: .*shard.* no tokens, so eval.every = 1"):
        set_up(RunConfig.model_validate(values), ranks)
    assert not (tmp_path / "runs").exists()
    values["eval"]["every"] = 0
    set_up(RunConfig.model_validate(values), ranks)


@pytest.mark.parametrize("tokens", [[[], [5], [], []], [[], [*range(10, 50)], [], [7]]], ids=["one", "some"])
def test_empty_ones_among_them_do_not_count(
    values: dict[str, Any], tmp_path: Path, ranks: Ranks, tokens: list[list[int]]
) -> None:
    """The loss is that of the same tokens in one document."""
    write_shard(tmp_path / "shard", tokens)
    with_empty = set_up(RunConfig.model_validate(values), ranks)
    together = [token for document in tokens for token in document]
    values["data"]["path"] = str(write_shard(tmp_path / "together", [together, [], [], []]))
    values["run"]["name"] = "together"
    in_one = set_up(RunConfig.model_validate(values), ranks)
    assert with_empty.source.num_held_out == in_one.source.num_held_out == 1
    loss = run_evaluation(with_empty)["eval_loss"]
    assert np.isfinite(loss) and loss == run_evaluation(in_one)["eval_loss"]


@pytest.mark.distributed
def test_a_loss_that_is_not_finite_on_held_out_data_alone_ends_the_run(
    values: dict[str, Any], tmp_path: Path
) -> None:
    """A token that only held-out documents have has NaN as its embedding, so training notices nothing."""
    write_shard(tmp_path / "shard", [[SEEN_HELD_OUT_ONLY] * 32] * 4)
    options = ModelSection(**values["model"] | {"tie_word_embeddings": False})
    backbone = build_backbone(options, eps=1e-3, seed=0)
    with torch.no_grad():
        backbone.model.get_input_embeddings().weight[SEEN_HELD_OUT_ONLY] = torch.nan
    backbone.model.save_pretrained(tmp_path / "model")
    backbone.tokenizer.save_pretrained(tmp_path / "model")
    values["model"] = {"path": str(tmp_path / "model"), "dtype": "fp32"}
    (tmp_path / "config.yaml").write_text(json.dumps(values))
    done = run_script(str(ROOT / "launchers" / "train.py"), "--config", str(tmp_path / "config.yaml"))
    assert done.returncode == 1, done.stdout + done.stderr
    assert "error: the held-out loss after step 1 is nan" in done.stderr
    assert "Traceback" not in done.stderr
    folder = tmp_path / "runs" / "tiny"
    assert read_metrics(folder) == []
    assert not (folder / "hf").exists() and not (folder / "checkpoints").exists()
