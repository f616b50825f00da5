"""What is exported, inspected, measured or computed with has been checked against its sums."""

import shutil
from pathlib import Path

import pytest
from checkpoint_files import flip_bit
from conftest import kept_environment, tiny_values

from mdmscale.config.run import RunConfig
from mdmscale.conversion.convert_command import main
from mdmscale.evaluate_command import opened
from mdmscale.models.opening import load_weights
from mdmscale.parallel.work_group import WorkGroup
from mdmscale.system.errors import UserError
from mdmscale.system.sums import SUMS_FILE
from mdmscale.training.trainer import train


@pytest.fixture(scope="module")
def run(corpus: Path, tmp_path_factory: pytest.TempPathFactory, process_group: None) -> Path:
    """A finished run with checkpoints of steps 2 and 4."""
    values = tiny_values(corpus, tmp_path_factory.mktemp("runs"))
    values["train"]["steps"], values["diffusion"] = 4, {}
    values["checkpoint"] = {"every": 2}
    with kept_environment():
        return train(RunConfig.model_validate(values)).folder


@pytest.mark.parametrize(
    "file", ["engine/*optim_states.pt", "engine/*model_states.pt", "model/tokenizer.json", "state.json"]
)
def test_a_flipped_bit_of_a_checkpoint_is_neither_exported_nor_inspected(
    run: Path, tmp_path: Path, file: str
) -> None:
    """Nor is it measured: `evaluate` exports a checkpoint first."""
    damaged = tmp_path / "run"
    shutil.copytree(run, damaged, ignore=shutil.ignore_patterns("hf", "hf_ema"))
    (path,) = (damaged / "checkpoints" / "step-00000004").glob(file)
    flip_bit(path)
    expected = rf"{path} does not match its sha256; take another checkpoint of the run, or a copy"
    for command in (["export", str(damaged), str(tmp_path / "out"), "--to", "hf"], ["inspect", str(damaged)]):
        with pytest.raises(UserError, match=expected):
            main(command)
    with pytest.raises(UserError, match=expected), opened(str(damaged), None, WorkGroup()):
        raise AssertionError("not reached")
    assert not (tmp_path / "out").exists()
    assert main(["export", str(damaged), str(tmp_path / "out"), "--to", "hf", "--checkpoint", "2"]) == 0


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_flipped_bit_of_an_exported_model_is_refused(run: Path, tmp_path: Path, file: str) -> None:
    main(["export", str(run), str(tmp_path / "again"), "--to", "hf"])
    shutil.copytree(run / "hf", tmp_path / "hf")
    for folder in (tmp_path / "hf", tmp_path / "again"):
        if file == "config.json":  # which stays a model's
            (folder / file).write_text((folder / file).read_text() + "\n")
        else:
            flip_bit(folder / file)
        expected = rf"{folder / file}: does not match its sha256 in {SUMS_FILE}; get the folder anew"
        with pytest.raises(UserError, match=expected):
            main(["export", str(folder), str(tmp_path / "out"), "--to", "hf"])
        with pytest.raises(UserError, match=expected):
            load_weights(folder)
        (folder / SUMS_FILE).unlink()
        if file != "tokenizer.json":
            load_weights(folder)
