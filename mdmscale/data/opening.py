"""Opens the data source of the configured kind."""

from mdmscale.config.data import DataSection
from mdmscale.data.sft_source import SFTSource
from mdmscale.data.source import SampleSource
from mdmscale.data.token_source import TokenSource


def open_source(data: DataSection, seed: int, vocab_size: int, eos_token_id: int | None) -> SampleSource:
    """Open the shards that `data.path` names.

    For kind sft the paths must name encoded shards. training/run_data.py encodes .jsonl files before this.

    Raises:
        UserError: for missing, damaged or empty shards, ids outside the vocabulary, or too little data.
    """
    match data.kind:
        case "tokens":
            return TokenSource(data, seed, vocab_size)
        case "sft":
            return SFTSource(data, seed, vocab_size, eos_token_id)
