"""The study command, end to end on a tiny model, and the input that it refuses."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import run_script, tiny_values

from mdmscale.analysis.study.methods import METHODS, method_overrides
from mdmscale.config.loading import load_config
from mdmscale.config.run import RunConfig
from mdmscale.data.preparation.arithmetic import problems
from mdmscale.training.metrics import read_metrics


@pytest.fixture
def study(corpus: Path, tmp_path: Path) -> list[str]:
    """The command's arguments."""
    values = tiny_values(corpus, tmp_path)
    values["train"] |= {"steps": 6, "global_batch_size": 4}
    values["data"] = {"kind": "sft", "path": str(tmp_path / "train.jsonl"), "sequence_length": 32}
    values["optimizer"]["warmup_steps"] = 2
    (tmp_path / "config.yaml").write_text(json.dumps(values))
    for name, seed in (("train", 0), ("test", 1)):
        lines = [json.dumps({"prompt": p, "response": r}) for p, r in problems(40, 1, seed)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    files = ["--config", str(tmp_path / "config.yaml"), "--test", str(tmp_path / "test.jsonl")]
    return [*files, "--output", str(tmp_path / "study")]


@pytest.mark.parametrize("method", METHODS)
def test_methods_have_equal_rows(tiny: dict[str, Any], method: str, tmp_path: Path) -> None:
    base = RunConfig.model_validate(copy.deepcopy(tiny))
    (tmp_path / "config.yaml").write_text(json.dumps(tiny))
    config = load_config(tmp_path / "config.yaml", method_overrides(base, method))
    assert (
        config.diffusion.rows_per_sample * config.train.global_batch_size == 2 * base.train.global_batch_size
    )
    assert config.diffusion.rows_per_sample * config.train.micro_batch_size == 2 * base.train.micro_batch_size
    assert config.diffusion.t_sampler == METHODS[method]["t_sampler"]


@pytest.mark.slow
def test_a_study_trains_scores_and_goes_on(study: list[str], tmp_path: Path) -> None:
    command = ["tools/stability_study.py", *study, "--seeds", "1,2", "--methods", "standard,mirror"]
    first = run_script(*command, "--jobs", "2", timeout=500)
    assert first.returncode == 0, first.stderr
    assert "4 of 4 runs" in first.stdout and "best seed of standard" in first.stdout
    values = json.loads((tmp_path / "study" / "results.json").read_text())["results"]
    assert [(each["method"], each["seed"]) for each in values] == [
        ("standard", 1),
        ("standard", 2),
        ("mirror", 1),
        ("mirror", 2),
    ]
    assert all(0 <= each["accuracy"] <= 1 and np.isfinite(each["loss"]) for each in values)
    folders = {name: tmp_path / "study" / "runs" / name for name in ("standard-1", "mirror-1")}
    samples = {name: read_metrics(folder)[-1]["consumed_samples"] for name, folder in folders.items()}
    assert samples == {"standard-1": 48, "mirror-1": 24}

    modified = (folders["mirror-1"] / "metrics.jsonl").stat().st_mtime_ns
    again = run_script(*command)
    assert again.returncode == 0, again.stderr
    assert (folders["mirror-1"] / "metrics.jsonl").stat().st_mtime_ns == modified, "finished runs are kept"

    other = run_script(*command, "optimizer.lr=1e-4")
    assert other.returncode == 2
    assert "holds a study of another config" in other.stderr


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["diffusion.masking=bernoulli"], "a study's batch sizes count pairs, so give mirror"),
        (["--jobs", "0"], "--jobs 0: must be at least 1"),
        (["--seeds", "-1"], "--seeds -1: seeds are not negative"),
        (["--methods", "mirror,best"], "--methods best: choose from standard, clipped"),
        (["--seeds", "1,x"], "argument --seeds: '1,x': write whole numbers, such as 42,731"),
        (["--output", "README.md"], "--output README.md: is a file; choose a folder"),
        (["data.path=nowhere.jsonl"], "data.path = 'nowhere.jsonl': no such file"),
    ],
)
def test_senseless_options_are_refused(study: list[str], changes: list[str], message: str) -> None:
    done = run_script("tools/stability_study.py", *study, *changes)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_test_set_without_answers_is_refused(study: list[str], tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text('{"prompt": "1+1="}\n')
    done = run_script("tools/stability_study.py", *study)
    assert done.returncode == 2
    assert 'test.jsonl:1: is no {"prompt"' in done.stderr
    assert not (tmp_path / "study").exists()


@pytest.mark.slow
def test_a_run_that_fails_is_named(study: list[str], tmp_path: Path) -> None:
    done = run_script(
        "tools/stability_study.py", *study, "--methods", "mirror", "data.sequence_length=2", timeout=300
    )
    assert done.returncode == 2
    assert "mirror-42.log: this run failed" in done.stderr or "mirror-731.log" in done.stderr
