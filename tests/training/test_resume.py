"""Interrupted runs: killed, damaged and stopped on request; and runs that may not be resumed."""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import (
    ROOT,
    WORKERS,
    kill_group,
    launch_ranks,
    run_ranks,
    run_script,
    start_ranks,
    start_script,
    tiny_values,
)

from mdmscale.training.metrics import read_metrics

pytestmark = pytest.mark.distributed

LAUNCHER = ROOT / "launchers" / "train.py"
STEPS = 30


def write(path: Path, values: dict[str, Any]) -> str:
    path.write_text(json.dumps(values))  # JSON is YAML
    return str(path)


def losses(folder: Path) -> list[tuple[Any, ...]]:
    keys = (
        *("step", "loss", "loss_controlled", "p_of_t", "eval_loss", "eval_loss_ema"),
        *("grad_norm", "clipped", "grad_norm_variation"),
    )
    return [tuple(record.get(key) for key in keys) for record in read_metrics(folder)]


@pytest.fixture(scope="module")
def whole(
    corpus: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int], tuple[dict[str, Any], Path]]:
    """The config values and the run folder of an uninterrupted run on 2 ranks, for a ZeRO stage."""
    done: dict[int, tuple[dict[str, Any], Path]] = {}

    def get(stage: int) -> tuple[dict[str, Any], Path]:
        if stage not in done:
            folder = tmp_path_factory.mktemp(f"whole{stage}")
            values = tiny_values(corpus, folder)
            values["train"] |= {"steps": STEPS, "ema_decay": 0.9}
            values["eval"] = {"every": 7, "samples": 4, "num_t": 2}
            values["diffusion"]["p_pots"]["refit_every"] = 7  # from sums that a checkpoint must keep
            values["parallel"] = {"zero_stage": stage}
            values["checkpoint"] = {"every": 5, "keep": 0}
            run_ranks(2, LAUNCHER, "--config", write(folder / "config.yaml", values))
            done[stage] = values, folder / "tiny"
        return done[stage]

    return get


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_killed_run_ends_bitwise_like_the_uninterrupted_one(
    whole: Callable[[int], tuple[dict[str, Any], Path]], tmp_path: Path, stage: int
) -> None:
    values, reference = whole(stage)
    config = write(
        tmp_path / "config.yaml", {**values, "run": {**values["run"], "output_dir": str(tmp_path)}}
    )
    job = start_ranks(2, LAUNCHER, "--config", config)
    try:
        wait_for(tmp_path / "tiny" / "checkpoints" / "step-00000010", job)
    finally:
        job.kill()
    assert not (tmp_path / "tiny" / "hf").exists(), "the run ended before it was killed"

    output = run_ranks(2, LAUNCHER, "--config", config)
    assert "continuing from" in output
    assert losses(tmp_path / "tiny") == losses(reference)
    assert len(losses(reference)) == STEPS
    own, average = (
        [(run / each / "model.safetensors").read_bytes() for run in (tmp_path / "tiny", reference)]
        for each in ("hf", "hf_ema")
    )
    assert own[0] == own[1] != average[0] == average[1]


def wait_for(path: Path, process: Any, seconds: float = 120) -> None:
    def is_there() -> bool:
        assert path.exists() or process.poll() is None, output_of(process)
        return path.exists()

    wait_until(is_there, str(path), seconds)


def output_of(process: Any) -> str:
    """The output of a forked job so far, or of a launched process that has ended."""
    return process.stdout if isinstance(process.stdout, str) else process.stdout.read()


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited for {what} in vain"
        time.sleep(0.01)


@pytest.fixture
def copied(
    whole: Callable[[int], tuple[dict[str, Any], Path]], tmp_path: Path
) -> tuple[dict[str, Any], Path]:
    """A ZeRO-1 run with only its checkpoints of steps 20 and 25, for a test to damage."""
    values, reference = whole(1)
    folder = tmp_path / "tiny"
    shutil.copytree(reference, folder, ignore=shutil.ignore_patterns("hf", "step-00000030", "step-0000000*"))
    for step in (10, 15):
        shutil.rmtree(folder / "checkpoints" / f"step-{step:08d}")
    return {**values, "run": {**values["run"], "output_dir": str(tmp_path)}}, folder


def damage(kind: str, checkpoint: Path) -> Path:
    shard = next((checkpoint / "engine").glob("*optim_states.pt"))
    match kind:
        case "flipped bit":
            data = bytearray(shard.read_bytes())
            data[len(data) // 2] ^= 1
            shard.write_bytes(data)
        case "truncated":
            shard.write_bytes(shard.read_bytes()[:-100])
        case "missing":
            shard.unlink()
        case "manifest":
            shard = checkpoint / "manifest.json"
            shard.write_text(shard.read_text()[:50])
    return shard


@pytest.mark.parametrize("kind", ["flipped bit", "truncated", "missing", "manifest"])
def test_damaged_checkpoint_is_named_and_the_one_before_it_taken(
    copied: tuple[dict[str, Any], Path], tmp_path: Path, kind: str, whole: Any
) -> None:
    values, folder = copied
    damaged = damage(kind, folder / "checkpoints" / "step-00000025")
    (folder / "checkpoints" / ".unfinished-step-00000030").mkdir()
    output = run_ranks(2, LAUNCHER, "--config", write(tmp_path / "config.yaml", values))
    assert "is skipped" in output
    assert damaged.name in output
    assert "continuing from" in output and "step-00000020" in output
    assert losses(folder) == losses(whole(1)[1])
    assert not list((folder / "checkpoints").glob(".unfinished*"))


def test_stop_is_a_checkpoint_and_the_same_command_goes_on(
    whole: Callable[[int], tuple[dict[str, Any], Path]], tmp_path: Path
) -> None:
    values, reference = whole(1)
    values = {**values, "run": {**values["run"], "output_dir": str(tmp_path)}, "checkpoint": {"every": 0}}
    values["data"] = {**values["data"], "num_workers": 1}  # which the reference did without
    config = write(tmp_path / "config.yaml", values)
    job = start_ranks(2, LAUNCHER, "--config", config)
    try:
        wait_for(tmp_path / "tiny" / "metrics.jsonl", job)
        (tmp_path / "tiny" / "stop").touch()
        status = job.wait(120)
    finally:
        job.kill()
    assert status == 75 and "stopped on request at step" in job.stdout, job.stdout
    assert len(losses(tmp_path / "tiny")) < STEPS
    run_ranks(2, LAUNCHER, "--config", config)
    assert losses(tmp_path / "tiny") == losses(reference)


def test_a_stop_file_that_is_made_during_set_up_counts(tiny: dict[str, Any], tmp_path: Path) -> None:
    config = write(tmp_path / "config.yaml", tiny)
    folder = tmp_path / "runs" / "tiny"
    folder.mkdir(parents=True)
    (folder / "stop").touch()  # of an earlier run
    done = run_script(str(WORKERS / "stop_in_set_up.py"), "--config", config)
    assert done.returncode == 75, done.stderr
    assert len(losses(folder)) == 1 and (folder / "checkpoints" / "step-00000001").is_dir()


def test_signal_stops_with_a_checkpoint(tiny: dict[str, Any], tmp_path: Path) -> None:
    tiny["train"]["steps"] = 100_000
    config = write(tmp_path / "config.yaml", tiny)
    process = launch_ranks(1, LAUNCHER, "--config", config)
    folder = tmp_path / "runs" / "tiny"
    try:
        wait_for(folder / "metrics.jsonl", process)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=120)
    finally:
        kill_group(process)
    assert "stopped on request at step" in output
    assert len(list((folder / "checkpoints").glob("step-*"))) == 1


def test_a_second_start_in_the_folder_is_refused_on_every_rank(tiny: dict[str, Any], tmp_path: Path) -> None:
    """It names the first one, which trains on undisturbed and frees the folder when it ends."""
    tiny["train"]["steps"] = 100_000
    tiny["logging"]["every"] = 1
    config, folder = write(tmp_path / "config.yaml", tiny), tmp_path / "runs" / "tiny"
    first = start_script(str(LAUNCHER), "--config", config)
    try:
        wait_for(folder / "metrics.jsonl", first)
        holder = json.loads((folder / "lock").read_text())
        second = start_ranks(2, LAUNCHER, "--config", config, "checkpoint.every=1")
        try:
            assert second.wait(120) == 2, second.stdout
        finally:
            second.kill()
        (error,) = (line for line in second.stdout.splitlines() if line.startswith("error: "))
        assert f"{folder}: process {holder['pid']} on {holder['host']}, since {holder['since']}" in error
        assert first.poll() is None and not (folder / "checkpoints").exists()
        (folder / "stop").touch()
        assert first.wait(120) == 75, first.stderr
    finally:
        first.kill()
    assert not (folder / "lock").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR1])
def test_a_signal_to_all_processes_stops_with_a_checkpoint(
    tiny: dict[str, Any], tmp_path: Path, number: signal.Signals
) -> None:
    """Ctrl-C and scancel signal the worker that makes batches, too. No process may remain."""
    tiny["train"]["steps"] = 100_000
    tiny["data"]["num_workers"] = 1
    tiny["diffusion"] = {"masking": "mirror"}
    tiny["logging"]["every"] = 1
    job = start_script(str(LAUNCHER), "--config", write(tmp_path / "config.yaml", tiny))
    folder = tmp_path / "runs" / "tiny"
    try:
        wait_for(folder / "metrics.jsonl", job)
        wait_until(lambda: (folder / "metrics.jsonl").stat().st_size > 0, "a step")
        os.killpg(job.pid, number)
        status = job.wait(120)
        wait_until(lambda: not is_alive(job.pid), "the end of all processes")
    finally:
        job.kill()
    assert status == 75, job.stderr
    assert "stopped on request at step" in job.stdout
    assert len(list((folder / "checkpoints").glob("step-*"))) == 1


def is_alive(group: int) -> bool:
    """Whether any process of the group still runs."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
def test_a_signal_in_any_phase_loses_nothing(corpus: Path, tmp_path: Path) -> None:
    """The signal comes in forward, backward, save or evaluation. The run saves a checkpoint and resumes."""
    phases, names = ["forward", "backward", "save", "evaluation"], {}
    for phase in [*phases, "none"]:
        values = tiny_values(corpus, tmp_path)
        values["run"]["name"] = phase
        values["train"] |= {"micro_batch_size": 8}
        values["eval"] = {"every": 8, "samples": 2, "num_t": 2}
        values["checkpoint"] = {"every": 8}
        names[phase] = write(tmp_path / f"{phase}.yaml", values)
    (tmp_path / "phases.json").write_text(json.dumps([[phase, names[phase]] for phase in phases]))
    output = run_script(str(WORKERS / "signal_phases.py"), str(tmp_path / "phases.json"))
    assert output.returncode == 0, output.stderr
    assert json.loads(output.stdout.splitlines()[-1]) == [[75, 0]] * len(phases), output.stdout
    assert run_script(str(LAUNCHER), "--config", names["none"]).returncode == 0
    weights = {phase: (tmp_path / phase / "hf" / "model.safetensors").read_bytes() for phase in names}
    for phase in phases:
        assert losses(tmp_path / phase) == losses(tmp_path / "none"), phase
        assert weights[phase] == weights["none"], phase


@pytest.fixture(scope="module")
def alone(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The config file and the run folder of a finished ZeRO-1 run on 1 rank."""
    folder = tmp_path_factory.mktemp("alone")
    config = write(folder / "config.yaml", tiny_values(corpus, folder))
    run_ranks(1, LAUNCHER, "--config", config)
    return config, folder / "tiny"


def files_in(folder: Path) -> dict[Path, int]:
    """Every file with its modification time, and every folder."""
    return {path: path.stat().st_mtime_ns if path.is_file() else 0 for path in folder.rglob("*")}


def check_refusal(config: str, folder: Path, overrides: list[str], messages: list[str]) -> None:
    """On one rank: status 2, one line with the messages, and nothing written."""
    before = files_in(folder.parent)
    result = run_script(str(LAUNCHER), "--config", config, *overrides)
    assert result.returncode == 2, result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, result.stderr
    assert "Traceback" not in result.stderr
    for message in messages:
        assert message in errors[0]
    assert files_in(folder.parent) == before


@pytest.mark.parametrize(
    ("overrides", "messages"),
    [
        (["run.seed=4"], ["run.seed = 4", "was trained with 3"]),
        (["train.global_batch_size=4"], ["train.global_batch_size = 4", "was trained with 8"]),
        (["data.sequence_length=16"], ["is not what checkpoint", "was trained on"]),
        (["checkpoint.resume=none"], ["already holds checkpoints"]),
        (["run.name=new", "checkpoint.resume=/no/step-1"], ["resume = '/no/step-1'", "no such folder"]),
    ],
    ids=["seed", "batch", "data", "none", "path"],
)
def test_what_cannot_continue_is_refused_in_one_line(
    alone: tuple[str, Path], overrides: list[str], messages: list[str]
) -> None:
    check_refusal(*alone, overrides, messages)


def test_other_sft_data_are_refused_and_not_left_encoded(alone: tuple[str, Path], tmp_path: Path) -> None:
    """The new data must be encoded to be compared. The encoded files are removed again."""
    lines = [json.dumps({"prompt": f"{n}+1=", "response": str(n + 1)}) for n in range(40)]
    (tmp_path / "sums.jsonl").write_text("\n".join(lines))
    overrides = ["data.kind=sft", f"data.path={tmp_path / 'sums.jsonl'}"]
    check_refusal(*alone, overrides, ["sums", "is not what checkpoint"])


def test_a_finished_run_is_left_as_it_is(tiny: dict[str, Any], tmp_path: Path) -> None:
    config = write(tmp_path / "config.yaml", tiny)
    run_ranks(1, LAUNCHER, "--config", config)
    before = losses(tmp_path / "runs" / "tiny")
    assert "already finished at step 20 of 20" in run_ranks(1, LAUNCHER, "--config", config)
    assert losses(tmp_path / "runs" / "tiny") == before


def test_old_checkpoints_are_dropped(tiny: dict[str, Any], tmp_path: Path) -> None:
    tiny["checkpoint"] = {"every": 5, "keep": 2}
    run_ranks(1, LAUNCHER, "--config", write(tmp_path / "config.yaml", tiny))
    names = sorted(path.name for path in (tmp_path / "runs" / "tiny" / "checkpoints").iterdir())
    assert names == ["step-00000015", "step-00000020"]
