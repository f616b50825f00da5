"""The suggested layout fits and divides, and no layout that fits is faster by more than 2%."""

from collections.abc import Callable
from typing import Any

import pytest
from conftest import ROOT

from mdmscale.analysis.planning.hardware import make_cluster
from mdmscale.analysis.planning.plan import make_plan
from mdmscale.analysis.planning.planned_shape import planned_shape
from mdmscale.analysis.planning.report import as_arguments
from mdmscale.analysis.planning.suggest import at_stage, candidates, suggest
from mdmscale.config.loading import load_config
from mdmscale.config.parallel import ParallelSection
from mdmscale.config.run import RunConfig

Configs = Callable[..., RunConfig]


def test_nothing_that_fits_is_much_faster() -> None:
    config = load_config(ROOT / "configs" / "8b_mirror.yaml")
    shape, cluster = planned_shape(config.model)[0], make_cluster("h100-80g", "ndr400", 16, None)
    best = suggest(config, shape, cluster)
    assert best is not None and best.fits
    plans = [make_plan(each, shape, cluster) for each in candidates(config, shape, cluster)]
    assert len(plans) > 100
    assert best.step_seconds <= 1.02 * min(plan.step_seconds for plan in plans if plan.fits)
    assert all(plan.workload.batch_layout.global_batch_size == 64 for plan in plans), (
        "the batch is the run's own"
    )
    stages = {plan.workload.config.parallel.zero_stage for plan in plans}
    assert stages == {1, 2, 3}, "stage 0 would add up gradients in bf16"


def test_less_memory_asks_for_more_recomputation() -> None:
    config = load_config(ROOT / "configs" / "8b_mirror.yaml")
    shape = planned_shape(config.model)[0]
    gpus = ("rtx4090", "a100-40g", "h200-141g")
    plans = [suggest(config, shape, make_cluster(gpu, "ndr400", 16, None)) for gpu in gpus]
    chosen = [plan.workload.config.model.activation_checkpointing for plan in plans if plan is not None]
    assert chosen == ["full", "selective", "none"]
    assert suggest(config, shape, make_cluster("rtx4090", "ndr400", 2, None)) is None


def test_more_gpus_than_samples_share_samples(small_config: Configs) -> None:
    config = small_config(train={"global_batch_size": 4, "micro_batch_size": 1})
    shape = planned_shape(config.model)[0]
    best = suggest(config, shape, make_cluster("h100-80g", "ndr400", 8, None))
    assert best is not None
    parallel = best.workload.config.parallel
    assert parallel.tensor * parallel.sequence >= 2
    assert suggest(config, shape, make_cluster("h100-80g", "ndr400", 64, None)) is None


def test_compiled_layers_are_neither_split_nor_gathered(small_config: Configs) -> None:
    config = small_config(model={"compile": True})
    found = list(
        candidates(config, planned_shape(config.model)[0], make_cluster("h100-80g", "ndr400", 8, None))
    )
    assert found
    for each in found:
        RunConfig.model_validate(each.model_dump())


def test_adapters_are_not_split(small_config: Configs) -> None:
    config = small_config(model={"path": "nowhere/model", "lora": {"rank": 2}})
    shape = planned_shape(config.model)[0]
    found = candidates(config, shape, make_cluster("h100-80g", "ndr400", 8, None))
    assert {each.parallel.tensor for each in found} == {1}


def test_a_stage_has_no_options_of_another(small_config: Configs) -> None:
    parallel = small_config(
        parallel={"zero_stage": 3, "hpz_partition_size": 8, "offload_optimizer": "cpu"}
    ).parallel
    assert at_stage(parallel, 3) == parallel
    assert at_stage(parallel, 2).hpz_partition_size == 1
    assert at_stage(parallel, 2).offload_optimizer == "cpu"
    assert at_stage(parallel, 0).offload_optimizer == "none"


def test_other_stages_do_not_swap() -> None:
    nvme = ParallelSection.model_validate(
        {"zero_stage": 3, "offload_optimizer": "nvme", "offload_parameters": "nvme", "nvme_path": "/disk"}
    )
    for stage in (0, 1, 2):  # nor is what they have refused
        ParallelSection.model_validate(at_stage(nvme, stage).model_dump())
    assert at_stage(nvme, 3) == nvme


@pytest.mark.parametrize("masking", ["bernoulli", "mirror"])
def test_probes_are_a_share_of_the_run(small_config: Configs, masking: str) -> None:
    options = {"t_sampler": "p_pots", "masking": masking, "p_pots": {"probe_steps": [0, 5, 50]}}
    config = small_config(diffusion=options)
    plan = make_plan(config, planned_shape(config.model)[0], make_cluster("h100-80g", "ndr400", 1, None))
    assert plan.num_probes == 2, "the third is after the last of 10 steps"
    assert plan.probe_forwards == 10 * 16
    assert plan.run_seconds == pytest.approx(10 * plan.step_seconds + 2 * plan.probe_seconds)
    assert plan.probe_share == pytest.approx(2 * plan.probe_seconds / plan.run_seconds)


@pytest.mark.parametrize(
    ("options", "rows", "cells"),
    [
        ({"masking": "mirror"}, 20, 16),
        ({"masking": "exact", "rows": 4}, 10, 16),
        ({"loss_weight": "window", "masking": "independent"}, 10, 5),
        ({"loss_weight": "window", "masking": "exact"}, 10, 16),
    ],
)
def test_a_probe_takes_whole_pairs_but_one_of_rows_with_a_t_each(
    small_config: Configs, options: dict[str, Any], rows: int, cells: int
) -> None:
    """In the cells of t that training draws from."""
    config = small_config(diffusion={"t_sampler": "p_pots", **options})
    plan = make_plan(config, planned_shape(config.model)[0], make_cluster("h100-80g", "ndr400", 1, None))
    assert (plan.workload.rows_per_probe, plan.probe_forwards) == (rows, 10 * cells)


def test_what_is_printed_is_what_was_planned() -> None:
    """The printed arguments give the planned config. They reset options that only the given stage allows."""
    path = ROOT / "configs" / "8b_mirror.yaml"
    nvme = ["parallel.zero_stage=3", "parallel.offload_optimizer=nvme", "parallel.nvme_path=/disk"]
    config = load_config(path, nvme)
    shape, cluster = planned_shape(config.model)[0], make_cluster("h100-80g", "ndr400", 1, None)
    best = suggest(config, shape, cluster)
    assert best is not None and best.workload.config.parallel.zero_stage < 3
    assert load_config(path, [*nvme, *as_arguments(best, config).split()]) == best.workload.config
