"""The convert command on model folders and on a real run that trained an imported model."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import renew_manifest
from conftest import WORKERS, run_ranks, run_script, tiny_values
from conversion.folders import (
    DREAM,
    LLADA,
    assert_same_bytes,
    dream_shapes,
    llada_shapes,
    make_arm,
    random_weights,
    read_weights,
    write_folder,
)

from mdmscale.conversion.convert_command import main
from mdmscale.conversion.stored_model import open_stored_model
from mdmscale.system.errors import UserError
from mdmscale.training.metrics import read_metrics

STEPS = 4


def inspected(capsys: pytest.CaptureFixture[str], path: Path) -> dict[str, Any]:
    assert main(["inspect", str(path), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture(scope="module")
def run(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real run that starts from an imported Qwen2 model with the corpus's tokenizer."""
    folder = tmp_path_factory.mktemp("runs")
    source = make_arm(folder / "qwen", "qwen2", vocab_size=512, tie_word_embeddings=True)
    for file in (corpus / "tokenizer").iterdir():
        shutil.copy(file, source)
    assert main(["import", str(source), str(folder / "ours"), "--mask-token", "<|mymask|>"]) == 0
    values = tiny_values(corpus, folder)
    values["model"] = {"path": str(folder / "ours"), "dtype": "fp32"}
    values["diffusion"] = {}
    values["train"] |= {"steps": STEPS, "ema_decay": 0.5}
    values["checkpoint"] = {"every": 2}
    (folder / "batch.json").write_text(json.dumps([values]))
    run_ranks(1, WORKERS / "train_many.py", str(folder / "batch.json"))
    return folder / "tiny"


@pytest.mark.distributed
def test_training_starts_from_an_import(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    losses = [record["loss"] for record in read_metrics(run) if "loss" in record]
    assert len(losses) == STEPS and losses[0] < 9, losses
    exported = json.loads((run / "hf" / "config.json").read_text())
    assert exported["mdm"]["mask_token_id"] == 512 and exported["mdm"]["logit_shift"] is True
    assert exported["mdm"]["arm"] == {"vocab_size": 512}, (
        "what the way back needs has passed through training"
    )


@pytest.mark.distributed
def test_inspecting_a_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = inspected(capsys, run)
    assert found["kind"] == "run" and found["checkpoints"] == [2, 4]
    newest = found["newest_checkpoint"]
    assert newest["ema_decay"] == 0.5
    assert (newest["step"], newest["world_size"], newest["zero_stage"]) == (4, 1, 1)
    assert (found["model"]["family"], found["model"]["architecture"]) == ("mdmscale", "qwen2")
    assert found["model"]["vocab_size"] == 576


@pytest.mark.distributed
def test_inspecting_a_checkpoint(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = tmp_path / "step-00000002"
    shutil.copytree(run / "checkpoints" / "step-00000002", checkpoint)
    shutil.copytree(
        run / "hf", checkpoint / "model", ignore=shutil.ignore_patterns("*.safetensors"), dirs_exist_ok=True
    )
    renew_manifest(checkpoint)
    found = inspected(capsys, checkpoint)
    assert (found["kind"], found["step"], found["mask_token_id"]) == ("checkpoint", 2, 512)
    assert found["parameters"] == sum(weight.numel() for weight in read_weights(run / "hf").values())
    (checkpoint / "state.json").write_text("{")
    with pytest.raises(UserError, match=r"state\.json has 1 bytes instead of"):
        main(["inspect", str(checkpoint)])


@pytest.mark.distributed
def test_exporting_a_run(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(run), str(tmp_path / "hf"), "--to", "hf"]) == 0
    assert_same_bytes(read_weights(tmp_path / "hf"), read_weights(run / "hf"))
    assert main(["export", str(run), str(tmp_path / "arm"), "--to", "arm"]) == 0
    arm = inspected(capsys, tmp_path / "arm") if capsys.readouterr() else {}
    assert (arm["family"], arm["vocab_size"], arm["mask_token_id"]) == ("arm", 512, None)
    with pytest.raises(UserError, match=r"--checkpoint 3: .* there are: 2, 4"):
        open_stored_model(run, 3)


@pytest.mark.distributed
def test_exporting_the_average_of_a_run(run: Path, tmp_path: Path) -> None:
    for name, source in (("run", run), ("checkpoint", run / "checkpoints" / "step-00000004")):
        main(["export", str(source), str(tmp_path / name), "--to", "hf", "--averaged"])
        assert_same_bytes(read_weights(tmp_path / name), read_weights(run / "hf_ema"))
    weights, average = read_weights(run / "hf"), read_weights(run / "hf_ema")
    assert all(not torch.equal(weight, average[name]) for name, weight in weights.items())
    with pytest.raises(
        UserError, match=r"--averaged: .*hf is a model folder; give a run folder or a checkpoint"
    ):
        main(["export", str(run / "hf"), str(tmp_path / "none"), "--to", "hf", "--averaged"])


def test_inspecting_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    llada = write_folder(tmp_path / "llada", LLADA, random_weights(llada_shapes(LLADA)))
    dream = write_folder(tmp_path / "dream", DREAM, random_weights(dream_shapes(DREAM)))
    arm = make_arm(tmp_path / "arm", "mistral")
    diffullama = make_arm(tmp_path / "DiffuLLaMA-7B", "llama")
    expected = {
        llada: ("llada", "llama", 97, False),
        dream: ("dream", "qwen2", 98, True),
        arm: ("arm", "mistral", None, None),
        diffullama: ("diffullama", "llama", 811, True),
    }
    for folder, values in expected.items():
        found = inspected(capsys, folder)
        names = ("family", "architecture", "mask_token_id", "logit_shift")
        assert tuple(found[name] for name in names) == values
        assert found["parameters"] == sum(weight.numel() for weight in read_weights(folder).values())
        assert found["bytes"] == 4 * found["parameters"] and found["dtype"] == "float32"
    assert main(["inspect", str(llada)]) == 0
    assert "21,920" in capsys.readouterr().out


def test_mistakes_end_with_one_line_and_status_2(tmp_path: Path) -> None:
    done = run_script("tools/convert.py", "inspect", str(tmp_path / "nowhere"))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: {tmp_path / 'nowhere'}: no such folder\n"


def test_more_mistakes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither a Hugging Face model folder"):
        main(["inspect", str(tmp_path)])
    arm = make_arm(tmp_path / "arm", "llama")
    with pytest.raises(UserError, match="has no mdm section"):
        main(["export", str(arm), str(tmp_path / "out"), "--to", "hf"])
    with pytest.raises(UserError, match=r"--checkpoint 3: .* is a model"):
        main(["export", str(arm), str(tmp_path / "out"), "--to", "hf", "--checkpoint", "3"])
    with pytest.raises(UserError, match=r"nowhere: no such folder$"):
        main(["import", str(tmp_path / "nowhere"), str(tmp_path / "out")])
    with pytest.raises(UserError, match=r"^owner/name: no such folder; if it is a hub id, run `hf download"):
        main(["import", "owner/name", str(tmp_path / "out")])
    (tmp_path / "new-run").mkdir()
    (tmp_path / "new-run" / "config.yaml").write_text("")
    with pytest.raises(UserError, match="has neither an exported model nor a checkpoint yet"):
        main(["export", str(tmp_path / "new-run"), str(tmp_path / "out"), "--to", "hf"])
    with pytest.raises(UserError, match=r"new-run: is a run of mdmscale; .*so export it"):
        main(["import", str(tmp_path / "new-run"), str(tmp_path / "out")])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["arm", "new-run"]
