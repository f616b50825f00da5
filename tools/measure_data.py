#!/usr/bin/env python
"""Measure the loader's speed on one core and the time to open data, and how both scale.

    python tools/measure_data.py [--length 128] [--seconds 2] [--json FILE]

The files are sparse: their tokens take no disk space. 10^9 documents or SFT samples are 10^8 under ten names.
Their index takes 2.4 GB of disk, and writing it takes 5 GB of memory. Files are opened from the page cache.
Batches are those of MIRROR, P-POTS and strata. The figures of docs/data.md come from this script.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from mdmscale.config.run import RunConfig
from mdmscale.data.collate import Collator
from mdmscale.data.indexed import bin_path, write_index
from mdmscale.data.loader import TrainLoader, make_t_sampler
from mdmscale.data.opening import open_source
from mdmscale.data.sft_shard import write_samples
from mdmscale.data.source import SampleSource
from mdmscale.diffusion.density import DensityTable
from mdmscale.diffusion.noise import Noise
from mdmscale.diffusion.t_samplers import TSampler
from mdmscale.parallel.batch_layout import make_layout

LONGEST_DOCUMENT = 2**30  # tokens; the format counts them in 32 bits
DTYPE = np.dtype("<u2")
BATCH = 32

Writer = Callable[[Path, int, int], None]


def write_hollow_shard(prefix: Path, lengths: np.ndarray) -> None:
    """A shard with documents of `lengths` whose tokens, all 0, take no room on most file systems.

    Raises:
        OSError: where the file system has none for files of that size.
    """
    write_index(prefix, lengths, DTYPE)
    with bin_path(prefix).open("wb") as file:
        file.truncate(int(lengths.sum(dtype=np.int64)) * DTYPE.itemsize)


def write_sequences(prefix: Path, count: int, length: int) -> None:
    """A corpus of `count` sequences in a few long documents."""
    num_documents = max(2, -(-count * length // LONGEST_DOCUMENT))
    write_hollow_shard(prefix, np.diff(np.arange(num_documents + 1) * (count * length) // num_documents))


def write_documents(prefix: Path, count: int, length: int) -> None:
    """A corpus of `count` documents, each as long as a sequence."""
    write_hollow_shard(prefix, np.full(count, length))


def write_pairs(prefix: Path, count: int, length: int) -> None:
    """An SFT shard of `count` samples, half as long as a sequence to as long, a third of each its prompt."""
    lengths = np.resize(np.arange(length // 2, length + 1), count)
    write_samples(prefix, lengths // 3, int(lengths.max()))
    write_hollow_shard(prefix, lengths)


def write_shards(folder: Path, count: int, length: int, num_shards: int = 15_000) -> None:
    """A corpus of `count` sequences in `num_shards` shards of two long documents each."""
    folder.mkdir()
    for number in range(num_shards):
        num_tokens = (number + 1) * count // num_shards * length - number * count // num_shards * length
        half = num_tokens // 2
        write_hollow_shard(folder / f"shard-{number:05d}", np.array([half, num_tokens - half]))


def under_ten_names(write: Writer) -> Writer:
    """Writes a tenth of a corpus, and gives each of its files ten names."""

    def write_once(folder: Path, count: int, length: int) -> None:
        folder.mkdir()
        write(folder / "0", count // 10, length)
        for file in list(folder.iterdir()):
            for number in range(1, 10):
                os.link(file, folder / f"{number}{file.name.removeprefix('0')}")

    return write_once


CORPORA: list[tuple[str, Writer, int]] = [
    *[("tokens", write_sequences, count) for count in (10**5, 10**7, 10**9)],
    ("tokens, 15,000 shards", write_shards, 10**9),
    *[("tokens, a document each", write_documents, count) for count in (10**5, 10**7)],
    ("tokens, a document each", under_ten_names(write_documents), 10**9),
    *[("sft", write_pairs, count) for count in (10**5, 10**7)],
    ("sft", under_ten_names(write_pairs), 10**9),
]


def make_config(prefix: Path, kind: str, length: int) -> RunConfig:
    """A run on the shard `prefix`; what it says of the model is not used."""
    model = {"tokenizer": "none", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    values = {
        "run": {"name": "measure"},
        "model": {**model, "max_position_embeddings": length},
        "data": {"kind": kind, "path": str(prefix), "sequence_length": length},
        "diffusion": {"t_sampler": "p_pots", "masking": "mirror", "strata": BATCH},
        "train": {"steps": 10**6, "global_batch_size": BATCH, "micro_batch_size": 8},
        "optimizer": {"lr": 1e-3},
    }
    return RunConfig.model_validate(values)


def open_corpus(config: RunConfig) -> SampleSource:
    return open_source(config.data, seed=0, vocab_size=1024, eos_token_id=0)


def make_loader(config: RunConfig, source: SampleSource) -> TrainLoader:
    layout = make_layout(config, world_size=1)
    return TrainLoader(source, config, layout, 0, Noise(config.diffusion), Collator(3, packs=layout.packs))


def fitted_sampler(config: RunConfig) -> TSampler:
    """As after a probe."""
    density = DensityTable.from_weights(np.linspace(0, 1, 65), np.linspace(2, 1, 64), defensive=0.1)
    return replace(make_t_sampler(config), density=density)


def measure(config: RunConfig, seconds: float) -> dict[str, float]:
    """Seconds to open the data; then microseconds a sample and clean tokens a second, of processor time."""
    started = time.perf_counter()
    source = open_corpus(config)
    opened = time.perf_counter() - started
    loader, sampler = make_loader(config, source), fitted_sampler(config)
    loader.micro_batches(0, sampler)
    started, step, num_tokens = time.process_time(), 0, 0
    while (spent := time.process_time() - started) < seconds:
        step += 1
        num_tokens += sum(batch.num_tokens for batch in loader.micro_batches(step, sampler))
    return {
        "seconds to open": opened,
        "microseconds a sample": 1e6 * spent / (step * BATCH),
        "tokens a second": num_tokens / loader.layout.rows_per_sample / spent,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--length", type=int, default=128, help="tokens of a sequence (default: 128)")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement (default: 2)")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    figures = []
    for name, write, count in CORPORA:
        with tempfile.TemporaryDirectory() as folder:
            prefix = Path(folder) / "shard"
            write(prefix, count, arguments.length)
            config = make_config(prefix, name.split(",")[0], arguments.length)
            figures.append({"data": name, "sequences": count, **measure(config, arguments.seconds)})
    table = Table(title=f"the loader on one core, sequences of {arguments.length} tokens")
    for heading in figures[0]:
        table.add_column(heading, justify="left" if heading == "data" else "right")
    for row in figures:
        table.add_row(*(value if isinstance(value, str) else f"{value:,.4g}" for value in row.values()))
    Console(width=110).print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
