"""The part from scratch: a small model learns the source of the Python standard library, at equal cost.

All arms have the same forward rows a step. The loss is that of held-out files on the whole objective,
whatever an arm trains.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mdmscale.analysis.decision.arms import Arm
from mdmscale.analysis.decision.part import Stage, load_arrays, save_arrays
from mdmscale.analysis.decision.stacked_model import ModelShape, StackedModel
from mdmscale.config.diffusion import DiffusionSection
from mdmscale.data.preparation.inputs import stdlib_files
from mdmscale.data.preparation.tokenizer_training import train_tokenizer
from mdmscale.diffusion.sample import Sample
from mdmscale.models.tokenizer import load_tokenizer

EVERY = 20  # of this many files one is for tuning, and one is held out


@dataclass(frozen=True)
class FromScratchSettings:
    """Sizes of the part from scratch. The arms say how many samples a step has."""

    vocab_size: int = 512  # of the tokenizer
    length: int = 64
    hidden_size: int = 64
    num_layers: int = 3
    intermediate_size: int = 192
    num_steps: int = 1500
    batch_size: int = 1
    num_sequences: int = 12_000
    warmup_steps: int = 50
    weight_decay: float = 0.1
    ema_decay: float = 0.97
    rates: tuple[float, ...] = (1.5e-3, 3e-3, 6e-3, 12e-3)
    tuning_seeds: int = 2
    num_texts: int = 64  # sequences for tuning, and as many held-out ones
    likelihood_rows: int = 16
    probe_samples: int = 4  # of P-POTS


@dataclass(frozen=True)
class FromScratch:
    """The part. See part.Part."""

    settings: FromScratchSettings

    name = "from_scratch"
    decodes = False

    @property
    def shape(self) -> ModelShape:
        settings = self.settings
        return ModelShape(
            settings.vocab_size + 1,
            settings.hidden_size,
            settings.num_layers,
            num_heads=4,
            intermediate_size=settings.intermediate_size,
        )

    @property
    def length(self) -> int:
        return self.settings.length

    def diffusion(self, arm: Arm) -> DiffusionSection:
        """The arm's options, with probes before the start, after a tenth of the steps and after half."""
        num_steps = self.settings.num_steps
        return arm.probing(self.settings.probe_samples, [0, num_steps // 10, num_steps // 2])

    def scored_rows(self, stage: Stage) -> int:
        num = self.settings.num_texts * (1 if stage == "tuning" else 2)
        return num * self.settings.likelihood_rows

    def samples(self, folder: Path) -> list[Sample]:
        eligible = np.ones(self.settings.length, dtype=bool)
        return [Sample(row, eligible) for row in load_arrays(text_path(folder))["train"].astype(np.int64)]

    def texts(self, folder: Path, stage: Stage) -> np.ndarray:
        """Sequences, int64 [num_texts, length]."""
        return load_arrays(text_path(folder))[stage].astype(np.int64)

    def model(self, folder: Path, arm: Arm, seeds: list[int]) -> StackedModel:
        return StackedModel.fresh(self.shape, seeds)


def text_path(folder: Path) -> Path:
    return folder / "text.npz"


def prepare_text(part: FromScratch, folder: Path) -> None:
    """Train a tokenizer on the standard library and write its sequences: train, tuning, and final ones.

    Whole files are held out, so that no sequence has a neighbour in training.
    """
    settings = part.settings
    files = stdlib_files()
    texts = [file.read_text(encoding="utf-8", errors="ignore") for file in files]
    train_tokenizer(texts, settings.vocab_size, folder / "tokenizer")
    tokenizer = load_tokenizer(str(folder / "tokenizer"))
    parts: dict[str, list[np.ndarray]] = {"train": [], "tuning": [], "final": []}
    wanted = {"train": settings.num_sequences, "tuning": settings.num_texts, "final": settings.num_texts}
    order = np.random.Generator(np.random.Philox(0)).permutation(len(texts))
    for place, text in enumerate(texts[number] for number in order):
        name = {0: "tuning", 1: "final"}.get(place % EVERY, "train")
        if sum(map(len, parts[name])) < wanted[name]:
            ids = np.array(tokenizer.encode(text, add_special_tokens=False), dtype=np.uint16)
            num = len(ids) // settings.length
            rows = ids[: num * settings.length].reshape(num, settings.length)
            # a few from each file, so that no long one is all there is
            parts[name].append(rows if name == "train" else rows[:: max(1, num // 8)])
    arrays = {name: np.concatenate(rows)[: wanted[name]] for name, rows in parts.items()}
    save_arrays(text_path(folder), arrays)
