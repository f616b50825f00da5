"""README and docs: commands name things that exist, and the README's commands run from data to samples."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from mdmscale.config.keys import describe_keys
from mdmscale.training.metrics import read_metrics

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
NEEDS_HARDWARE = "# needs "
ON_THE_QUICKSTART = ("generation", "evaluation", "tasks", "lm_eval", "paper")


def shell_blocks(page: Path) -> list[str]:
    return re.findall(r"```bash\n(.*?)```", page.read_text(), flags=re.DOTALL)


def python_blocks(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_named_files_exist(page: Path) -> None:
    text = page.read_text()
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
        assert (page.parent / target).exists(), target
    for name in re.findall(r"\b(?:configs|tools|launchers|tests|mdmscale)/[\w./]+\.(?:py|yaml)\b", text):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_config_keys_that_pages_name_exist(page: Path) -> None:
    known = {key.name for key in describe_keys()}
    sections = {name.split(".")[0] for name in known}
    prefixes = {".".join(name.split(".")[:depth]) for name in known for depth in (1, 2, 3)}
    for name in re.findall(r"`((?:\w+\.)+\w+)(?::[^`]*)?`", page.read_text()):
        if name.split(".")[0] in sections and not name.endswith((".py", ".yaml", ".jsonl")):
            assert name in prefixes, f"{page.name} names {name}"


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository whose .venv is the environment of these tests."""
    prefix = Path(sys.prefix)
    if not (prefix / ".train").exists():
        pytest.skip("this environment was not made by make")
    folder = tmp_path_factory.mktemp("clone")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)  # with its time, so that make sees nothing to install
    (folder / ".venv").symlink_to(prefix)
    return folder


def shorten(config: Path, long: str, short: str) -> None:
    text = config.read_text()
    assert text.count(long) == 1
    config.write_text(text.replace(long, short))


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.timeout(3000)
def test_the_readme_goes_from_nothing_to_samples(clone: Path) -> None:
    """Run all commands of the README, then those of the pages on its model. The model must have learned.

    The quickstart takes fewer steps here: enough to leave the plateau where it knows token frequencies only.
    """
    shorten(clone / "configs/quickstart.yaml", "  steps: 5000", "  steps: 1500")
    shorten(clone / "configs/quickstart.yaml", "[0, 500, 2500]", "[0, 500]")
    pages = [ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in ON_THE_QUICKSTART)]
    blocks = [block for page in pages for block in shell_blocks(page) if not block.startswith(NEEDS_HARDWARE)]
    blocks += [f"python - <<'END'\n{block}END\n" for block in python_blocks(ROOT / "docs/generation.md")]
    commands = "\n".join(block for block in blocks if "make check" not in block)
    assert "--minutes 2\n" in commands
    commands = commands.replace("--minutes 2\n", "--minutes 0.5\n")
    environment = {name: value for name, value in os.environ.items() if name not in ("VENV", "VIRTUAL_ENV")}
    # DeepSpeed compiles its ops anew where the environment has another path, as the clone's has.
    environment["TORCH_EXTENSIONS_DIR"] = str(clone / "ops")
    with (clone / "log.txt").open("w") as log:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", commands],
            cwd=clone,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            timeout=2900,
            check=False,
        )
    output = (clone / "log.txt").read_text(errors="replace")
    assert done.returncode == 0, output[-5000:]

    entropy = json.loads((clone / "data/quickstart/dataset.json").read_text())["unigram_entropy"]
    records = read_metrics(clone / "runs/quickstart")
    final = [record["eval_loss"] for record in records if "eval_loss" in record][-1]
    assert final < entropy - 0.5, f"held-out loss {final} against a unigram entropy of {entropy}"
    samples = output.split("--- sample")[1:]
    assert len(samples) >= 3, output[-5000:]
    assert sum(bool(re.search(r"self|def |return|import|if |\(", sample)) for sample in samples) >= 3
    losses = [record["loss"] for record in read_metrics(clone / "runs/tiny_sft")]
    assert sum(losses[-50:]) < sum(losses[:50]) / 4
    assert re.search(r"3\+4= ---\n7$", output, flags=re.MULTILINE), output[-2000:]
