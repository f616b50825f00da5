"""Resuming is refused where it would be another model, and tells every other change."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import kept_environment, tiny_values

from mdmscale.config.loading import dump_config
from mdmscale.config.run import RunConfig
from mdmscale.models.backbone import build_backbone
from mdmscale.parallel.ranks import Ranks
from mdmscale.system.errors import UserError
from mdmscale.system.run_folder import RunFolder
from mdmscale.system.sums import SUMS_FILE
from mdmscale.training.identity import changes_since, check_model, model_identity
from mdmscale.training.setup import set_up
from mdmscale.training.state import TrainingState
from mdmscale.training.trainer import train

Values = dict[str, Any]


def with_keys(values: Values, **sections: Values) -> Values:
    return {**values, **{name: {**values.get(name, {}), **keys} for name, keys in sections.items()}}


@pytest.fixture(scope="module")
def trained(corpus: Path, tmp_path_factory: pytest.TempPathFactory, process_group: None) -> Iterator[Values]:
    """The config of a run with a checkpoint of step 2. It started from the export of another run.

    Beside it: another model of the same shape, the same one in another place, one whose positions rotate in
    another way, and the tokenizer with two ids swapped.
    """
    folder = tmp_path_factory.mktemp("runs")
    scratch = with_keys(tiny_values(corpus, folder), train={"steps": 2}, optimizer={"warmup_steps": 0})
    scratch["diffusion"] = {}
    with kept_environment():
        for name, seed in (("base", 3), ("other", 4)):
            train(RunConfig.model_validate(with_keys(scratch, run={"name": name, "seed": seed})))
        values = {**scratch, "model": {"path": str(folder / "base" / "hf"), "dtype": "fp32"}}
        train(RunConfig.model_validate(values))
    shutil.copytree(folder / "base" / "hf", folder / "moved")
    shutil.copytree(folder / "base" / "hf", folder / "turned")
    shutil.copytree(folder / "base" / "hf", folder / "swapped")
    for changed in ("turned", "swapped"):
        (folder / changed / SUMS_FILE).unlink()
    config = json.loads((folder / "turned" / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] = 5e5
    (folder / "turned" / "config.json").write_text(json.dumps(config))
    tokenizer = json.loads((folder / "swapped" / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    (folder / "swapped" / "tokenizer.json").write_text(json.dumps(tokenizer))
    yield values


def start_again(values: Values, ranks: Ranks, **sections: Values) -> None:
    set_up(RunConfig.model_validate(with_keys(values, **sections)), ranks)


def model_keys(values: Values, change: str) -> tuple[Values, list[str]]:
    """The `model` keys of a change, and the parts of its refusal."""
    folder = Path(values["run"]["output_dir"])
    scratch = tiny_values(folder, folder)["model"] | {"tokenizer": str(folder / "moved")}
    base = folder / "base" / "hf"
    changes: dict[str, tuple[Values, list[str]]] = {
        "shift": ({"logit_shift": True}, ["model.logit_shift = True", "trained with False"]),
        "mask": ({"mask_token_id": 7}, ["model.mask_token_id = 7", "trained with "]),
        "tokenizer": (
            {"tokenizer": str(folder / "swapped")},
            [f"model.tokenizer: '{folder / 'swapped'}' has other token ids", f"'{base}'"],
        ),
        "weights": (
            {"path": str(folder / "other" / "hf")},
            [f"model.path = {folder / 'other' / 'hf'} does not hold the weights of {base}"],
        ),
        "scratch": ({**scratch, "path": None}, ["model.path = null does not hold the weights of"]),
        "rotation": (
            {"path": str(folder / "turned")},
            [f"{folder / 'turned'}/config.json: rope_parameters", "500000", "10000"],
        ),
    }
    return changes[change]


@pytest.mark.parametrize("change", ["shift", "mask", "tokenizer", "weights", "scratch", "rotation"])
def test_another_model_is_refused_by_option_value_and_mend(
    trained: Values, ranks: Ranks, change: str
) -> None:
    keys, parts = model_keys(trained, change)
    folder = RunFolder(Path(trained["run"]["output_dir"], "tiny"))
    before = folder.config.read_bytes()
    with pytest.raises(UserError) as refused:
        start_again(trained, ranks, model=keys)
    (problem,) = refused.value.problems
    for part in [*parts, str(folder.checkpoint(2)), "choose another run.name to start from scratch"]:
        assert part in problem
    assert folder.config.read_bytes() == before


def test_a_change_of_shape_is_refused_by_its_option(trained: Values, ranks: Ranks, corpus: Path) -> None:
    """DeepSpeed would fail on it with a traceback."""
    scratch = with_keys(
        tiny_values(corpus, Path(trained["run"]["output_dir"])), run={"name": "base"}, train={"steps": 2}
    )
    scratch["diffusion"] = {}
    scratch["optimizer"] = {"lr": 3e-3}
    with pytest.raises(UserError) as refused:
        start_again(scratch, ranks, model={"hidden_size": 48, "rope_theta": 5e5})
    wide, turned = sorted(each for each in refused.value.problems if "hidden" in each or "rope" in each)
    assert "model.hidden_size = 48, but checkpoint" in wide and "trained with 32" in wide
    assert turned.startswith("model.rope_theta = ")


def test_what_may_change_is_told_key_by_key(
    trained: Values, ranks: Ranks, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model folder may have moved."""
    folder = Path(trained["run"]["output_dir"])
    start_again(trained, ranks)
    assert "changed since then" not in capsys.readouterr().out
    start_again(
        trained,
        ranks,
        model={"path": str(folder / "moved")},
        train={"steps": 3, "micro_batch_size": 2},
        optimizer={"lr": 1e-4},
        diffusion={"isad": {"tokens": [7], "delta": 0.2}},
    )
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert [line.removeprefix("changed since then: ") for line in lines if "changed since then" in line] == [
        f"model.path: {folder / 'base' / 'hf'} -> {folder / 'moved'}",
        "diffusion.isad: null -> {'tokens': [7], 'delta': 0.2}",
        "train.steps: 2 -> 3",
        "train.micro_batch_size: 4 -> 2",
        "optimizer.lr: 0.003 -> 0.0001",
    ]


def test_a_checkpoint_of_an_older_format_is_compared_with_its_files(trained: Values, tmp_path: Path) -> None:
    checkpoint = RunFolder(tmp_path / "old").checkpoint(2)
    shutil.copytree(RunFolder(Path(trained["run"]["output_dir"], "tiny")).checkpoint(2), checkpoint)
    text = dump_config(RunConfig.model_validate(trained)).replace("  window:", "  clip: null\n  window:")
    (tmp_path / "old" / "config.yaml").write_text(text)  # with a key that this version no longer has
    old = replace(TrainingState.read(checkpoint), model=None, config=None)
    config = RunConfig.model_validate(with_keys(trained, optimizer={"lr": 1e-4}))
    backbone = build_backbone(config.model, 1e-3, 0)
    identity = model_identity(backbone, config.model.path)
    check_model(old, checkpoint, identity, backbone)
    assert changes_since(old, checkpoint, config, identity) == ["optimizer.lr: 0.003 -> 0.0001"]
    assert changes_since(old, Path("elsewhere/checkpoints/step-2"), config, identity) == []
    with pytest.raises(UserError, match=r"model\.logit_shift = True"):
        check_model(old, checkpoint, {**identity, "logit_shift": True}, backbone)
    with pytest.raises(UserError, match="hidden_size = 33"):
        other = {**identity, "config": {**identity["config"], "hidden_size": 33}}
        check_model(old, checkpoint, other, backbone)


def test_a_run_that_weighed_by_rate_when_there_was_no_choice_is_told_of_counts(trained: Values) -> None:
    checkpoint = RunFolder(Path(trained["run"]["output_dir"], "tiny")).checkpoint(2)
    state = TrainingState.read(checkpoint)
    assert state.config is not None and state.model is not None
    diffusion = {name: value for name, value in state.config["diffusion"].items() if name != "weights"}
    old = replace(state, config={**state.config, "diffusion": diffusion})
    for weights, expected in ((None, ["diffusion.weights: rate, the only"]), ("rate", [])):
        config = RunConfig.model_validate(with_keys(trained, diffusion={"weights": weights}))
        changes = changes_since(old, checkpoint, config, state.model)
        assert [change[: len("diffusion.weights: rate, the only")] for change in changes] == expected


def test_weights_that_were_replaced_in_place_are_told(trained: Values) -> None:
    checkpoint = RunFolder(Path(trained["run"]["output_dir"], "tiny")).checkpoint(2)
    state, config = TrainingState.read(checkpoint), RunConfig.model_validate(trained)
    assert state.model is not None and state.model["weights"]
    (change,) = changes_since(state, checkpoint, config, {**state.model, "weights": "other"})
    assert change.startswith(f"the weights in {config.model.path};")
