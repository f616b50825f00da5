"""What `evaluate` takes for a model: runs, finished or not, checkpoints, folders and hub ids."""

import shutil
from pathlib import Path

import pytest
from conftest import tiny_values, train_all
from conversion.folders import assert_same_bytes, read_weights

from mdmscale.evaluate_command import MEASURES, build_parser, main, opened
from mdmscale.parallel.work_group import WorkGroup
from mdmscale.system.errors import UserError
from mdmscale.system.run_folder import RunFolder

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def run(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two steps, with a checkpoint of each."""
    values = tiny_values(corpus, tmp_path_factory.mktemp("runs"))
    values["train"]["steps"], values["optimizer"] = 2, {"lr": 1e-3}
    values["checkpoint"] = {"every": 1, "keep": 0}
    values["diffusion"] = {}
    train_all(1, [values])
    return Path(values["run"]["output_dir"]) / "tiny"


def test_a_finished_run_and_a_folder_are_opened_where_they_lie(run: Path) -> None:
    for path in (run, run / "hf"):
        with opened(str(path), None, WorkGroup()) as description:
            assert description.folder == run / "hf"


@pytest.mark.parametrize("with_output", [True, False])
def test_a_checkpoint_is_exported_for_as_long_as_it_is_measured(
    run: Path, with_output: bool, tmp_path: Path
) -> None:
    output = tmp_path / "results.json" if with_output else None
    with opened(str(RunFolder(run).checkpoint(2)), output, WorkGroup()) as description:
        folder = description.folder
        assert_same_bytes(read_weights(folder), read_weights(run / "hf"))
        assert (tmp_path in folder.parents) is with_output, "all ranks see the output's folder"
    assert not folder.exists() and not list(tmp_path.iterdir())


def test_an_unfinished_run_stands_for_its_newest_checkpoint(run: Path, tmp_path: Path) -> None:
    unfinished = tmp_path / "unfinished"
    shutil.copytree(run, unfinished, ignore=shutil.ignore_patterns("hf"))
    with opened(str(unfinished), None, WorkGroup()) as description:
        assert_same_bytes(read_weights(description.folder), read_weights(run / "hf"))


def test_what_is_no_model_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match="neither a Hugging Face model folder"):
        main(["likelihood", str(tmp_path), "--text", "a"])
    with pytest.raises(UserError, match=r"PATH = '\./nowhere': no such folder"):
        main(["likelihood", "./nowhere", "--text", "a"])
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="PATH = 'nobody/nothing': no such folder, and as a hub id"):
        main(["likelihood", "nobody/nothing", "--text", "a"])
    with pytest.raises(SystemExit, match="2"):
        main(["likelyhood", "."])
    assert "invalid choice: 'likelyhood'" in capsys.readouterr().err


@pytest.mark.parametrize("name", MEASURES)
def test_every_measure_explains_itself(name: str) -> None:
    text = build_parser(name).format_help()
    assert "example" in text and f"evaluate.py {name}" in text
