"""Optimizer state and parameters on disk give the same runs, with ordinary checkpoints."""

import errno
import fcntl
import os
import shutil
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import tiny_values, train_all
from safetensors.torch import load_file

from mdmscale.config.run import RunConfig
from mdmscale.engine import nvme, private
from mdmscale.parallel.ranks import Ranks
from mdmscale.system.errors import UserError
from mdmscale.training.metrics import read_metrics
from mdmscale.training.trainer import train as train_run

swaps = pytest.mark.skipif(not private.can_swap(), reason="libaio's headers are not installed")
STEPS = 10
COMPILING = 1500  # seconds for the first job: DeepSpeed may compile its asynchronous I/O in it
LAYOUTS: dict[str, dict[str, Any]] = {
    "memory": {"zero_stage": 3, "offload_optimizer": "cpu"},
    "optimizer": {"zero_stage": 3, "offload_optimizer": "nvme"},
    "both": {"zero_stage": 3, "offload_optimizer": "nvme", "offload_parameters": "nvme"},
}
LAYOUTS["tensor"] = {**LAYOUTS["both"], "tensor": 2}


def values_of(corpus: Path, folder: Path, name: str, dtype: str, layout: str) -> dict[str, Any]:
    values = tiny_values(corpus, folder)
    values["run"]["name"] = name
    # Embeddings and head are 4 MiB each; each rank's halves are swapped, what is smaller stays in memory.
    values["model"] |= {"hidden_size": 128, "vocab_size": 8192, "tie_word_embeddings": False, "dtype": dtype}
    values["train"]["steps"] = STEPS
    values["checkpoint"] = {"every": STEPS // 2, "keep": 0}
    values["parallel"] = dict(LAYOUTS[layout])
    if layout != "memory":
        values["parallel"]["nvme_path"] = str(folder / "disk")
    return values


def losses(run: Path) -> np.ndarray:
    return np.array([record["loss"] for record in read_metrics(run)])


WHOLE = [
    ("fp32", "memory"),
    ("fp32", "optimizer"),
    ("bf16", "memory"),
    ("bf16", "optimizer"),
    ("bf16", "both"),
]
# How a run's first half is trained, and its second.
RESUMED = [
    ("fp32", "optimizer", "optimizer"),
    ("bf16", "both", "both"),
    ("fp32", "optimizer", "memory"),
    ("fp32", "memory", "optimizer"),
    ("bf16", "memory", "both"),
    ("bf16", "both", "tensor"),
]


@pytest.fixture(scope="module")
def runs(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every layout uninterrupted, and every pair of layouts: the second resumes the first half-way."""
    folder = tmp_path_factory.mktemp("nvme")
    whole = [values_of(corpus, folder, f"{dtype}-{layout}", dtype, layout) for dtype, layout in WHOLE]
    train_all(2, whole, timeout=COMPILING)
    second_halves = []
    for dtype, first, second in RESUMED:
        name = f"{dtype}-{first}-{second}"
        shutil.copytree(folder / f"{dtype}-{first}", folder / name)
        shutil.rmtree(folder / name / "checkpoints" / f"step-{STEPS:08d}")
        second_halves.append(values_of(corpus, folder, name, dtype, second))
    train_all(2, second_halves)
    return folder


def assert_same(run: Path, reference: Path, exactly: bool) -> None:
    assert len(losses(run)) == STEPS
    tolerance = 0.0 if exactly else 1e-5 if "fp32" in run.name else 1e-3
    np.testing.assert_allclose(losses(run), losses(reference), rtol=tolerance)
    weights, expected = (load_file(each / "hf" / "model.safetensors") for each in (run, reference))
    for name, weight in weights.items():
        distance = (weight.float() - expected[name].float()).abs().max()
        assert distance <= tolerance * 10, name  # steps are about lr = 3e-3


@swaps
@pytest.mark.slow
@pytest.mark.timeout(COMPILING + 500)
@pytest.mark.distributed
@pytest.mark.parametrize(("dtype", "layout"), [each for each in WHOLE if each[1] != "memory"])
def test_disks_change_nothing(runs: Path, dtype: str, layout: str) -> None:
    assert_same(runs / f"{dtype}-{layout}", runs / f"{dtype}-memory", exactly=True)


@swaps
@pytest.mark.slow
@pytest.mark.timeout(COMPILING + 500)
@pytest.mark.distributed
@pytest.mark.parametrize(("dtype", "first", "second"), RESUMED)
def test_runs_go_on(runs: Path, dtype: str, first: str, second: str) -> None:
    assert_same(runs / f"{dtype}-{first}-{second}", runs / f"{dtype}-{first}", exactly="tensor" not in second)


def assert_empty(disk: Path) -> None:
    """Ignores lock files, which are empty."""
    assert [each.name for each in disk.iterdir() if each.suffix != ".lock" or each.stat().st_size] == []


@swaps
@pytest.mark.slow
@pytest.mark.timeout(COMPILING + 500)
@pytest.mark.distributed
def test_nothing_is_left_on_the_disk(runs: Path) -> None:
    assert_empty(runs / "disk")


def config_with(corpus: Path, folder: Path, **parallel: Any) -> RunConfig:
    values = values_of(corpus, folder, "run", "bf16", "both")
    values["parallel"] |= parallel
    return RunConfig.model_validate(values)


@pytest.mark.parametrize(
    ("parallel", "message"),
    [
        (
            {"zero_stage": 2, "offload_parameters": "none"},
            "offload_optimizer = nvme needs zero_stage 3, not 2",
        ),
        ({"offload_optimizer": "cpu"}, "offload_parameters = nvme with offload_optimizer = cpu"),
        ({"nvme_path": None}, "nvme_path is not set"),
        ({"offload_optimizer": "none", "offload_parameters": "none"}, "nothing is offloaded to nvme"),
        ({"offload_optimizer": "disk"}, "Input should be 'none', 'cpu' or 'nvme'"),
    ],
)
def test_what_cannot_be_swapped_is_refused(
    corpus: Path, tmp_path: Path, parallel: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        config_with(corpus, tmp_path, **parallel)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"dtype": "fp32"}, "set model.dtype to bf16, not fp32"),
        ({"path": "folder", "lora": {}}, "checkpoints would lack the frozen model"),
    ],
)
def test_models_that_cannot_be_swapped_are_refused(
    corpus: Path, tmp_path: Path, model: dict[str, Any], message: str
) -> None:
    values = values_of(corpus, tmp_path, "run", "bf16", "both")
    values["model"] |= model
    with pytest.raises(ValueError, match=message):
        RunConfig.model_validate(values)


def test_a_disk_that_cannot_be_written_to_is_refused(corpus: Path, tmp_path: Path, ranks: Ranks) -> None:
    (tmp_path / "file").touch()
    config = config_with(corpus, tmp_path, nvme_path=str(tmp_path / "file"))
    with (
        pytest.raises(UserError, match=r"parallel.nvme_path = .*File exists"),
        nvme.own_folder(config, ranks),
    ):
        pass


def test_leftovers_of_a_killed_run_go(corpus: Path, tmp_path: Path, ranks: Ranks) -> None:
    """This includes files of a rank that no longer exists."""
    config = config_with(corpus, tmp_path)
    for rank in (0, 7):
        swapped = nvme.swap_folder(config, rank) / "zero_stage_3"
        swapped.mkdir(parents=True)
        (swapped / "leftover.swp").touch()
    with nvme.own_folder(config, ranks):
        assert list(nvme.swap_folder(config, 0).iterdir()) == []
        assert not nvme.swap_folder(config, 7).exists()


def test_nothing_is_left_by_a_run_that_cannot_start(corpus: Path, tmp_path: Path, ranks: Ranks) -> None:
    config = config_with(corpus, tmp_path)
    with pytest.raises(UserError), nvme.own_folder(config, ranks):
        raise UserError("the checkpoint is another model's")
    assert_empty(tmp_path / "disk")


@pytest.mark.parametrize("rank", [0, 8])
def test_a_run_that_trains_keeps_its_files_when_it_is_started_again(
    corpus: Path, tmp_path: Path, ranks: Ranks, rank: int
) -> None:
    """The second job is refused before it writes anything, whichever ranks the first has on this node."""
    config = config_with(corpus, tmp_path)
    with nvme.own_folder(config, replace(ranks, rank=rank)):
        file = nvme.swap_folder(config, rank) / "state.swp"
        file.touch()
        with pytest.raises(UserError, match="this run is already training on this node"):
            train_run(config)
        assert file.exists()
    assert not (tmp_path / "run").exists()
    assert_empty(tmp_path / "disk")


def test_a_run_trains_until_the_last_of_its_ranks_has_ended(
    corpus: Path, tmp_path: Path, ranks: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_with(corpus, tmp_path)
    with ExitStack() as second:
        with nvme.own_folder(config, ranks):
            monkeypatch.setenv("LOCAL_RANK", "1")
            second.enter_context(nvme.own_folder(config, replace(ranks, rank=1)))
            assert nvme.swap_folder(config, 0).is_dir() and nvme.swap_folder(config, 1).is_dir()
        monkeypatch.setenv("LOCAL_RANK", "0")
        with pytest.raises(UserError, match="already"), nvme.own_folder(config, ranks):
            pass
        assert nvme.swap_folder(config, 1).is_dir()
    with nvme.own_folder(config, ranks):
        pass
    assert_empty(tmp_path / "disk")


def test_another_nodes_files_on_a_shared_disk_stay(
    corpus: Path, tmp_path: Path, ranks: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This holds even if its locks are invisible here, as on some file systems."""
    config = config_with(corpus, tmp_path)
    monkeypatch.setattr("socket.gethostname", lambda: "other")
    file = nvme.swap_folder(config, 8) / "state.swp"
    file.parent.mkdir(parents=True)
    file.touch()
    monkeypatch.undo()
    with nvme.own_folder(config, ranks):
        pass
    assert file.exists()


def test_the_lock_is_one_that_nfs_grants(
    corpus: Path, tmp_path: Path, ranks: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes = []

    def flock(descriptor: int, operation: int) -> None:
        modes.append(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE)

    monkeypatch.setattr("fcntl.flock", flock)
    with nvme.own_folder(config_with(corpus, tmp_path), ranks):
        pass
    assert set(modes) == {os.O_RDWR}


@pytest.mark.parametrize("call", ["fcntl.flock", "shutil.rmtree", "pathlib.Path.mkdir"])
def test_what_fails_on_the_disk_is_named(
    corpus: Path, tmp_path: Path, ranks: Ranks, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """This includes a failed clean-up. Every rank raises the error."""

    def fail(*arguments: Any, ignore_errors: bool = False, **options: Any) -> None:
        if not ignore_errors:
            raise OSError(errno.EIO, "Input/output error")

    config = config_with(corpus, tmp_path)
    nvme.swap_folder(config, 0).mkdir(parents=True)
    (nvme.swap_folder(config, 0) / "leftover.swp").touch()
    monkeypatch.setattr(call, fail)
    with (
        pytest.raises(UserError, match=r"parallel.nvme_path = .*disk.*Input/output error"),
        nvme.own_folder(config, ranks),
    ):
        pass


def test_runs_of_one_name_have_folders_of_their_own(corpus: Path, tmp_path: Path) -> None:
    one, other = (config_with(corpus, tmp_path / name, nvme_path="/disk") for name in ("one", "other"))
    assert nvme.swap_folder(one, 0) != nvme.swap_folder(other, 0)
    assert nvme.swap_folder(one, 0) != nvme.swap_folder(one, 1)
