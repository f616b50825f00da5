"""Which model folders and run folders open, and how the others are refused."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from models.tiny_folder import write_model_folder
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

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
    folder = edit_config(model_folder, tmp_path / "model", eos_token_id=[310, 311])
    loaded = load_model(folder)  # rows without a token: they are no words
    assert loaded.eos_ids == {310, 311, loaded.tokenizer.eos_token_id}
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
        ("model.safetensors", "no weights there"),
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


def test_refuses_weights_that_would_be_left_out(model_folder: Path, tmp_path: Path) -> None:
    folder = edit_config(model_folder, tmp_path / "model", num_hidden_layers=1)
    with pytest.raises(UserError, match=r"9 weights are not known to the model, such as model\.layers\.1\."):
        load_model(describe_model(folder))
    edit_weights(folder, lambda weights: weights | {"score.weight": torch.zeros(2, 32)})
    with pytest.raises(UserError, match="10 weights are not known"):
        load_model(describe_model(folder))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    weights = change(load_file(folder / "model.safetensors"))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_head_of_its_own_stays_where_the_config_says_tied(model_folder: Path, tmp_path: Path) -> None:
    folder = edit_config(model_folder, tmp_path / "model", tie_word_embeddings=True)
    model = load_model(folder).model
    assert model.config.tie_word_embeddings is False
    model.save_pretrained(tmp_path / "again")
    saved = load_file(tmp_path / "again" / "model.safetensors")
    assert torch.equal(saved["lm_head.weight"], load_file(folder / "model.safetensors")["lm_head.weight"])


def test_an_equal_head_stays_tied(model_folder: Path, tmp_path: Path) -> None:
    folder = edit_config(model_folder, tmp_path / "model", tie_word_embeddings=True)
    edit_weights(
        folder, lambda weights: weights | {"lm_head.weight": weights["model.embed_tokens.weight"] + 0}
    )
    model = load_model(folder).model
    assert model.config.tie_word_embeddings is True
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_an_untied_model_without_a_head_is_refused(model_folder: Path, tmp_path: Path) -> None:
    folder = edit_config(model_folder, tmp_path / "model")
    edit_weights(folder, lambda weights: {n: each for n, each in weights.items() if n != "lm_head.weight"})
    with pytest.raises(UserError, match=r"1 weights are missing, such as lm_head\.weight"):
        load_model(folder)


def test_an_adapter_beside_the_weights_is_refused(model_folder: Path, tmp_path: Path) -> None:
    folder = edit_config(model_folder, tmp_path / "model")
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "models/base"}')
    with pytest.raises(UserError, match=r"adapter_config\.json: a LoRA adapter lies beside .* export FOLDER"):
        load_model(folder)
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match="is a LoRA adapter for 'models/base' without that model"):
        find_model_folder(folder)


def cast(weights: dict[str, torch.Tensor], name: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return weights | {name: weights[name].to(dtype)}


def test_quantised_weights_are_refused_by_name(model_folder: Path, tmp_path: Path) -> None:
    gptq = {"quant_method": "gptq", "bits": 4}
    folder = edit_config(model_folder, tmp_path / "entry", quantization_config=gptq)
    with pytest.raises(UserError, match=r"config\.json: quantization_config \(gptq\): quantised weights"):
        load_model(folder)
    folder = edit_config(model_folder, tmp_path / "file")
    (folder / "quant_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"quant_config\.json: quantised weights"):
        load_model(folder)
    for dtype in (torch.int8, torch.float8_e4m3fn):
        folder = edit_config(model_folder, tmp_path / str(dtype))
        edit_weights(folder, partial(cast, name="model.layers.0.mlp.up_proj.weight", dtype=dtype))
        with pytest.raises(UserError, match=rf"up_proj\.weight has the dtype {str(dtype)[6:]}"):
            load_model(folder)


def test_a_stale_index_is_ignored_as_transformers_does(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = edit_config(model_folder, tmp_path / "model")
    stale = {name: torch.zeros_like(each) for name, each in load_file(folder / "model.safetensors").items()}
    save_file(stale, folder / "model-00001-of-00001.safetensors", metadata={"format": "pt"})
    weight_map = dict.fromkeys(stale, "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    ids = torch.arange(3, 11)[None]
    with torch.inference_mode():
        expected = AutoModelForCausalLM.from_pretrained(folder)(ids).logits
        ours = load_model(folder)
        assert (
            torch.equal(ours.model(ids.to(ours.device)).logits.cpu(), expected) and expected.abs().max() > 0
        )
    assert "model.safetensors.index.json is ignored" in capsys.readouterr().err
