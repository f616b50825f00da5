"""Seconds of a step of each arm, by short runs one after the other: what `--budget equal-wall` is based on.

Probes of p(t), evaluations and checkpoints do not count; nor does the time until the first step. Where
several runs share a machine later, all of them are slower, and about equally so.
"""

import json
import shutil
from pathlib import Path
from statistics import median
from typing import Any

from mdmscale.analysis.study.budgets import Arm
from mdmscale.analysis.study.runs import Machine, StudyRun, train_all
from mdmscale.system.files import write_file
from mdmscale.training.metrics import read_metrics

TIMED_STEPS = 12
WARM_UP = 4  # of these, the first steps, in which memory is allocated and kernels are built
SEED = 0


def measure_arms(arms: list[Arm], config: list[str], machine: Machine, folder: Path) -> dict[str, float]:
    """Seconds of a step of each arm. They are kept in timing.json, so that a continued study has the same.

    Raises:
        UserError: where a run fails.
    """
    path = folder / "timing.json"
    known: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}
    alone = Machine(1, machine.ranks, machine.num_gpus)
    for arm in arms:
        if arm.name in known:
            continue
        run = StudyRun(Arm(arm.method, (*arm.overrides, *short(arm)), arm.config), SEED, folder / "timing")
        list(train_all([run], config, alone, lambda: None))
        known[arm.name] = seconds_per_step(read_metrics(run.folder))
        shutil.rmtree(run.folder)
        write_file(path, json.dumps(known, indent=1))
    return known


def short(arm: Arm) -> list[str]:
    """The overrides that make a run of a few steps of an arm, with nothing besides them."""
    overrides = [
        f"train.steps={TIMED_STEPS}",
        "optimizer.warmup_steps=0",
        "eval.every=0",
        "checkpoint.every=0",
        "logging.tensorboard=false",
    ]
    if arm.config.diffusion.t_sampler == "p_pots":
        quick = {"probe_steps": "[0]", "num_x0": 2, "num_masks": 2}
        overrides += [f"diffusion.p_pots.{name}={value}" for name, value in quick.items()]
    return overrides


def seconds_per_step(records: list[dict[str, Any]]) -> float:
    """The median over the steps of metrics.jsonl after the first ones."""
    parts = [name for name in records[0] if name.startswith("seconds_")]
    return median(sum(record[name] for name in parts) for record in records[WARM_UP:])
