"""The fine-tuning part: a competent model learns other tables from few questions (hops.py).

A base is pretrained once for each objective, to competence on the first tables, and then fine-tuned by every
arm and seed.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mdmscale.analysis.decision.arms import Arm
from mdmscale.analysis.decision.hops import HopsTask, QuestionSet
from mdmscale.analysis.decision.part import Stage, load_arrays, save_arrays
from mdmscale.analysis.decision.scoring import greedy_is_right
from mdmscale.analysis.decision.stacked_model import ModelShape, StackedModel
from mdmscale.analysis.decision.stacked_training import Lane, TrainingPlan, train
from mdmscale.config.diffusion import DiffusionSection
from mdmscale.config.training import OptimizerSection
from mdmscale.diffusion.sample import Sample
from mdmscale.system.errors import UserError

BASES = ("full", "ar")
"""The objectives that have a base of their own."""


@dataclass(frozen=True)
class FineTuningSettings:
    """Sizes of the fine-tuning part. batch_size: samples a step of arms with `samples` 1."""

    base: int = 4  # numbers have two digits of it
    hops: int = 6
    hidden_size: int = 64
    num_layers: int = 2
    intermediate_size: int = 96
    pretraining_steps: int = 2500
    pretraining_batch: int = 32
    pretraining_questions: int = 20_000
    pretraining_rate: float = 6e-3
    competence: float = 0.95  # accuracy that a base must reach
    competence_questions: int = 128
    num_samples: int = 256
    batch_size: int = 4
    epochs: int = 8
    warmup_steps: int = 10
    weight_decay: float = 0.1
    ema_decay: float = 0.97
    rates: tuple[float, ...] = (5e-4, 1e-3, 2e-3, 4e-3)
    tuning_seeds: int = 4
    tuning_questions: int = 64
    held_out_questions: int = 128
    likelihood_rows: int = 8
    probe_samples: int = 10  # of P-POTS

    @property
    def num_steps(self) -> int:
        return self.num_samples * self.epochs // self.batch_size


@dataclass(frozen=True)
class FineTuning:
    """The part. See part.Part."""

    settings: FineTuningSettings

    name = "fine_tuning"
    decodes = True

    def task(self, is_new: bool) -> HopsTask:
        return HopsTask(is_new, self.settings.base, self.settings.hops)

    @property
    def shape(self) -> ModelShape:
        settings = self.settings
        return ModelShape(
            self.task(True).vocab_size,
            settings.hidden_size,
            settings.num_layers,
            num_heads=4,
            intermediate_size=settings.intermediate_size,
        )

    @property
    def length(self) -> int:
        return self.task(True).length

    def diffusion(self, arm: Arm) -> DiffusionSection:
        return arm.probing(self.settings.probe_samples, [0])

    def scored_rows(self, stage: Stage) -> int:
        settings, task = self.settings, self.task(True)
        num = settings.tuning_questions if stage == "tuning" else 2 * settings.held_out_questions
        return num * (settings.likelihood_rows + int(task.is_answer.sum()))

    def samples(self, folder: Path) -> list[Sample]:
        return self.task(True).samples(QuestionSet.TRAINING, self.settings.num_samples)

    def texts(self, folder: Path, stage: Stage) -> np.ndarray:
        """The questions with their answers, int64 [questions, length]."""
        settings, task = self.settings, self.task(True)
        if stage == "tuning":
            return task.questions(QuestionSet.TUNING, 0, settings.tuning_questions)
        return task.questions(QuestionSet.HELD_OUT, 0, settings.held_out_questions)

    def model(self, folder: Path, arm: Arm, seeds: list[int]) -> StackedModel:
        """Every lane begins at the same base."""
        values = load_arrays(base_path(folder, base_of(arm)))["values"]
        return StackedModel(self.shape, torch.from_numpy(values).repeat(len(seeds), 1))


def base_of(arm: Arm) -> str:
    return "ar" if arm.diffusion.objective == "ar" else "full"


def base_path(folder: Path, objective: str) -> Path:
    return folder / "base" / f"{objective}.npz"


def pretrain(part: FineTuning, objective: str, folder: Path) -> None:
    """Train the base of an objective and write it with its accuracy on the first tables.

    Raises:
        UserError: if it is not competent. Then fine-tuning would show how the task is learnt at all.
    """
    settings, task = part.settings, part.task(False)
    diffusion = DiffusionSection(
        **({"objective": "ar"} if objective == "ar" else {"t_sampler": "stratified"})  # type: ignore[arg-type]
    )
    options = OptimizerSection(
        lr=settings.pretraining_rate, schedule="cosine", warmup_steps=50, weight_decay=0.01
    )
    plan = TrainingPlan(diffusion, settings.pretraining_batch, settings.pretraining_steps, settings.ema_decay)
    samples = task.samples(QuestionSet.PRETRAINING, settings.pretraining_questions)
    trained = train(StackedModel.fresh(part.shape, [0]), samples, [Lane(0, options)], plan)
    texts = task.questions(QuestionSet.COMPETENCE, 0, settings.competence_questions)
    accuracy = greedy_is_right(trained.model, texts, task.is_answer, objective == "ar").mean()
    if accuracy < settings.competence:
        raise UserError(
            f"the base of objective {objective} answers {accuracy:.1%} of the questions about its own "
            f"tables, less than {settings.competence:.0%}: not competent; it needs more than "
            f"{settings.pretraining_steps} steps"
        )
    arrays = {"values": trained.model.values.numpy(), "accuracy": np.array(accuracy)}
    save_arrays(base_path(folder, objective), arrays)
