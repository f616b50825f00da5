"""Runs with `diffusion.objective: ar`: one result on every layout, and an export as others expect it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_values, train_all
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM

from mdmscale.config.run import RunConfig
from mdmscale.conversion.exporting import ExportOptions, export_folder
from mdmscale.data.opening import open_source
from mdmscale.generation import encode_prompt, generate, load_model
from mdmscale.models.opening import describe_model
from mdmscale.parallel.ranks import Ranks
from mdmscale.system.errors import UserError
from mdmscale.training.metrics import read_metrics
from mdmscale.training.setup import set_up

pytestmark = pytest.mark.distributed

ALONE: dict[str, dict[str, Any]] = {
    "ar": {},
    "packed": {"train": {"packing": True}},
    "recomputed": {"model": {"activation_checkpointing": True}, "train": {"micro_batch_size": 8}},
    "lora": {"model": {"lora": {"rank": 4}}},
}
SHARED: dict[str, dict[str, Any]] = {
    "zero3": {"parallel": {"zero_stage": 3}},
    "tensor": {"parallel": {"zero_stage": 1, "tensor": 2}},
    "sequence": {"parallel": {"zero_stage": 2, "sequence": 2}},
    "packed-sequence": {"parallel": {"zero_stage": 1, "sequence": 2}, "train": {"packing": True}},
}


def run_values(corpus: Path, folder: Path, name: str) -> dict[str, Any]:
    values = tiny_values(corpus, folder)
    values["run"]["name"] = name
    values["diffusion"] = {"objective": "ar"}
    values["train"] |= {"steps": 6, "micro_batch_size": 2}
    values["eval"] = {"every": 3, "samples": 5}
    values["parallel"] = {"zero_stage": 0}
    for section, changes in {**ALONE, **SHARED}[name].items():
        values[section] = {**values[section], **changes}
    if name == "lora":
        values["model"] = {"path": str(folder / "ar" / "hf"), "dtype": "fp32", "lora": {"rank": 4}}
    return values


@pytest.fixture(scope="module")
def runs(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    train_all(1, [run_values(corpus, folder, name) for name in ALONE])
    return folder


@pytest.fixture(scope="module")
def shared_runs(corpus: Path, runs: Path) -> Path:
    """The same folder with the runs on two ranks."""
    train_all(2, [run_values(corpus, runs, name) for name in SHARED])
    return runs


def column(folder: Path, name: str) -> list[float]:
    return [record[name] for record in read_metrics(folder) if name in record]


def check_same(folder: Path, name: str) -> None:
    for metric in ("loss", "grad_norm", "eval_loss"):
        np.testing.assert_allclose(column(folder / name, metric), column(folder / "ar", metric), rtol=2e-4)


@pytest.mark.parametrize("name", ["packed", "recomputed"])
def test_every_layout_of_rows_gives_the_same_losses(runs: Path, name: str) -> None:
    check_same(runs, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHARED)
def test_ranks_that_share_models_or_sequences_give_the_same_losses(shared_runs: Path, name: str) -> None:
    check_same(shared_runs, name)


def test_it_learns_and_reports_no_controlled_loss(runs: Path) -> None:
    losses = column(runs / "ar", "loss")
    assert losses[0] == pytest.approx(np.log(576), rel=0.05), "nats a token, of a uniform guess"
    assert losses[-1] < losses[0] - 0.1
    assert not column(runs / "ar", "loss_controlled") and not column(runs / "ar", "eval_loss_controlled")


def test_the_held_out_loss_is_that_of_the_export_in_transformers(runs: Path, corpus: Path) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(runs / "ar" / "hf").eval()
    assert model.config.is_causal is True and model.config.mdm["objective"] == "ar"
    config = RunConfig.model_validate(run_values(corpus, runs, "ar"))
    source = open_source(config.data, config.run.seed, model.config.vocab_size, 0)
    losses = []
    for place in range(5):
        sample = source.held_out_sample(place * source.num_held_out // 5)
        tokens = torch.from_numpy(sample.token_ids)[None]
        with torch.no_grad():
            losses.append(float(F.cross_entropy(model(tokens).logits[0, :-1], tokens[0, 1:])))
    assert column(runs / "ar", "eval_loss")[-1] == pytest.approx(np.mean(losses), rel=1e-5)


def test_the_export_is_sampled_from_left_to_right(runs: Path) -> None:
    for name in ("ar", "lora"):
        assert describe_model(runs / name / "hf").objective == "ar"
    loaded = load_model(runs / "ar")
    (generation,) = generate(loaded, [encode_prompt(loaded, "def add", 6)])
    assert 1 <= generation.num_forwards <= 6


def test_it_is_exported_as_an_ordinary_model_and_not_as_an_mdm_of_others(runs: Path, tmp_path: Path) -> None:
    for to in ("llada", "dream"):
        with pytest.raises(UserError, match=r"is autoregressive \(diffusion.objective: ar\)"):
            export_folder(runs / "ar", tmp_path / to, ExportOptions(to))
    export_folder(runs / "ar", tmp_path / "arm", ExportOptions("arm"))
    assert not hasattr(AutoConfig.from_pretrained(tmp_path / "arm"), "mdm")
    assert describe_model(tmp_path / "arm", autoregressive=True).logit_shift


def test_a_resume_with_the_other_objective_is_refused(runs: Path, corpus: Path, ranks: Ranks) -> None:
    values = run_values(corpus, runs, "ar")
    values["diffusion"], values["model"]["logit_shift"] = {}, True
    values["train"]["steps"] = 8
    with pytest.raises(UserError, match=r"diffusion.objective = full, but checkpoint .* was trained with ar"):
        set_up(RunConfig.model_validate(values), ranks)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"logit_shift": False}, "objective = ar predicts each token from the position before"),
        ({"attention_annealing_steps": 4}, "objective = ar keeps attention causal"),
    ],
)
def test_model_options_that_contradict_it_are_refused(
    corpus: Path, tmp_path: Path, model: dict[str, Any], message: str
) -> None:
    values = run_values(corpus, tmp_path, "ar")
    values["model"] |= model
    with pytest.raises(ValueError, match=message):
        RunConfig.model_validate(values)
