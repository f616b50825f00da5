"""The bench command: its output, its files, and the mistakes that it reports."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from analysis.bench.conftest import PATHS
from conftest import ROOT, run_script

from mdmscale.analysis.bench.bench_command import main
from mdmscale.analysis.bench.growth import parse_sweep
from mdmscale.analysis.bench.options import build_parser, paths_of, sizes_of
from mdmscale.analysis.bench.paths import COMPARISONS
from mdmscale.system.errors import UserError

TINY = ["--vocab", "64", "--hidden", "16", "--layers", "2", "--heads", "2", "--length", "32", "--batch", "3"]


def test_the_command_measures_and_writes(tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    names = [name for name in PATHS if name not in ("fused", "compiled")]  # which take the compiler a while
    arguments = ["--paths", ",".join(names), "--rounds", "2", "--json", str(file)]
    process = run_script("tools/bench.py", *TINY, *arguments)
    assert process.returncode == 0, process.stderr
    for word in (*names, "clean tokens/s", "masked positions only, against"):
        assert word in process.stdout
    values = json.loads(file.read_text())
    assert list(values["paths"]) == names
    assert len(values["paths"]["masked"]["seconds"]) == 2
    assert values["sizes"]["vocab"] == 64
    questions = {question for slower, faster, question in COMPARISONS if {slower, faster} <= set(names)}
    assert values["ratios"].keys() == questions


def test_parts_are_printed_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "bench.json"
    assert main([*TINY, "--paths", "masked", "--rounds", "2", "--parts", "--json", str(file)]) == 0
    assert "a training step by part" in capsys.readouterr().out
    values = json.loads(file.read_text())["parts"]
    assert len(values["seconds"]["layers, compiled"]) == len(values["floors"]["head"]) == 2


def test_a_sweep_is_drawn(tmp_path: Path) -> None:
    figure, file = tmp_path / "growth.png", tmp_path / "growth.json"
    arguments = ["--paths", "masked,indexed", "--rounds", "1", "--sweep", "vocab=128,64"]
    assert main([*TINY, *arguments, "--figure", str(figure), "--json", str(file)]) == 0
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert list(json.loads(file.read_text())["vocab"]) == ["64", "128"]


def test_a_profile_is_a_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY, "--paths", "masked", "--profile", str(tmp_path / "traces")]) == 0
    trace = json.loads((tmp_path / "traces" / "masked.json").read_text())
    assert any("mm" in event.get("name", "") for event in trace["traceEvents"])
    assert "aten::mm" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--paths", "naive"], "--paths: there is no 'naive'; choose from full, indexed"),
        (["--hidden", "100", "--heads", "3"], "--hidden 100 --heads 3"),
        (["--batch", "0"], "--batch 0: give at least 1"),
        (["--prompt", "1"], "a share below 1"),
        (["--paths", "cce", "--device", "cpu"], "--paths: cce needs a CUDA device, and its package"),
        (["--paths", ","], "--paths: none is named"),
        (["--sweep", "width=3"], "--sweep width=3: give NAME=N,N,... with one of vocab"),
        (["--sweep", "hidden=16,25"], "--hidden 25 --heads 2"),
        (["--key-heads", "0"], "--key-heads 0: give at least 1"),
        (["--profile", "traces", "--json", "x.json"], "--profile does not go with --json"),
        (["--sweep", "vocab=64", "--parts"], "--sweep does not go with --parts"),
        (["--sweep", "vocab=0,2"], "--sweep vocab=0,2"),
        (["--figure", "x.png"], "--figure x.png: draws a sweep"),
        (["--json", "no/such/folder/x.json"], "--json no/such/folder/x.json: there is no folder no/such"),
        pytest.param(
            ["--device", "cuda"],
            "torch sees no CUDA device",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is one here"),
        ),
    ],
)
def test_mistakes_are_named(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        main([*TINY, *arguments])


def test_commands_of_the_docs_are_taken() -> None:
    page = (ROOT / "docs" / "performance.md").read_text()
    commands = re.findall(r"python tools/bench\.py ([^`\n]*)", page)
    assert len(commands) >= 4
    for command in commands:
        arguments = build_parser().parse_args(shlex.split(command))
        arguments.device = "cpu"
        assert paths_of(arguments)
        sizes = sizes_of(arguments)
        assert arguments.sweep is None or parse_sweep(arguments.sweep, sizes)
