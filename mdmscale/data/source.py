"""Sample n as clean tokens: what every kind of data offers."""

from typing import Protocol

from mdmscale.config.data import DataSection
from mdmscale.diffusion.sample import Sample


class SampleSource(Protocol):
    """Training samples without end and a fixed held-out set, each a pure function of its index."""

    num_train: int  # sequences (tokens) or samples (sft) in one epoch
    num_held_out: int
    fingerprint: str  # identity of the content and of the options that shape samples; no path enters
    description: str  # where the data lie, for messages

    def train_sample(self, index: int) -> Sample:
        """Global sample `index` >= 0, which runs on over epochs."""

    def held_out_sample(self, index: int) -> Sample:
        """Held-out sample `index`, 0 <= index < num_held_out; the same in every run."""


def path_list(data: DataSection) -> list[str]:
    """`data.path` as a list."""
    return [data.path] if isinstance(data.path, str) else list(data.path)


def describe(data: DataSection, identity: str) -> str:
    """One line that names the data in messages."""
    return f"{', '.join(path_list(data))} ({identity})"
