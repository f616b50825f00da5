"""The study command, end to end on a tiny model, and the input that it refuses.

Most tests train in this process: `start` of a run is replaced by a call of `train`.
"""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import run_script, tiny_values

from mdmscale.analysis.study import runs as study_runs
from mdmscale.analysis.study.study_command import main
from mdmscale.config.loading import load_config
from mdmscale.data.preparation.arithmetic import problems
from mdmscale.parallel.ranks import Ranks
from mdmscale.system.errors import UserError
from mdmscale.training.metrics import read_metrics
from mdmscale.training.trainer import train


@pytest.fixture
def files(corpus: Path, tmp_path: Path) -> list[str]:
    """The arguments that name files."""
    values = tiny_values(corpus, tmp_path)
    values["train"] |= {"steps": 6, "global_batch_size": 4}
    values["data"] = {"kind": "sft", "path": str(tmp_path / "train.jsonl"), "sequence_length": 32}
    values["optimizer"]["warmup_steps"] = 2
    (tmp_path / "config.yaml").write_text(json.dumps(values))
    for name, seed in (("train", 0), ("test", 1)):
        lines = [json.dumps({"prompt": p, "response": r}) for p, r in problems(40, 1, seed)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    return ["--config", str(tmp_path / "config.yaml"), "--output", str(tmp_path / "study")]


@pytest.fixture
def study(files: list[str], tmp_path: Path) -> list[str]:
    """The command's arguments."""
    return [*files, "--test", str(tmp_path / "test.jsonl")]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, ranks: Ranks) -> list[str]:
    """The names of runs that were trained, in this process."""
    names = []

    def start(run: Any, arguments: list[str], *_: Any) -> Any:
        names.append(run.name)
        config, *overrides = arguments[1:]
        train(load_config(config, overrides))
        return SimpleNamespace(poll=lambda: 0, returncode=0, terminate=lambda: None, wait=lambda: None)

    monkeypatch.setattr(study_runs, "start", start)
    monkeypatch.setattr(study_runs, "POLL_SECONDS", 0.0)
    return names


def results_of(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / "study" / "results.json").read_text())
    return values


def test_a_study_trains_scores_and_goes_on(
    study: list[str], started: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*study, "--seeds", "1,2", "--methods", "mirror,standard"]
    assert main(command) == 0
    output = capsys.readouterr().out
    assert started == ["standard-1", "control-1", "standard-2", "control-2", "mirror-1", "mirror-2"]
    early, late = output.index("Control: a batch of four"), output.index("mirror-1 is finished")
    assert early < late, "the control is told before other methods have trained"
    assert "Undecided: mirror, as 2 seeds" in output and "best seed of standard" in output
    values = results_of(tmp_path)
    found = [(each["method"], each["seed"], each["samples"]) for each in values["results"]]
    assert found == [
        *[("standard", 1, 48), ("standard", 2, 48), ("control", 1, 192), ("control", 2, 192)],
        *[("mirror", 1, 24), ("mirror", 2, 24)],
    ]
    assert all(0 <= each["accuracy"] <= 1 and np.isfinite(each["loss"]) for each in values["results"])
    assert len(json.loads((tmp_path / "study/runs/mirror-1/scores.json").read_text())["scores"]) == 40

    started.clear()
    assert main([*command, "--method", "slow: optimizer.lr=1e-4", "--methods", "standard,slow"]) == 0
    assert started == ["slow-1", "slow-2"], "finished runs are kept, and methods can be added"
    with pytest.raises(UserError, match=r"has runs of the method 'slow' with optimizer.lr=1e-4"):
        main([*command, "--method", "slow: optimizer.lr=1e-5", "--methods", "standard,slow"])
    with pytest.raises(UserError, match="holds a study of another config; choose another"):
        main([*command, "optimizer.lr=1e-4"])
    with pytest.raises(UserError, match="holds a study of another budget"):
        main([*command, "--budget", "equal-samples"])


def test_a_study_at_equal_time_on_a_task_with_methods_of_a_file(
    files: list[str], started: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An autoregressive method among them. A step of it takes a third of the reference's time."""
    pytest.importorskip("reasoning_gym")
    from mdmscale.analysis.study import timing

    def seconds(records: list[dict[str, Any]]) -> float:
        return 1.0 if started[-1] == "causal-0" else 3.0

    monkeypatch.setattr(timing, "seconds_per_step", seconds)
    (tmp_path / "methods.yaml").write_text(
        "base: {diffusion.t_sampler: p_pots}\ncausal: {diffusion: null, diffusion.objective: ar}\n".replace(
            "diffusion: null, ", "diffusion.t_sampler: uniform, diffusion.masking: bernoulli, "
        )
    )
    task = ["--task", "reasoning-gym:chain_sum", "--limit", "3", "--set", "length=8", "steps=4"]
    options = ["--methods-file", str(tmp_path / "methods.yaml"), "--budget", "equal-wall", "--no-control"]
    assert main([*files, *task, *options, "--seeds", "1"]) == 0
    assert started == ["base-0", "causal-0", "base-1", "causal-1"]
    values = results_of(tmp_path)
    assert [(each["method"], each["steps"], each["samples"]) for each in values["results"]] == [
        ("base", 6, 24),
        ("causal", 18, 72),
    ]
    assert values["what"] == "accuracy on reasoning-gym:chain_sum" and values["reference"] == "base"
    assert values["answer"].startswith("Undecided: a single seed")
    assert not (tmp_path / "study" / "timing" / "base-0").exists()


@pytest.mark.slow
def test_the_script_trains_in_processes_of_its_own(study: list[str], tmp_path: Path) -> None:
    options = ["--seeds", "1", "--methods", "standard,mirror", "--no-control", "--jobs", "2"]
    done = run_script("tools/stability_study.py", *study, *options, timeout=500)
    assert done.returncode == 0, done.stderr
    assert "2 of 2 runs" in done.stdout and "best seed of standard" in done.stdout
    samples = [
        read_metrics(tmp_path / "study" / "runs" / f"{name}-1")[-1]["consumed_samples"]
        for name in ("standard", "mirror")
    ]
    assert samples == [48, 24]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--jobs", "0"], "--jobs 0: must be at least 1"),
        (["--ranks", "0"], "--ranks 0: must be at least 1"),
        (["--seeds", "-1"], "--seeds -1: seeds are not negative"),
        (["--seeds", "1,1"], "--seeds 1,1: a seed is given twice"),
        (["--methods", "mirror,best"], "--methods best: choose from standard, clipped"),
        (["--method", "odd"], 'write "NAME: section.key=value section.key=value"'),
        (["--method", "odd: diffusion.masking=mirrored"], "method odd: .*'mirrored' is unknown"),
        (["--reference", "odd"], "--reference odd: choose from standard, clipped"),
        (["--limit", "5"], "--limit: goes with --task, not with --test"),
        (["--output", "README.md"], "--output README.md: is a file; choose a folder"),
        (["data.path=nowhere.jsonl"], "data.path = 'nowhere.jsonl': no such file"),
    ],
)
def test_senseless_options_are_refused(study: list[str], changes: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        main([*study, *changes])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--task", "gsm9k"], "gsm8k"),
        (["--task", "gsm8k", "--preset", "odd"], "odd"),
        (
            ["--task", "reasoning-gym:chain_sum", "--limit", "2", "--set", "length=8,16"],
            "a study has one setting",
        ),
    ],
)
def test_senseless_tasks_are_refused(files: list[str], options: list[str], message: str) -> None:
    pytest.importorskip("reasoning_gym")
    with pytest.raises(UserError, match=message):
        main([*files, *options])


def test_words_for_numbers_are_refused(study: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([*study, "--seeds", "1,x"])
    assert "argument --seeds: '1,x': write whole numbers, such as 42,731" in capsys.readouterr().err


def test_a_test_set_without_answers_is_refused(study: list[str], tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text('{"prompt": "1+1="}\n')
    with pytest.raises(UserError, match=r'test.jsonl:1: is no \{"prompt"'):
        main(study)
    assert not (tmp_path / "study").exists()


def test_a_run_that_fails_is_named(study: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    failed = SimpleNamespace(poll=lambda: 3, returncode=3, terminate=lambda: None, wait=lambda: None)
    stay: Callable[..., Any] = lambda *_: failed  # noqa: E731
    monkeypatch.setattr(study_runs, "start", stay)
    with pytest.raises(UserError, match=r"standard-42.log: this run failed \(exit status 3\)"):
        main([*study, "--methods", "standard"])
