"""The choice between kinds of data."""

from mdmscale.config.data import DataSection
from mdmscale.data.sft_source import SFTSource
from mdmscale.data.source import SampleSource
from mdmscale.data.token_source import TokenSource


def open_source(data: DataSection, seed: int, vocab_size: int, eos_token_id: int | None) -> SampleSource:
    """Open the shards that `data.path` names.

    For kind sft the paths name prepared shards: .jsonl files are encoded first (training/run_data.py).

    Raises:
        UserError: for missing, damaged or empty shards, ids outside the vocabulary, and data too small.
    """
    match data.kind:
        case "tokens":
            return TokenSource(data, seed, vocab_size)
        case "sft":
            return SFTSource(data, seed, vocab_size, eos_token_id)
