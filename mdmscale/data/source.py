"""The interface of every kind of data: sample n as clean tokens."""

from typing import Protocol

from mdmscale.config.data import DataSection
from mdmscale.diffusion.sample import Sample


class SampleSource(Protocol):
    """Endless training samples and a fixed held-out set. Each sample is a pure function of its index."""

    num_train: int  # sequences (tokens) or samples (sft) in one epoch
    num_held_out: int
    fingerprint: str  # identifies the content and the options that shape samples, independent of paths
    description: str  # paths and identity of the data, for messages

    def train_sample(self, index: int) -> Sample:
        """Global sample `index` >= 0. The index keeps counting over epochs."""

    def held_out_sample(self, index: int) -> Sample:
        """Held-out sample `index`, 0 <= index < num_held_out. It is the same in every run."""


def path_list(data: DataSection) -> list[str]:
    """`data.path` as a list."""
    return [data.path] if isinstance(data.path, str) else list(data.path)


def describe(data: DataSection, identity: str) -> str:
    """One line that describes the data in messages."""
    return f"{', '.join(path_list(data))} ({identity})"
