"""README and docs: commands name things that exist, and the README's commands run from data to samples."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, WORKERS
from workers.forked import server_address

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
        if name.split(".")[0] in sections and not name.endswith((".py", ".yaml", ".json", ".jsonl")):
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


def run_blocks(folder: Path, blocks: list[str], path: str = os.environ["PATH"]) -> str:
    """Run shell blocks one after the other in one shell. Returns what they print."""
    environment = {name: value for name, value in os.environ.items() if name not in ("VENV", "VIRTUAL_ENV")}
    # DeepSpeed compiles its ops anew where the environment has another path, as the clone's has.
    environment |= {"PATH": path, "TORCH_EXTENSIONS_DIR": str(folder / "ops")}
    with (folder / "log.txt").open("w") as log:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", "\n".join(blocks)],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            timeout=2400,
            check=False,
        )
    output = (folder / "log.txt").read_text(errors="replace")
    assert done.returncode == 0, output[-5000:]
    return output


def page_of(name: str) -> Path:
    return ROOT / "docs" / f"{name}.md"


def runnable(page: Path) -> list[str]:
    """The shell blocks that need no hardware."""
    return [block for block in shell_blocks(page) if not block.startswith(NEEDS_HARDWARE)]


@pytest.fixture(scope="module")
def quickstart(clone: Path) -> tuple[Path, str]:
    """The clone after all commands of the README, and what they print.

    The quickstart takes fewer steps here: enough to leave the plateau where it knows token frequencies only,
    which it does sooner at a learning rate that does not fall.
    """
    shorten(clone / "configs/quickstart.yaml", "  steps: 5000", "  steps: 1200")
    shorten(clone / "configs/quickstart.yaml", "  schedule: cosine", "  schedule: constant")
    shorten(clone / "configs/quickstart.yaml", "[0, 500, 2500]", "[0, 500]")
    blocks = [block for block in runnable(ROOT / "README.md") if "make check" not in block]
    minutes = [block for block in blocks if "--minutes 2\n" in block]
    assert len(minutes) == 1
    blocks = [block.replace("--minutes 2\n", "--minutes 0.5\n") for block in blocks]
    return clone, run_blocks(clone, blocks)


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.timeout(3000)
def test_the_readme_goes_from_nothing_to_samples(quickstart: tuple[Path, str]) -> None:
    """The models must have learned."""
    folder, output = quickstart
    entropy = json.loads((folder / "data/quickstart/dataset.json").read_text())["unigram_entropy"]
    records = read_metrics(folder / "runs/quickstart")
    final = [record["eval_loss"] for record in records if "eval_loss" in record][-1]
    assert final < entropy - 0.5, f"held-out loss {final} against a unigram entropy of {entropy}"
    samples = output.split("--- sample")[1:]
    assert len(samples) >= 3, output[-5000:]
    assert sum(bool(re.search(r"self|def |return|import|if |\(", sample)) for sample in samples) >= 3
    losses = [record["loss"] for record in read_metrics(folder / "runs/tiny_sft")]
    assert sum(losses[-50:]) < sum(losses[:50]) / 4
    assert re.search(r"3\+4= ---\n7$", output, flags=re.MULTILINE), output[-2000:]


@pytest.fixture(scope="module")
def warm_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose `python` runs scripts in forks of a warm process: starting each anew takes seconds."""
    folder = tmp_path_factory.mktemp("bin")
    command = [sys.executable, str(WORKERS / "warm_python.py"), server_address()]
    (folder / "python").write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
    (folder / "python").chmod(0o755)
    return folder


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("name", [name for name in ON_THE_QUICKSTART if runnable(page_of(name))])
def test_commands_of_a_page_on_the_quickstart(
    quickstart: tuple[Path, str], warm_python: Path, name: str
) -> None:
    folder, _ = quickstart
    blocks = runnable(page_of(name))
    if name == "generation":
        blocks += [f"python - <<'END'\n{block}END\n" for block in python_blocks(page_of(name))]
    path = f"{warm_python}:{folder / '.venv/bin'}:{os.environ['PATH']}"
    assert run_blocks(folder, blocks, path)
