"""Shared fixtures: a tiny real corpus, configs on it, and real ranks."""

import json
import os
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from workers.forked import Job
from workers.without_figures import draw_nothing

if TYPE_CHECKING:
    from mdmscale.parallel.ranks import Ranks

ROOT = Path(__file__).parent.parent
WORKERS = Path(__file__).parent / "workers"
SHIPPED = sorted(path for path in (ROOT / "configs").rglob("*.yaml") if path.name != "methods.yaml")
"""The configs of runs. methods.yaml holds what a study changes in one."""


@pytest.hookimpl(trylast=True)  # when `-m` has deselected tests
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put long test files first, so that no worker of pytest-xdist ends with a long one.

    First come files that have a test with a longer timeout, the longest before the others, then files that
    start ranks, then the rest.
    """

    def key(item: pytest.Item) -> float:
        timeout = item.get_closest_marker("timeout")
        return timeout.args[0] if timeout else 1 if item.get_closest_marker("distributed") else 0

    longest: dict[Path, float] = {}
    for item in items:
        longest[item.path] = max(key(item), longest.get(item.path, 0))
    items.sort(key=lambda item: -longest[item.path])


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus folder: a 512-token tokenizer, and one shard of a few files of the standard library."""
    from mdmscale.data.indexed import IndexedWriter, token_dtype
    from mdmscale.data.preparation.tokenizer_training import train_tokenizer
    from mdmscale.models.tokenizer import load_tokenizer

    folder = tmp_path_factory.mktemp("corpus")
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("[a-c]*.py"))
    texts = [file.read_text(encoding="utf-8") for file in files]
    train_tokenizer(texts, 512, folder / "tokenizer")
    tokenizer = load_tokenizer(str(folder / "tokenizer"))
    with IndexedWriter(folder / "shard-00000", token_dtype(512)) as writer:
        for text in texts:
            token_ids = tokenizer.encode(text, add_special_tokens=False)
            writer.add_document(np.array([*token_ids, tokenizer.eos_token_id]))
    return folder


@pytest.fixture
def tiny(corpus: Path, tmp_path: Path) -> dict[str, Any]:
    """The values of a tiny config that trains in seconds, with MIRROR and P-POTS in fp32."""
    return tiny_values(corpus, tmp_path / "runs")


def tiny_values(corpus: Path, output_dir: Path) -> dict[str, Any]:
    return {
        "run": {"name": "tiny", "output_dir": str(output_dir), "seed": 3},
        "model": {
            "tokenizer": str(corpus / "tokenizer"),
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "tie_word_embeddings": True,
            "dtype": "fp32",
        },
        "data": {
            "kind": "tokens",
            "path": str(corpus),
            "sequence_length": 32,
            "held_out": 0.05,
            "random_length_fraction": 0.2,
        },
        "diffusion": {
            "t_sampler": "p_pots",
            "masking": "mirror",
            "p_pots": {"num_x0": 2, "num_t": 9, "num_masks": 4},
        },
        "train": {"steps": 20, "global_batch_size": 8, "micro_batch_size": 4},
        "optimizer": {"lr": 3e-3, "warmup_steps": 4},
        "logging": {"tensorboard": False},
    }


@pytest.fixture
def write_config(tmp_path: Path) -> Callable[[dict[str, Any]], Path]:
    """Write values as a YAML file and return its path."""
    import yaml

    def write(values: dict[str, Any]) -> Path:
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(values, sort_keys=False))
        return path

    return write


@contextmanager
def kept_environment() -> Iterator[None]:
    """Restore the environment: the variables with which a process joins a group would mislead children."""
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(scope="session")
def process_group() -> Iterator[None]:
    """A group with only the test process, shared by all tests because DeepSpeed remembers its first group."""
    from mdmscale.parallel.ranks import finalise, initialise

    with kept_environment():
        initialise()
    draw_nothing()
    yield
    finalise()


@pytest.fixture(autouse=True, scope="module")
def kept_linear() -> Iterator[None]:
    """Put torch's F.linear back: an engine of ZeRO-3 in the test process replaces it for good."""
    yield
    if "torch" in sys.modules:
        import torch

        torch.nn.functional.linear = torch._C._nn.linear


@pytest.fixture
def ranks(process_group: None) -> "Iterator[Ranks]":
    """The test process as the only rank."""
    from mdmscale.parallel.ranks import initialise

    with kept_environment():
        yield initialise()


def without_ranks() -> dict[str, str]:
    """This process's environment without a launcher's variables."""
    return {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}


def launch_ranks(num_ranks: int, script: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start `script` with torchrun, for tests of the launch itself. Other tests use `start_ranks`.

    Its processes form a group of their own, on a free port.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return subprocess.Popen(
        [*command, "--nproc-per-node", str(num_ranks), str(script), *arguments],
        cwd=ROOT,
        env={**without_ranks(), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def start_ranks(num_ranks: int, script: Path, *arguments: str) -> Job:
    """Start `script` on real gloo ranks, which are forks of a warm process and share one output."""
    return Job([str(script), *arguments], num_ranks, ROOT, without_ranks())


def run_ranks(num_ranks: int, script: Path, *arguments: str, timeout: float = 400) -> str:
    """Run `start_ranks` to its end. Returns the output; fails with the output if the status is not 0."""
    job = start_ranks(num_ranks, script, *arguments)
    try:
        status = job.wait(timeout)
    finally:
        job.kill()
    assert status == 0, job.stdout
    return job.stdout


def train_all(num_ranks: int, batch: list[dict[str, Any]], timeout: float = 400) -> str:
    """Train several configs in turn, on the ranks of one process group. Returns the output."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(batch, file)
        file.flush()
        return run_ranks(num_ranks, WORKERS / "train_many.py", file.name, timeout=timeout)


def kill_group(process: subprocess.Popen[str]) -> None:
    """SIGKILL a launched process and all its children."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def start_script(*command: str) -> Job:
    """Start a Python script from the repository's root, as a user does, in a fork of a warm process."""
    return Job(list(command), 0, ROOT, without_ranks(), join_output=False)


def run_script(*command: str, timeout: float = 300) -> Job:
    """Run `start_script` to its end, whatever its status."""
    job = start_script(*command)
    try:
        job.wait(timeout)
    finally:
        job.kill()
    return job
