"""Shared fixtures: a tiny real corpus, configs on it, and real ranks."""

import os
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from mdmscale.parallel.ranks import Ranks

ROOT = Path(__file__).parent.parent
WORKERS = Path(__file__).parent / "workers"


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a 512-token tokenizer and one shard: a few files of the standard library."""
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
    """Values of a tiny config that trains in seconds: MIRROR and P-POTS, fp32."""
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
            "p_pots": {"num_x0": 4, "num_t": 9, "num_masks": 4},
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
    """Put the environment back: what one process joins a group with would mislead those that it starts."""
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(scope="session")
def process_group() -> Iterator[None]:
    """One group of the test process alone, for all tests: DeepSpeed remembers the first that it meets."""
    from mdmscale.parallel.ranks import finalise, initialise

    with kept_environment():
        initialise()
    yield
    finalise()


@pytest.fixture
def ranks(process_group: None) -> "Iterator[Ranks]":
    """The test process as the only rank."""
    from mdmscale.parallel.ranks import initialise

    with kept_environment():
        yield initialise()


def without_ranks() -> dict[str, str]:
    """This process's environment, without what a launcher puts there."""
    return {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}


def start_ranks(num_ranks: int, script: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start `script` on real gloo ranks through torchrun, in a process group of its own, on a free port."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(num_ranks),
    ]
    environment = without_ranks()
    return subprocess.Popen(
        [*command, str(script), *arguments],
        cwd=ROOT,
        env={**environment, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def run_ranks(num_ranks: int, script: Path, *arguments: str, timeout: float = 400) -> str:
    """`start_ranks` to its end. Returns what it printed; fails with that when the status is not 0."""
    process = start_ranks(num_ranks, script, *arguments)
    try:
        output, _ = process.communicate(timeout=timeout)
    finally:
        kill_group(process)
    assert process.returncode == 0, output
    return output


def kill_group(process: subprocess.Popen[str]) -> None:
    """SIGKILL a started process and all that it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def run_script(*command: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run a Python script of the repository as a user would, from its root."""
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False
    )
