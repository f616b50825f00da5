"""What both parts of the study have in common: conditions, and units of work that are a file when done.

A condition is an arm under a schedule, with or without clipping. Its learning rate is tuned on seeds and
texts of their own. A unit trains a few lanes of a condition and scores them; its file is written as a whole,
so an interrupted study repeats at most the units that were under way.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from mdmscale.analysis.decision.arms import Arm
from mdmscale.analysis.decision.scoring import greedy_is_right, likelihood
from mdmscale.analysis.decision.stacked_model import ModelShape, StackedModel
from mdmscale.analysis.decision.stacked_training import Lane, TrainingPlan, train
from mdmscale.config.diffusion import DiffusionSection
from mdmscale.config.training import OptimizerSection
from mdmscale.diffusion.sample import Sample
from mdmscale.system.files import written_file

Stage = Literal["tuning", "final"]
Schedule = Literal["constant", "linear", "cosine"]
WEIGHTS = ("raw", "ema")
"""What is scored of each lane, in the order of the first dimension of scores; in tuning only raw ones."""

LANES = 8
"""Lanes of a unit. More are no faster, as their parameters and activations leave the cache."""

TUNING_SEED = 10_000
"""The first seed of tuning. Final seeds count from 0."""


@dataclass(frozen=True)
class Condition:
    """An arm under a schedule. clipping: the largest gradient norm; 0: none."""

    arm: Arm
    schedule: Schedule
    clipping: float

    @property
    def name(self) -> str:
        return f"{self.arm.name}.{self.schedule}.{'clipped' if self.clipping else 'unclipped'}"


class Settings(Protocol):
    """The numbers of a part that the units need."""

    @property
    def num_steps(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def warmup_steps(self) -> int: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def ema_decay(self) -> float: ...
    @property
    def likelihood_rows(self) -> int: ...


class Part(Protocol):
    """A part of the study: its model, data and texts. All are functions of the settings and the folder."""

    @property
    def name(self) -> str: ...
    @property
    def settings(self) -> Any: ...
    @property
    def shape(self) -> ModelShape: ...
    @property
    def length(self) -> int:
        """Tokens of a sample."""
        ...

    @property
    def decodes(self) -> bool:
        """Whether answers are decoded, so that there is an accuracy."""
        ...

    def diffusion(self, arm: Arm) -> DiffusionSection: ...
    def scored_rows(self, stage: Stage) -> int:
        """Forward rows that score a lane: its raw weights, and if final its averaged ones."""
        ...

    def samples(self, folder: Path) -> list[Sample]: ...
    def texts(self, folder: Path, stage: Stage) -> np.ndarray: ...
    def model(self, folder: Path, arm: Arm, seeds: list[int]) -> StackedModel: ...


@dataclass(frozen=True)
class Unit:
    """Lanes of a condition: every seed with every learning rate."""

    stage: Stage
    condition: Condition
    seeds: tuple[int, ...]
    rates: tuple[float, ...]

    @property
    def num_lanes(self) -> int:
        return len(self.seeds) * len(self.rates)

    def path(self, folder: Path) -> Path:
        """Where its results go. A final unit names its learning rate, so that another one is another file."""
        rate = "" if self.stage == "tuning" else f".lr{self.rates[0]:g}"
        name = f"{self.condition.name}{rate}.seeds{self.seeds[0]}-{self.seeds[-1]}.npz"
        return folder / self.stage / name


def units_of(stage: Stage, condition: Condition, seeds: list[int], rates: tuple[float, ...]) -> list[Unit]:
    """The units of a condition: groups of seeds that make about LANES lanes each."""
    at_once = max(1, LANES // len(rates))
    groups = [tuple(seeds[first : first + at_once]) for first in range(0, len(seeds), at_once)]
    return [Unit(stage, condition, group, rates) for group in groups]


def run_unit(part: Part, unit: Unit, folder: Path) -> None:
    """Train and score the lanes of a unit, and write its file."""
    arm, settings = unit.condition.arm, part.settings
    lanes = [
        Lane(seed, optimizer(settings, unit.condition, rate)) for seed in unit.seeds for rate in unit.rates
    ]
    diffusion = part.diffusion(arm)
    is_causal = diffusion.objective == "ar"
    plan = TrainingPlan(diffusion, settings.batch_size * arm.samples, settings.num_steps, settings.ema_decay)
    samples = part.samples(folder)
    trained = train(part.model(folder, arm, [lane.seed for lane in lanes]), samples, lanes, plan)
    texts = part.texts(folder, unit.stage)
    is_answer = samples[0].eligible
    models = [trained.model]
    if unit.stage == "final":  # learning rates are chosen by raw weights
        models.append(StackedModel(trained.model.shape, trained.averages))
    arrays = {
        "seeds": np.array([lane.seed for lane in lanes]),
        "rates": np.array([lane.optimizer.lr for lane in lanes]),
        "gradient_norms": trained.gradient_norms,
        "nll": np.stack(
            [likelihood(model, texts, is_answer, is_causal, settings.likelihood_rows) for model in models]
        ),
    }
    if part.decodes:
        arrays["is_right"] = np.stack(
            [greedy_is_right(model, texts, is_answer, is_causal) for model in models]
        )
    save_arrays(unit.path(folder), arrays)


def optimizer(settings: Settings, condition: Condition, rate: float) -> OptimizerSection:
    """The optimizer of a lane."""
    return OptimizerSection(
        lr=rate,
        schedule=condition.schedule,
        gradient_clipping=condition.clipping,
        warmup_steps=settings.warmup_steps,
        weight_decay=settings.weight_decay,
    )


def save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays to a file that is complete or absent. The same arrays give the same bytes."""
    with written_file(path, durable=False) as unfinished, unfinished.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)  # type: ignore[arg-type]


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return {name: file[name] for name in file.files}
