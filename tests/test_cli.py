"""The training command as users see it: refused input and messages, the plan, and how a run ends."""

import copy
import json
import math
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, SHIPPED, WORKERS, kill_group, run_script, tiny_values, without_ranks
from workers.forked import Job

from mdmscale.analysis.planning.dry_run import smallest_num_ranks
from mdmscale.config.keys import describe_keys
from mdmscale.config.run import RunConfig
from mdmscale.data.indexed import IndexedWriter, token_dtype
from mdmscale.parallel.batch_layout import make_layout
from mdmscale.system import errors
from mdmscale.system.errors import UserError
from mdmscale.train_command import main as train_main

LAUNCHER = ROOT / "launchers" / "train.py"
Values = dict[str, Any]
Mistake = Callable[[Values, Path], list[str]]


# What a user may get wrong: each spoils `values`, or files in `folder`, and returns more arguments.


def misspelled_key(values: Values, folder: Path) -> list[str]:
    values["train"]["stepz"] = values["train"].pop("steps")
    return ["train.steps=5"]


def wrong_type(values: Values, folder: Path) -> list[str]:
    values["model"]["hidden_size"] = "wide"
    return []


def indivisible_batch(values: Values, folder: Path) -> list[str]:
    return ["train.global_batch_size=9"]


def missing_data(values: Values, folder: Path) -> list[str]:
    return [f"data.path={folder}/nowhere"]


def path_without_config_json(values: Values, folder: Path) -> list[str]:
    (folder / "bare").mkdir()
    return [f"model.path={folder}/bare"]


def missing_config_file(values: Values, folder: Path) -> list[str]:
    return ["--config", str(folder / "nowhere.yaml")]


def bad_override(values: Values, folder: Path) -> list[str]:
    return ["train.steps"]


def ranks_of_a_run(values: Values, folder: Path) -> list[str]:
    return ["--ranks", "2"]


def folder_without_shards(values: Values, folder: Path) -> list[str]:
    (folder / "empty").mkdir()
    return [f"data.path={folder}/empty"]


def empty_shard(values: Values, folder: Path) -> list[str]:
    with IndexedWriter(folder / "hollow", token_dtype(512)):
        pass
    return [f"data.path={folder}/hollow"]


def token_beyond_the_vocabulary(values: Values, folder: Path) -> list[str]:
    with IndexedWriter(folder / "foreign", token_dtype(1000)) as writer:
        for _ in range(4):
            writer.add_document(np.arange(100) + 480)
    return [f"data.path={folder}/foreign"]


def unreadable_jsonl_line(values: Values, folder: Path) -> list[str]:
    good = json.dumps({"prompt": "1+1=", "response": "2"})
    (folder / "pairs.jsonl").write_text(f"{good}\n{good}\n{good[:-5]}\n{good}\n")
    values["data"] = {"kind": "sft", "path": str(folder / "pairs.jsonl"), "sequence_length": 32}
    return []


def path_that_does_not_exist(values: Values, folder: Path) -> list[str]:
    return [f"model.path={folder}/nowhere"]


def tokenizer_that_does_not_exist(values: Values, folder: Path) -> list[str]:
    return ["model.tokenizer=./x"]


def mistyped_override(values: Values, folder: Path) -> list[str]:
    return ["train.stepz=1e3"]


def output_in_a_file(values: Values, folder: Path) -> list[str]:
    (folder / "file").touch()
    return [f"run.output_dir={folder}/file"]


def run_folder_as_a_checkpoint(values: Values, folder: Path) -> list[str]:
    (folder / "run" / "checkpoints" / "step-00000003").mkdir(parents=True)
    return [f"checkpoint.resume={folder}/run"]


def run_folder_as_a_config(values: Values, folder: Path) -> list[str]:
    (folder / "run").mkdir()
    (folder / "run" / "config.yaml").touch()
    return ["--config", str(folder / "run")]


NEEDS_NO_TORCH: dict[Mistake, list[str]] = {
    misspelled_key: ["train.stepz: unknown key; did you mean train.steps?"],
    wrong_type: ["model.hidden_size = 'wide'"],
    indivisible_batch: ["global_batch_size = 9 is not a multiple of", "micro_batch_size = 4"],
    missing_data: ["data.path = '{folder}/nowhere': no such shard, file or folder"],
    path_without_config_json: ["model.path = '{folder}/bare'", "config.json"],
    missing_config_file: ["--config {folder}/nowhere.yaml: no such file"],
    bad_override: ["override 'train.steps': write section.key=value"],
    ranks_of_a_run: ["--ranks N", "needs --dry-run"],
    folder_without_shards: ["data.path = '{folder}/empty': no .idx in this folder"],
    path_that_does_not_exist: ["model.path = '{folder}/nowhere': no such folder"],
    tokenizer_that_does_not_exist: ["model.tokenizer = './x': no such folder"],
    mistyped_override: [
        "error: override 'train.stepz=1e3': train.stepz: unknown key; did you mean train.steps?"
    ],
    output_in_a_file: ["run.output_dir = '{folder}/file': {folder}/file is not a folder"],
    run_folder_as_a_checkpoint: ["checkpoint.resume = '{folder}/run': holds checkpoints", "/step-00000003"],
    run_folder_as_a_config: ["--config {folder}/run: is a folder; give {folder}/run/config.yaml"],
}
NEEDS_TORCH: dict[Mistake, list[str]] = {
    empty_shard: ["{folder}/hollow.bin: holds no tokens"],
    token_beyond_the_vocabulary: ["{folder}/foreign.bin: token id 579 is outside", "vocabulary of 512"],
    unreadable_jsonl_line: ["{folder}/pairs.jsonl:3: not JSON"],
}


@pytest.fixture(scope="module")
def outcomes(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Values, Path]]:
    """The command's result and the folder of its files for each mistake. All mistakes share one launch."""
    folders, commands = [], []
    for mistake in (*NEEDS_NO_TORCH, *NEEDS_TORCH):
        folder = tmp_path_factory.mktemp(name_of(mistake))
        values = copy.deepcopy(tiny_values(corpus, folder / "runs"))
        more = mistake(values, folder)
        folders.append(folder)
        commands.append(["--config", write(folder / "config.yaml", values), *more])
    several = tmp_path_factory.mktemp("several")
    listing = write(several / "commands.json", [["--help"], ["--keys"], [], *commands])
    command = [sys.executable, str(WORKERS / "command_many.py"), listing]  # a fork has torch from the start
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    names = ("help", "keys", "no_config", *map(name_of, (*NEEDS_NO_TORCH, *NEEDS_TORCH)))
    places = [several, several, several, *folders]
    printed = json.loads(result.stdout.splitlines()[-1])
    return {name: (outcome, place) for name, outcome, place in zip(names, printed, places, strict=True)}


def name_of(mistake: Mistake) -> str:
    return mistake.__name__


def write(path: Path, values: Any) -> str:
    path.write_text(json.dumps(values))  # JSON is YAML
    return str(path)


def the_error(stderr: str) -> str:
    """The only line of stderr with `error: `."""
    assert "Traceback" not in stderr
    errors = [line for line in stderr.splitlines() if "error: " in line]
    assert len(errors) == 1, stderr
    return errors[0]


@pytest.mark.parametrize("mistake", [*NEEDS_NO_TORCH, *NEEDS_TORCH], ids=name_of)
def test_a_mistake_is_named_in_one_line_and_nothing_is_written(
    outcomes: dict[str, tuple[Values, Path]], mistake: Mistake
) -> None:
    outcome, folder = outcomes[name_of(mistake)]
    error = the_error(outcome["stderr"])
    for message in {**NEEDS_NO_TORCH, **NEEDS_TORCH}[mistake]:
        assert message.format(folder=folder) in error
    assert outcome["status"] == 2
    assert not (folder / "runs").exists()


def test_errors_that_need_no_torch_come_without_it(outcomes: dict[str, tuple[Values, Path]]) -> None:
    torch_free = ("help", "keys", *map(name_of, NEEDS_NO_TORCH))
    assert not any(outcomes[name][0]["imported_torch"] for name in torch_free)
    assert outcomes["empty_shard"][0]["imported_torch"], "the worker must be able to tell"


def test_help_keys_and_a_missing_config(outcomes: dict[str, tuple[Values, Path]]) -> None:
    help_, keys, no_config = (outcomes[name][0] for name in ("help", "keys", "no_config"))
    assert help_["status"] == keys["status"] == 0
    for word in ("--config", "--dry-run", "--ranks", "--keys", "section.key=value", "deepspeed --num_gpus 2"):
        assert word in help_["stdout"]
    listed = " ".join(keys["stdout"].split())  # long meanings are wrapped
    for key in describe_keys():
        default = "required" if key.default is None else f"default: {key.default}"
        assert f"{key.name}: {key.values} ({default}) {key.meaning}" in listed
    assert "t_sampler: uniform | stratified | low_discrepancy | p_pots (" in keys["stdout"]
    assert no_config["status"] == 2
    assert "--config FILE is required" in the_error(no_config["stderr"])


def test_all_problems_are_reported_by_the_launcher(tiny: Values, tmp_path: Path) -> None:
    tiny["train"]["stepz"] = 5
    tiny["optimizer"]["lr"] = -1.0
    tiny["model"]["head_dim"] = "four"
    result = run_script(str(LAUNCHER), "--config", write(tmp_path / "config.yaml", tiny))
    errors = result.stderr.splitlines()
    assert result.returncode == 2
    assert len(errors) == 3 and all(line.startswith("error: ") for line in errors), result.stderr
    for key, error in zip(("model.head_dim", "train.stepz", "optimizer.lr"), errors, strict=True):
        assert key in error
    assert not (tmp_path / "runs").exists()


def test_every_missing_path_is_reported(tiny: Values, tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    tiny["model"]["path"] = str(tmp_path / "bare")
    tiny["data"]["path"] = [str(tmp_path / "one"), tiny["data"]["path"], str(tmp_path / "two")]
    with pytest.raises(UserError) as caught:
        train_main(["--config", write(tmp_path / "config.yaml", tiny)])
    first, second, third = caught.value.problems
    assert "one" in first and "two" in second and "bare" in third


@pytest.mark.parametrize("is_given", [True, False], ids=["given ranks", "assumed ranks"])
@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_config_is_planned(
    path: Path,
    is_given: bool,
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """This works in an empty folder: the plan needs the tokenizer only if it decides the vocabulary size.

    Then the input is checked, and all that is wrong with it is that it is not there.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    more = [f"model.tokenizer={corpus}/tokenizer"] if path.stem == "quickstart" else []
    header = re.search(r"--gpus (\d+)", path.read_text(encoding="utf-8"))  # in the header's plan
    meant_for = (header[1] if header else "2") if is_given else None
    given = [] if meant_for is None else ["--ranks", meant_for]
    with pytest.raises(UserError) as caught:
        train_main(["--config", str(path), *more, "--dry-run", *given])
    missing = [problem.partition(" = ")[0] for problem in caught.value.problems]
    assert set(missing) <= {"data.path", "model.path", "model.tokenizer"} and "data.path" in missing
    assert all(": no such " in problem for problem in caught.value.problems)
    plan = capsys.readouterr().out
    assumed = re.search(r"^assumed: (\d+) ranks?, the smallest number that", plan, re.MULTILINE)
    assert (assumed is None) == is_given, "a number that nobody gave is named"
    ranks = meant_for or (assumed[1] if assumed else "")
    assert f"name: {path.stem}\n" in plan
    numbers = re.search(r"│ +(\d+) │ +(\d+) │ +(\d+) │ +([\d,]+) │", plan)
    assert numbers, plan
    data_ranks, micro, accumulation, global_batch = (int(each.replace(",", "")) for each in numbers.groups())
    assert data_ranks * micro * accumulation == global_batch
    sharing = [int(size) for size in re.findall(r"^  (?:tensor|sequence): (\d+)$", plan, re.MULTILINE)]
    assert data_ranks * math.prod(sharing) == int(ranks)
    assert re.search(r"^model: [\d,]{6,} parameters", plan, re.MULTILINE)
    memory = re.search(r"memory a rank.*GiB", plan)
    assert memory and all(word in plan for word in ("weights", "gradients", "optimizer", "activations"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("parallel", "ranks"),
    [
        ({}, 1),
        ({"tensor": 2}, 2),
        ({"tensor": 2, "sequence": 2}, 4),
        ({"zero_stage": 3, "hpz_partition_size": 4}, 4),
        ({"zero_stage": 3, "hpz_partition_size": 4, "sequence": 2}, 4),
    ],
)
def test_the_smallest_number_of_ranks_is_the_first_with_a_layout(
    tiny: Values, parallel: Values, ranks: int
) -> None:
    tiny["train"]["global_batch_size"] = 16
    config = RunConfig.model_validate(tiny | {"parallel": parallel})
    assert smallest_num_ranks(config) == ranks
    make_layout(config, ranks)
    for fewer in range(1, ranks):
        with pytest.raises(UserError, match="does not divide"):
            make_layout(config, fewer)


def test_a_launcher_s_ranks_are_planned(
    tiny: Values,
    write_config: Callable[[Values], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert train_main(["--config", str(write_config(tiny)), "--dry-run"]) == 0
    plan = capsys.readouterr().out
    assert "assumed" not in plan and re.search(r"│ +2 │", plan)


def test_a_plan_for_ranks_that_do_not_divide_is_refused(
    tiny: Values, write_config: Callable[[Values], Path]
) -> None:
    with pytest.raises(UserError, match="not a multiple of 3 ranks"):
        train_main(["--config", str(write_config(tiny)), "--dry-run", "--ranks", "3"])


def run_deepspeed(*arguments: str, timeout: float = 400) -> tuple[int, str]:
    """Start the launcher on 2 local ranks as a user does. Returns its status and output."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    folder = Path(sys.executable).parent
    launcher = shutil.which("deepspeed", path=str(folder))
    assert launcher, f"no deepspeed in {folder}"
    ours = without_ranks()
    process = subprocess.Popen(
        [launcher, "--num_gpus", "2", "--master_port", port, str(LAUNCHER), *arguments],
        cwd=ROOT,
        env={**ours, "PATH": f"{folder}:{ours['PATH']}", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=timeout)
    finally:
        kill_group(process)
    return process.returncode, output


@pytest.mark.distributed
def test_the_deepspeed_launcher_trains_to_the_end(tiny: Values, tmp_path: Path) -> None:
    tiny["train"]["steps"] = 4
    tiny["optimizer"]["warmup_steps"] = 0
    tiny["diffusion"] = {"masking": "mirror"}
    status, output = run_deepspeed("--config", write(tmp_path / "config.yaml", tiny))
    assert status == 0, output
    folder = tmp_path / "runs" / "tiny"
    ours = output[output.index(f"{folder}: ") :].splitlines()
    assert not any(word in output for word in ("MA ", "CPU Virtual Memory", "built successfully"))
    assert not any(line.startswith("[") and "launch.py" not in line for line in ours), "lines of DeepSpeed"
    for rank in (0, 1):
        assert "built successfully" in (folder / "logs" / f"deepspeed-{rank}.log").read_text()
    assert "2 ranks" in output
    assert output.count("finished at step 4 of 4: 4 steps in") == 1, "the summary comes once, from rank 0"
    assert f"run folder  {folder}" in output
    assert (folder / "hf" / "model.safetensors").is_file()
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 4


@pytest.mark.distributed
def test_a_port_in_use_is_named(tiny: Values, tmp_path: Path) -> None:
    """As under the deepspeed launcher, whose rank 0 opens the port of --master_port."""
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = str(other.getsockname()[1])
        launched = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
        command = [str(LAUNCHER), "--config", write(tmp_path / "config.yaml", tiny)]
        environment = {**without_ranks(), **launched, "MASTER_PORT": port}
        job = Job(command, 0, ROOT, environment, join_output=False)
        try:
            job.wait(200)
        finally:
            job.kill()
    error = the_error(job.stderr)
    assert error.startswith(f"error: MASTER_PORT = {port}: another process of this machine listens there")
    assert "--master_port" in error and "--master-port" in error
    assert job.returncode == 2 and not (tmp_path / "runs").exists()


@pytest.mark.distributed
def test_under_the_deepspeed_launcher_a_mistake_is_one_line_in_all(tiny: Values, tmp_path: Path) -> None:
    more = token_beyond_the_vocabulary(tiny, tmp_path)
    status, output = run_deepspeed("--config", write(tmp_path / "config.yaml", tiny), *more)
    assert status == 2, output
    assert the_error(output).startswith(f"error: {tmp_path}/foreign.bin: token id 579")
    assert not (tmp_path / "runs").exists()


def test_other_ranks_let_the_first_speak_before_they_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The launcher kills all ranks when one exits, so without the wait rank 0 may not print its line."""

    def fail() -> int:
        raise UserError("a problem")

    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(errors, "SECONDS_FOR_RANK_0", 0.2)
    started = time.monotonic()
    assert errors.run_command(fail) == 2
    assert time.monotonic() - started >= 0.2
    assert capsys.readouterr().err == "error: a problem (on rank 1)\n"
