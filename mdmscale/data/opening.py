"""Opens the data source of the configured kind."""

from mdmscale.config.data import DataSection
from mdmscale.data.sft_source import SFTSource
from mdmscale.data.skipping import SkippingSource, merged_ranges
from mdmscale.data.source import SampleSource
from mdmscale.data.token_source import TokenSource


def open_source(
    data: DataSection,
    seed: int,
    vocab_size: int,
    eos_token_id: int | None,
    mask_token_id: int | None = None,
) -> SampleSource:
    """Open the shards that `data.path` names, without the samples of `data.skip`.

    For kind sft the paths must name encoded shards. training/run_data.py encodes other files before this.

    Args:
        mask_token_id: the model's, which the shards must not hold; None checks nothing.

    Raises:
        UserError: for missing, damaged or empty shards, ids outside the vocabulary, mask tokens in the text,
            or too little data.
    """
    source: SampleSource
    match data.kind:
        case "tokens":
            source = TokenSource(data, seed, vocab_size, mask_token_id)
        case "sft":
            source = SFTSource(data, seed, vocab_size, eos_token_id, mask_token_id)
    return SkippingSource(source, merged_ranges(data.skip)) if data.skip else source
