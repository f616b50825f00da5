"""Runs trained before the package was restructured: the numbers are the same, and old run folders open.

`tests/fixtures/before.json` has the losses, p(t) and norms of 20 fp32 steps of configs/quickstart.yaml and
configs/tiny_sft.yaml on small data, on 1 and 2 ranks, ZeRO 0 and 3. `before.tar.gz` has the data, and a run
folder in the previous checkpoint format (ZeRO 2 on 2 ranks, stopped at step 10 of 14). Current runs are
bit-identical to them on the machine that made them. The test allows a tolerance that other processors meet.
"""

import json
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, run_script, train_all

from mdmscale.config.loading import load_config
from mdmscale.system.run_folder import RunFolder
from mdmscale.training.metrics import read_metrics

FIXTURES = ROOT / "tests" / "fixtures"
EXPECTED: dict[str, Any] = json.loads((FIXTURES / "before.json").read_text())
SMALL = [
    "train.steps=20",
    "optimizer.warmup_steps=5",
    "logging.tensorboard=false",
    "eval.every=10",
    "eval.samples=8",
    "checkpoint.every=0",
    "diffusion.masking=mirror",  # with which the fixture was made, as with what follows
    "diffusion.weights=rate",
    "diffusion.p_pots.refit_every=7",
    "diffusion.p_pots.probe_steps=[0,12]",
    "diffusion.p_pots.num_x0=2",
    "diffusion.p_pots.num_masks=2",
    "model.hidden_size=32",
    "model.num_hidden_layers=2",
    "model.vocab_size=320",
]
DATA: dict[str, Callable[[Path], list[str]]] = {
    "quickstart": lambda folder: [
        f"model.tokenizer={folder}/tokenizer",
        f"data.path={folder}/shards",
        "data.sequence_length=32",
        "optimizer.lr=3e-3",
        "train.global_batch_size=4",
        "train.micro_batch_size=2",
    ],
    "tiny_sft": lambda folder: [f"model.path={folder}/base", f"data.path={folder}/sums.jsonl"],
}
CONTINUED = [
    "train.steps=14",
    "checkpoint.every=10",
    "checkpoint.keep=0",
    "train.global_batch_size=8",
    "train.micro_batch_size=4",
    "diffusion.p_pots.probe_steps=[0]",
    "diffusion.p_pots.refit_every=4",
]


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("before")
    with tarfile.open(FIXTURES / "before.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return folder


def values_of(config: str, folder: Path, name: str, *others: str) -> dict[str, Any]:
    run = [f"run.name={name}", f"run.output_dir={folder}/runs"]
    overrides = [*SMALL, *DATA[config](folder), *run, *others]
    return load_config(ROOT / "configs" / f"{config}.yaml", overrides).model_dump()


@pytest.fixture(scope="module")
def trained(before: Path) -> Path:
    for num_ranks in (1, 2):
        batch = [
            values_of(config, before, f"{config}-{num_ranks}-{stage}", f"parallel.zero_stage={stage}")
            for config in DATA
            for stage in (0, 3)
        ]
        train_all(num_ranks, batch)
    return before


@pytest.mark.distributed
@pytest.mark.parametrize("name", EXPECTED["runs"])
def test_the_same_numbers(trained: Path, name: str) -> None:
    records, expected = read_metrics(trained / "runs" / name), EXPECTED["runs"][name]
    for key in ("loss", "loss_controlled", "grad_norm"):
        assert [record[key] for record in records] == pytest.approx(expected[key], rel=1e-5), key
    evaluated = [record["eval_loss"] for record in records if "eval_loss" in record]
    assert evaluated == pytest.approx(expected["eval_loss"], rel=1e-5)
    densities = [record["p_of_t"]["density"] for record in records if "p_of_t" in record]
    assert len(densities) == len(expected["p_of_t"]) == 4
    for density, wanted in zip(densities, expected["p_of_t"], strict=True):
        assert density == pytest.approx(wanted, rel=1e-3)  # fitted to five digits of the statistics


@pytest.mark.distributed
def test_a_run_of_the_format_before_goes_on_as_it_would_have(before: Path) -> None:
    shutil.copytree(before / "runs" / "old", before / "runs" / "copy")
    output = train_all(2, [values_of("tiny_sft", before, "copy", "parallel.zero_stage=2", *CONTINUED)])
    warnings = re.findall("warning.*", output)
    assert "step-00000010" in output
    assert len(warnings) == 1 and "skipped_steps" in warnings[0], "which it had no state of"
    records = read_metrics(before / "runs" / "copy")
    assert len(records) == len(EXPECTED["continued"]) == 14
    for record, expected in zip(records[10:], EXPECTED["continued"][10:], strict=True):
        for key in ("loss", "loss_controlled", "grad_norm"):
            assert record[key] == pytest.approx(expected[key], rel=1e-5), (record["step"], key)


def test_a_run_folder_of_before_is_inspected_exported_and_sampled_from(before: Path, tmp_path: Path) -> None:
    run = RunFolder(before / "runs" / "old")
    inspected = run_script("tools/convert.py", "inspect", str(run.path), "--json")
    facts = json.loads(inspected.stdout)
    assert facts["checkpoints"] == [10] and facts["newest_checkpoint"]["world_size"] == 2
    assert facts["newest_checkpoint"]["components"] == ["baseline", "p_pots"]
    checkpoint = str(run.checkpoint(10))
    exported = run_script("tools/convert.py", "export", checkpoint, str(tmp_path / "hf"), "--to", "hf")
    assert exported.returncode == 0, exported.stderr
    for model in (run.path, tmp_path / "hf"):
        sampled = run_script("tools/generate.py", str(model), "--prompt", "3+4=", "--length", "4")
        assert sampled.returncode == 0, sampled.stderr
