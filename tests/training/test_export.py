"""The exported folder: opens in plain transformers, same for every ZeRO stage, complete or absent."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_values, train_all
from conversion.folders import assert_same_bytes, read_weights
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from mdmscale.config.model import ModelSection
from mdmscale.config.run import RunConfig
from mdmscale.conversion.exporting import ExportOptions, export_folder
from mdmscale.engine.engine import Engine, initialise_engine
from mdmscale.models.backbone import Backbone, build_backbone
from mdmscale.models.mdm import MaskedDiffusionModel
from mdmscale.parallel.batch_layout import make_layout
from mdmscale.parallel.ranks import Ranks
from mdmscale.system import folders
from mdmscale.system.errors import UserError
from mdmscale.training.export import export_model

STEPS = 5
MODELS: dict[str, dict[str, Any]] = {
    "tied": {},
    "untied": {"tie_word_embeddings": False, "logit_shift": True, "architecture": "qwen3"},
    "own_head": {},  # of a folder whose config.json says tied
}
STAGES = (0, 3)


@pytest.fixture(scope="module")
def runs(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs <model>-<stage> of a few steps on 2 ranks, all in one job."""
    folder = tmp_path_factory.mktemp("runs")
    batch = []
    models = MODELS | {"own_head": {"path": str(own_head(corpus, folder / "base")), "dtype": "fp32"}}
    for kind, model in models.items():
        for stage in STAGES:
            values = tiny_values(corpus, folder)
            values["run"]["name"] = f"{kind}-{stage}"
            values["model"] = model if "path" in model else values["model"] | model
            values["diffusion"] = {"masking": "mirror"}
            values["train"]["steps"] = STEPS
            values["parallel"] = {"zero_stage": stage}
            batch.append(values)
    train_all(2, batch)
    return folder


def own_head(corpus: Path, folder: Path) -> Path:
    """A model with a head of its own, whose config.json says that it is tied."""
    options = ModelSection(**tiny_values(corpus, folder)["model"] | {"tie_word_embeddings": False})
    backbone = build_backbone(options, eps=1e-3, seed=0)
    backbone.model.save_pretrained(folder)
    shutil.copytree(corpus / "tokenizer", folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    return folder


def exported(run: Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(run / "hf").state_dict()


@pytest.mark.distributed
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("kind", MODELS)
def test_plain_transformers_opens_it(runs: Path, corpus: Path, kind: str, stage: int) -> None:
    folder = runs / f"{kind}-{stage}" / "hf"
    model: Any
    info: Any
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)  # type: ignore[misc]
    assert not any(info[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokenizer, original = (
        AutoTokenizer.from_pretrained(folder),
        AutoTokenizer.from_pretrained(corpus / "tokenizer"),
    )
    text = "def add(a, b):\n    return a + b"
    assert tokenizer.encode(text) == original.encode(text)
    assert model.config.is_causal is False
    assert model.config.mdm["mask_token_id"] == tokenizer.mask_token_id
    assert model.config.mdm["logit_shift"] is (kind == "untied")
    for config in (model.config, model.generation_config):
        ids = (config.eos_token_id, config.bos_token_id, config.pad_token_id)
        assert ids == (tokenizer.eos_token_id, None, tokenizer.pad_token_id)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert tied is (kind == "tied")
    with torch.no_grad():
        assert torch.isfinite(model(torch.tensor([tokenizer.encode(text)])).logits).all()
    assert not list(folder.parent.glob(".unfinished*"))


@pytest.mark.distributed
@pytest.mark.parametrize("kind", MODELS)
def test_zero_stages_export_the_same_weights(runs: Path, kind: str) -> None:
    whole, sharded = (exported(runs / f"{kind}-{stage}") for stage in STAGES)
    assert whole.keys() == sharded.keys()
    for name, weight in whole.items():
        torch.testing.assert_close(sharded[name], weight, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.distributed
@pytest.mark.parametrize("kind", MODELS)
def test_the_weights_are_those_of_the_last_checkpoint(runs: Path, kind: str) -> None:
    engine = runs / f"{kind}-0" / "checkpoints" / f"step-{STEPS:08d}" / "engine"
    saved = torch.load(engine / "mp_rank_00_model_states.pt", weights_only=False)["module"]
    weights = {name.removeprefix("backbone."): weight for name, weight in saved.items()}
    model = exported(runs / f"{kind}-0")
    assert model.keys() == weights.keys()
    for name, weight in model.items():
        assert torch.equal(weight, weights[name]), name


@pytest.mark.distributed
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("kind", MODELS)
def test_a_checkpoint_exports_as_the_same_model(runs: Path, tmp_path: Path, kind: str, stage: int) -> None:
    run = runs / f"{kind}-{stage}"
    export_folder(run / "checkpoints" / f"step-{STEPS:08d}", tmp_path / "hf", ExportOptions(to="hf"))
    assert_same_bytes(read_weights(tmp_path / "hf"), read_weights(run / "hf"))
    after, before = (json.loads((each / "config.json").read_text()) for each in (tmp_path / "hf", run / "hf"))
    assert after == before


class FullDisk(PreTrainedTokenizerBase):
    """A tokenizer whose saving fails because the disk is full."""

    def save_pretrained(self, *arguments: Any, **options: Any) -> Any:
        raise OSError(28, "No space left on device")


@pytest.fixture
def backbone(tiny: dict[str, Any]) -> Backbone:
    return build_backbone(ModelSection(**tiny["model"]), eps=1e-3, seed=0)


@pytest.fixture
def engine(tiny: dict[str, Any], backbone: Backbone, ranks: Ranks) -> Engine:
    """The backbone in an engine that does not shard its parameters."""
    config = RunConfig.model_validate({**tiny, "parallel": {"zero_stage": 0}})
    model = MaskedDiffusionModel(backbone.model, None)
    return initialise_engine(model, config, make_layout(config, ranks.world_size), ranks)


def test_an_interrupted_export_leaves_no_folder(
    engine: Engine, backbone: Backbone, ranks: Ranks, tmp_path: Path
) -> None:
    interrupted = replace(backbone, tokenizer=FullDisk())
    with pytest.raises(UserError, match="No space left"):
        export_model(engine, interrupted, tmp_path / "hf", tmp_path / "adapter", ranks)
    assert not (tmp_path / "hf").exists()
    export_model(engine, backbone, tmp_path / "hf", tmp_path / "adapter", ranks)
    assert {path.name for path in tmp_path.iterdir() if not path.name.startswith("runs")} == {"hf"}
    assert torch.equal(exported(tmp_path)["lm_head.weight"], backbone.model.lm_head.weight)


def test_an_interrupted_export_keeps_the_one_before(
    engine: Engine, backbone: Backbone, ranks: Ranks, tmp_path: Path
) -> None:
    export_model(engine, backbone, tmp_path / "hf", tmp_path / "adapter", ranks)
    before = exported(tmp_path)
    with torch.no_grad():
        backbone.model.lm_head.weight.zero_()
    with pytest.raises(UserError, match="No space left"):
        export_model(
            engine, replace(backbone, tokenizer=FullDisk()), tmp_path / "hf", tmp_path / "adapter", ranks
        )
    assert torch.equal(exported(tmp_path)["lm_head.weight"], before["lm_head.weight"])
    export_model(engine, backbone, tmp_path / "hf", tmp_path / "adapter", ranks)
    assert exported(tmp_path)["lm_head.weight"].abs().max() == 0


def test_the_export_before_is_not_lost_where_the_new_one_cannot_take_its_name(
    engine: Engine, backbone: Backbone, ranks: Ranks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_model(engine, backbone, tmp_path / "hf", tmp_path / "adapter", ranks)
    before = exported(tmp_path)
    rename = Path.rename

    def refuse_the_new_one(path: Path, target: Path) -> Path:
        if path.name.startswith(".unfinished"):
            raise OSError("stale file handle")
        return rename(path, target)

    monkeypatch.setattr(folders, "_exchange", lambda *_: False)  # as where the file system cannot
    monkeypatch.setattr(Path, "rename", refuse_the_new_one)
    with torch.no_grad():
        backbone.model.lm_head.weight.zero_()
    with pytest.raises(OSError, match="stale"):
        export_model(engine, backbone, tmp_path / "hf", tmp_path / "adapter", ranks)
    assert torch.equal(exported(tmp_path)["lm_head.weight"], before["lm_head.weight"])
