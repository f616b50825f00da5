"""Which model folders and run folders open, and how the others are refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from models.tiny_folder import write_model_folder

from mdmscale.models.opening import describe_model, find_model_folder, load_model
from mdmscale.system.errors import UserError


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model_folder(tmp_path_factory.mktemp("model"))


def edit_config(source: Path, target: Path, **changes: object) -> Path:
    """A copy of a model folder with other values in config.json (None removes a key)."""
    shutil.copytree(source, target)
    config = json.loads((target / "config.json").read_text()) | changes
    kept = {name: value for name, value in config.items() if value is not None}
    (target / "config.json").write_text(json.dumps(kept))
    return target


def test_finds_a_model_folder_and_the_export_of_a_run(model_folder: Path, tmp_path: Path) -> None:
    assert find_model_folder(model_folder) == model_folder
    run = tmp_path / "run"
    shutil.copytree(model_folder, run / "hf")
    (run / "config.yaml").write_text("run: {name: run}\n")
    assert find_model_folder(run) == run / "hf"


def test_says_what_a_folder_is_not(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        find_model_folder(tmp_path / "missing")
    with pytest.raises(UserError, match="neither a Hugging Face model folder"):
        find_model_folder(tmp_path)
    (tmp_path / "config.yaml").write_text("run: {name: run}\n")
    with pytest.raises(UserError, match="no exported model yet"):
        find_model_folder(tmp_path)
    checkpoint = tmp_path / "checkpoints" / "step-00000002"
    checkpoint.mkdir(parents=True)
    (checkpoint / "state.json").write_text("{}")
    with pytest.raises(UserError, match="is a checkpoint; make a model folder of it"):
        find_model_folder(checkpoint)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"mdm": None}, "has no mdm section"),
        ({"mdm": {"logit_shift": False}}, "has no mdm.mask_token_id"),
        ({"mdm": {"mask_token_id": 1}}, "has no mdm.logit_shift"),
        (
            {"mdm": {"mask_token_id": True, "logit_shift": False}},
            "mdm.mask_token_id = True is not of type int",
        ),
        ({"mdm": {"mask_token_id": 320, "logit_shift": False}}, "is not below vocab_size = 320"),
        ({"is_causal": True}, "is_causal is True"),
        ({"is_causal": None}, "is_causal is None"),
    ],
)
def test_names_what_config_json_lacks(
    model_folder: Path, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        describe_model(edit_config(model_folder, tmp_path / "model", **changes))


@pytest.mark.parametrize("text", ["{", "[]"])
def test_names_a_damaged_config_json(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json: "):
        describe_model(tmp_path)


def test_loads_a_bidirectional_model(model_folder: Path) -> None:
    loaded = load_model(describe_model(model_folder))
    tokens = torch.arange(3, 11).repeat(2, 1).to(loaded.device)  # [2, 8]
    tokens[1, -1] = 20
    with torch.inference_mode():
        first = loaded.model(input_ids=tokens).logits[:, 0]
    assert not torch.allclose(first[0], first[1]), "the first position does not see the last"
    assert not loaded.model.training


def test_eos_is_the_tokenizers_and_all_that_the_config_names(model_folder: Path, tmp_path: Path) -> None:
    loaded = load_model(edit_config(model_folder, tmp_path / "model", eos_token_id=[7, 9]))
    assert loaded.eos_ids == {7, 9, loaded.tokenizer.eos_token_id}
    with pytest.raises(UserError, match="eos_token_id = 'x' is neither a token id"):
        load_model(edit_config(model_folder, tmp_path / "other", eos_token_id="x"))


def test_precision_is_the_saved_one_or_the_one_asked_for(model_folder: Path) -> None:
    assert load_model(model_folder).model.dtype is torch.float32
    assert load_model(model_folder, "bf16").model.dtype is torch.bfloat16
    with pytest.raises(UserError, match="dtype = 'fp8': choose one of fp32, bf16"):
        load_model(model_folder, "fp8")


@pytest.mark.parametrize(
    "name, message",
    [
        ("model.safetensors", "model cannot be loaded"),
        ("tokenizer.json", r"no tokenizer there, or a damaged one \(no tokenizer\.json\)"),
    ],
)
def test_names_missing_files(model_folder: Path, tmp_path: Path, name: str, message: str) -> None:
    folder = edit_config(model_folder, tmp_path / "model")
    (folder / name).unlink()
    with pytest.raises(UserError, match=message):
        load_model(describe_model(folder))


def test_refuses_weights_that_would_be_random(model_folder: Path, tmp_path: Path) -> None:
    folder = edit_config(model_folder, tmp_path / "model", num_hidden_layers=3)
    with pytest.raises(UserError, match=r"9 weights are missing, such as model\.layers\.2\."):
        load_model(describe_model(folder))
