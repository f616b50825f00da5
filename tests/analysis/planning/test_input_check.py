"""--dry-run says what is there, what disagrees, and what it could not check."""

import json
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
from models.tiny_folder import write_model_folder

from mdmscale.analysis.planning.dry_run import print_dry_run
from mdmscale.analysis.planning.input_check import InputCheck, check_input
from mdmscale.config.run import RunConfig
from mdmscale.data.indexed import IndexedWriter, token_dtype
from mdmscale.system.errors import UserError

Values = dict[str, Any]


def check(values: Values) -> InputCheck:
    return check_input(RunConfig.model_validate(values))


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model_folder(tmp_path_factory.mktemp("model") / "hf")


@pytest.fixture
def tuned(tiny: Values, model_folder: Path, tmp_path: Path) -> Values:
    """A fine-tune of the tiny model on two lines."""
    lines = [{"prompt": "def", "response": " add"}, {"prompt": "for", "response": " step in range"}]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = {"kind": "sft", "path": str(tmp_path / "pairs.jsonl"), "sequence_length": 32}
    return {**tiny, "model": {"path": str(model_folder)}, "data": data}


def test_a_run_from_scratch_is_checked(tiny: Values, corpus: Path, tmp_path: Path) -> None:
    checked = check(tiny)
    assert (checked.problems, checked.unchecked) == ([], [])
    assert list(checked.found) == ["run folder", "tokenizer", "model", "data"]
    assert f"{corpus}/tokenizer: 512 tokens; special ids: " in checked.found["tokenizer"]
    assert "512 rows for 512 tokens, mask id" in checked.found["model"]
    assert "training samples" in checked.found["data"] and "within the model's" in checked.found["data"]
    assert not (tmp_path / "runs").exists(), "nothing is written"


def test_a_fine_tune_is_checked(tuned: Values, model_folder: Path) -> None:
    checked = check(tuned)
    assert (checked.problems, checked.unchecked) == ([], [])
    assert f"{model_folder}, with " in checked.found["model"] and "320 rows for 291" in checked.found["model"]
    assert "its first samples (2) encoded; the longest has " in checked.found["data"]


def test_checkpoints_in_the_run_folder_are_named(tiny: Values, tmp_path: Path) -> None:
    (tmp_path / "runs" / "tiny" / "checkpoints" / "step-00000007").mkdir(parents=True)
    assert "has checkpoints, the newest step-00000007" in check(tiny).found["run folder"]


def disagreements() -> list[Any]:
    return [
        (
            {"model": {"vocab_size": 128}},
            "model.vocab_size = 128 is smaller than the tokenizer's 512 token ids",
        ),
        ({"model": {"mask_token_id": 5000}}, "model.mask_token_id = 5000 is beyond the model's 512"),
        (
            {"data": {"sequence_length": 10**6}, "model": {"max_position_embeddings": 10**6}},
            "longer than all",
        ),
    ]


@pytest.mark.parametrize(("changes", "problem"), disagreements())
def test_what_disagrees_from_scratch(tiny: Values, changes: Values, problem: str) -> None:
    for section, values in changes.items():
        tiny[section] |= values
    (found,) = check(tiny).problems
    assert problem in found


def test_ids_of_another_tokenizer(tiny: Values, tmp_path: Path) -> None:
    with IndexedWriter(tmp_path / "foreign", token_dtype(1000)) as writer:
        for _ in range(4):
            writer.add_document(np.arange(100) + 480)
    tiny["data"]["path"] = str(tmp_path / "foreign")
    (problem,) = check(tiny).problems
    assert "token id 579 is outside the model's vocabulary of 512" in problem


def test_sequences_longer_than_the_model_s(tuned: Values) -> None:
    tuned["data"]["sequence_length"] = 49
    (problem,) = check(tuned).problems
    assert "data.sequence_length = 49 exceeds the model's max_position_embeddings = 48" in problem


def test_lines_that_do_not_fit_or_cannot_be_read(tuned: Values, tmp_path: Path) -> None:
    tuned["data"]["sequence_length"] = 3
    (problem,) = check(tuned).problems
    assert problem.startswith(f"{tmp_path}/pairs.jsonl:2: ")
    assert "more than the sequence length of 3" in problem
    tuned["data"]["too_long"] = "truncate"
    assert not check(tuned).problems
    (tmp_path / "pairs.jsonl").write_text("{")
    (problem,) = check(tuned).problems
    assert problem.startswith(f"{tmp_path}/pairs.jsonl:1: not JSON")
    (tmp_path / "pairs.jsonl").write_text("\n")
    assert "is empty; there is no sample to train on" in check(tuned).problems[0]


def test_missing_weights_are_named(tuned: Values, model_folder: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (bare / name).write_bytes((model_folder / name).read_bytes())
    tuned["model"]["path"] = str(bare)
    (problem,) = check(tuned).problems
    assert str(bare) in problem


def test_each_missing_part_is_told_and_the_others_are_checked(tiny: Values, tmp_path: Path) -> None:
    tiny["data"]["path"] = str(tmp_path / "nothing")
    checked = check(tiny)
    assert list(checked.found) == ["run folder", "tokenizer", "model"]
    assert checked.problems[0].startswith("data.path = ")
    tiny["model"]["tokenizer"] = "./nothing"
    assert [problem.partition(" = ")[0] for problem in check(tiny).problems] == [
        "data.path",
        "model.tokenizer",
    ]


@pytest.mark.parametrize(("key", "value"), [("tokenizer", "gpt2"), ("path", "owner/name")])
def test_a_hub_that_cannot_be_reached_is_no_failure(
    tiny: Values, key: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny["model"][key] = value
    checked = check(tiny)
    assert not checked.problems
    assert checked.unchecked[0].startswith(f"model.{key} = {value!r}: no such folder, and as a hub id")
    assert "ids not compared" in checked.found["data"]
    print_dry_run(RunConfig.model_validate(tiny), 2)
    plan = capsys.readouterr().out
    assert "model: of unknown size" in plan and f"  not checked: model.{key} = {value!r}" in plan
    assert "rows a forward" in plan


def test_problems_come_after_the_plan(tiny: Values, capsys: pytest.CaptureFixture[str]) -> None:
    tiny["data"]["path"] = "nothing"
    with pytest.raises(UserError, match=r"data\.path = 'nothing'"):
        print_dry_run(RunConfig.model_validate(tiny), 2)
    assert "memory a rank" in capsys.readouterr().out


def test_an_autoregressive_run_of_a_model_that_predicts_in_place_is_a_problem(tuned: Values) -> None:
    tuned["diffusion"] = {"objective": "ar"}
    (problem,) = check(tuned).problems
    assert "predicts each token in place" in problem
    tuned["model"]["logit_shift"] = True
    assert check(tuned).problems == []
