"""Batches that real workers prepare in advance, compared with a loader that makes each on request."""

import multiprocessing
import os
import signal
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mdmscale.config.run import RunConfig
from mdmscale.data.batch import Batch
from mdmscale.data.collate import Collator
from mdmscale.data.indexed import bin_path
from mdmscale.data.loader import TrainLoader, make_t_sampler
from mdmscale.data.opening import open_source
from mdmscale.data.prefetch import Prefetcher, default_num_workers
from mdmscale.diffusion.density import DensityTable
from mdmscale.diffusion.noise import Noise
from mdmscale.diffusion.t_samplers import TSampler
from mdmscale.parallel.batch_layout import make_layout
from mdmscale.system.errors import UserError

CPU = torch.device("cpu")
LENGTH = 16


@pytest.fixture
def prefix(write_shard) -> Path:
    draws = np.random.default_rng(0)
    return write_shard("shard", [draws.integers(4, 1000, 40).tolist() for _ in range(60)])


@pytest.fixture
def make(prefix: Path) -> Callable[..., tuple[TrainLoader, TSampler]]:
    """A loader of pairs of samples that are cut to many lengths, and its t-sampler."""

    def make(diffusion: dict[str, Any] | None = None, **train: Any) -> tuple[TrainLoader, TSampler]:
        values = {
            "run": {"name": "made_ahead"},
            "model": {
                "tokenizer": "none",
                "hidden_size": 8,
                "num_hidden_layers": 1,
                "num_attention_heads": 1,
                "attention_annealing_steps": 6,
            },
            "data": {
                "kind": "tokens",
                "path": str(prefix),
                "sequence_length": LENGTH,
                "random_length_fraction": 0.5,
            },
            "diffusion": {"t_sampler": "p_pots", "masking": "mirror", "strata": 4, **(diffusion or {})},
            "train": {"steps": 20, "global_batch_size": 4, "micro_batch_size": 2, **train},
            "optimizer": {"lr": 1e-3},
        }
        config = RunConfig.model_validate(values)
        layout, source = make_layout(config, world_size=1), open_source(config.data, 0, 1000, 0)
        loader = TrainLoader(
            source, config, layout, 0, Noise(config.diffusion), Collator(3, packs=layout.packs)
        )
        return loader, make_t_sampler(config)

    return make


def refitted(sampler: TSampler) -> TSampler:
    density = DensityTable.from_weights(np.linspace(0, 1, 5), np.array([4.0, 3, 2, 1]), defensive=0.1)
    return replace(sampler, density=density)


def assert_same(batches: list[Batch], expected: list[Batch]) -> None:
    for batch, other in zip(batches, expected, strict=True):
        for field in fields(Batch):
            value, wanted = getattr(batch, field.name), getattr(other, field.name)
            assert type(value) is type(wanted), field.name
            if isinstance(value, torch.Tensor):
                assert value.dtype == wanted.dtype and torch.equal(value, wanted), field.name
            else:
                assert np.array_equal(value, wanted), field.name


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize(
    "options",
    [
        {"packing": False},
        {"packing": True, "diffusion": {"pair_forward": "sequential", "normalization": "token"}},
    ],
    ids=["padded", "packed, in turns, by token"],
)
def test_batches_are_the_loaders_own(make: Any, options: dict[str, Any], num_workers: int) -> None:
    """From a later step, as after a resume; across a new p(t) and the end of annealing; and in any order."""
    loader, first = make(**options)
    second = refitted(first)
    requests = [*((step, first) for step in (3, 4, 5)), *((step, second) for step in (6, 7, 8))]
    requests += [(8, second), (4, second), (5, second), (7, second), (8, first)]
    with Prefetcher(loader, num_workers, CPU) as prefetcher:
        for request in requests:
            assert_same(prefetcher.micro_batches(*request), loader.micro_batches(*request))
            assert len(multiprocessing.active_children()) == num_workers
    assert multiprocessing.active_children() == []


def test_without_workers_a_step_is_made_when_it_is_asked_for(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader, sampler = make()
    made = []
    monkeypatch.setattr(loader, "micro_batches", lambda step, t_sampler: made.append(step))
    with Prefetcher(loader, 0, CPU) as prefetcher:
        for step in range(3):
            prefetcher.micro_batches(step, sampler)
    assert made == [0, 1, 2]


def test_torchs_random_numbers_are_left_alone(make: Any) -> None:
    loader, sampler = make()
    before = torch.get_rng_state()
    with Prefetcher(loader, 0, CPU) as prefetcher:
        prefetcher.micro_batches(0, sampler)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_users_error_is_the_loaders_own(make: Any, prefix: Path) -> None:
    loader, sampler = make()
    os.truncate(bin_path(prefix), 0)
    with pytest.raises(UserError) as expected:
        loader.micro_batches(0, sampler)
    with pytest.raises(UserError) as error, Prefetcher(loader, 2, CPU) as prefetcher:
        prefetcher.micro_batches(0, sampler)
    assert error.value.problems == expected.value.problems
    assert multiprocessing.active_children() == []


def broken(*arguments: Any) -> Batch:
    raise ZeroDivisionError


def test_another_error_says_where_it_was(make: Any) -> None:
    loader, sampler = make()
    loader.collate = broken
    where = r"(?s)in DataLoader worker process.*in broken"
    with pytest.raises(ZeroDivisionError, match=where), Prefetcher(loader, 2, CPU) as prefetcher:
        prefetcher.micro_batches(0, sampler)
    assert multiprocessing.active_children() == []


def test_signals_to_stop_pass_the_workers_by_and_a_killed_one_is_noticed(make: Any) -> None:
    loader, sampler = make()
    with Prefetcher(loader, 2, CPU) as prefetcher:
        prefetcher.micro_batches(0, sampler)
        workers = multiprocessing.active_children()
        for worker in workers:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
                os.kill(worker.pid, number)
        for step in range(1, 12):  # more than were made before the signals came
            prefetcher.micro_batches(step, sampler)
        os.kill(workers[0].pid, signal.SIGKILL)
        with pytest.raises(RuntimeError, match="worker"):
            for step in range(12, 30):
                prefetcher.micro_batches(step, sampler)
    assert multiprocessing.active_children() == []
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()


def test_a_worker_that_does_not_end_is_killed(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker hangs, as on a file system that hangs. By default torch waits for it twice for 5 seconds."""
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.1)
    loader, sampler = make()
    with pytest.raises(ZeroDivisionError), Prefetcher(loader, 1, CPU) as prefetcher:
        prefetcher.micro_batches(0, sampler)
        (worker,) = multiprocessing.active_children()
        os.kill(worker.pid, signal.SIGSTOP)
        raise ZeroDivisionError
    assert multiprocessing.active_children() == []


def test_workers_are_for_gpus() -> None:
    assert default_num_workers(CPU) == 0
    assert default_num_workers(torch.device("cuda", 0)) > 0
