"""The plan command: its output as tables and JSON, and the mistakes that it reports."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from analysis.planning.conftest import SMALL
from conftest import ROOT

from mdmscale.analysis.planning.dry_run import print_dry_run
from mdmscale.analysis.planning.plan_command import main, parse_tokens
from mdmscale.system.errors import UserError

LLADA = ["--config", str(ROOT / "configs" / "8b_mirror.yaml")]


def test_a_plan_names_every_part(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*LLADA, "--gpus", "16", "--gpu", "h100-80g", "--tokens", "3B"]) == 0
    text = capsys.readouterr().out
    for word in ("weights", "gradients", "optimizer", "activations", "head", "buffers", "fits:", "step"):
        assert word in text
    for word in ("tokens/s", "MFU", "ndr400", "P-POTS: 1 probe of 160 forwards", "GPU-hours", "suggested:"):
        assert word in text
    assert "22,888 steps, 3B tokens on 16 h100-80g" in " ".join(text.split())


def test_json_says_the_same_and_the_scan_reaches_4096_gpus(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = [
        "--gpus",
        "8",
        "--json",
        "--figure",
        str(tmp_path / "cost.png"),
        "train.global_batch_size=4096",
    ]
    assert main([*LLADA, *arguments]) == 0
    found = json.loads(capsys.readouterr().out)
    plan, memory = found["plan"], found["plan"]["memory"]
    parts = ("weights", "gradients", "optimizer", "activations", "head", "buffers")
    assert sum(memory[part] for part in parts) <= memory["peak"] < memory["needed"]
    assert plan["tokens_per_second"] == pytest.approx(plan["tokens_per_step"] / plan["step_seconds"])
    assert plan["gpu_hours"] == pytest.approx(plan["days"] * 24 * 8)
    assert [each["num_gpus"] for each in found["scan"]] == [2**power for power in range(1, 13)]
    assert all(each["fits"] for each in found["scan"])
    assert (tmp_path / "cost.png").read_bytes().startswith(b"\x89PNG")


def test_what_does_not_fit_says_so_and_ends_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*LLADA, "--gpus", "2", "--gpu", "rtx4090"]) == 1
    text = capsys.readouterr().out
    assert "DOES NOT FIT" in text and "no layout of this batch fits these GPUs" in text


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--gpus", "8", "--gpu", "h100"], "--gpu h100: not known; choose from a100-40g, a100-80g, h100-80g"),
        (["--gpus", "8", "--network", "wifi"], "--network wifi: not known; choose from ndr400"),
        (["--gpus", "0"], "--gpus 0: must be at least 1"),
        (["--gpus", "12"], "--gpus 12: no multiple of 8, a node's; give --nodes, or 8 GPUs"),
        (["--gpus", "12", "--nodes", "5"], "--nodes 5: does not divide --gpus 12"),
        (["--gpus", "8", "--tokens", "many"], "--tokens many: write a number of tokens, such as 300B"),
        (["--gpus", "8", "parallel.tensor=3"], "8 ranks are no multiple of parallel.tensor = 3"),
        (["--gpus", "6", "parallel.tensor=3"], "does not divide the model's num_attention_heads = 32"),
        (["--gpus", "128"], "train.global_batch_size = 64 is not a multiple of 128 ranks"),
        (["--gpus", "128"], "on 128 GPUs this would do: train.micro_batch_size=1 parallel.zero_stage="),
        (["--gpus", "8", "--figure", "/dev/null/cost.png"], "--figure /dev/null/cost.png: cannot be written"),
    ],
)
def test_mistakes_are_named(arguments: list[str], problem: str) -> None:
    with pytest.raises(UserError) as caught:
        main([*LLADA, *arguments])
    assert any(problem in each for each in caught.value.problems), caught.value.problems


@pytest.mark.parametrize(("text", "number"), [("300B", 3e11), ("2.3T", 2.3e12), ("5e9", 5e9), ("12", 12.0)])
def test_numbers_of_tokens(text: str, number: float) -> None:
    assert parse_tokens(text) == number


@pytest.mark.parametrize("text", ["", "0", "-3B", "3G", "1e"])
def test_what_is_no_number_of_tokens(text: str) -> None:
    with pytest.raises(UserError, match="--tokens"):
        parse_tokens(text)


def test_a_plan_needs_no_torch() -> None:
    arguments = [*LLADA, "--gpus", "8", "--scan"]
    code = (
        "import sys; from mdmscale.analysis.planning.plan_command import main; "
        f"main({arguments}); print('torch' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert result.stdout.splitlines()[-1] == "False"


def test_the_dry_run_has_the_same_memory(
    small_config: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(SMALL | {"diffusion": {"masking": "mirror"}}))
    main(["--config", str(path), "--gpus", "2"])
    planned = capsys.readouterr().out
    here = small_config(diffusion={"masking": "mirror"}, model={"tokenizer": "./nowhere"})
    with pytest.raises(UserError, match=r"model\.tokenizer = './nowhere': no such folder"):
        print_dry_run(here, 2)
    lines = capsys.readouterr().out.splitlines()
    heading = next(number for number, line in enumerate(lines) if line.startswith("weights"))
    assert lines[heading + 2] in planned
    batch = next(line for line in lines if line.startswith("│"))
    assert [cell.strip() for cell in batch.split("│")[1:-1]] == ["2", "2", "16", "64", "4", "6,144"]
