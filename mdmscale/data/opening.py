"""From a run's config to its open sample source."""

import hashlib
from pathlib import Path

from mdmscale.config import RunConfig
from mdmscale.data.sft import encode_sft
from mdmscale.data.source import SampleSource, open_source
from mdmscale.distributed import Ranks, on_first_rank
from mdmscale.models.backbone import Backbone


def open_run_data(config: RunConfig, backbone: Backbone, folder: Path, ranks: Ranks) -> SampleSource:
    """Open `data.path`; SFT JSONL is tokenised first, once a run, by rank 0, into the run folder."""
    data = config.data
    paths = [data.path] if isinstance(data.path, str) else data.path
    if data.kind == "sft" and any(path.endswith(".jsonl") for path in paths):
        files = [Path(path) for path in paths]
        prefix = on_first_rank(ranks, lambda: _encode_once(config, backbone, files, folder / "data"))
        data = data.model_copy(update={"path": str(prefix)})
    return open_source(
        data, config.run.seed, backbone.model.config.vocab_size, backbone.tokenizer.eos_token_id
    )


def _encode_once(config: RunConfig, backbone: Backbone, files: list[Path], folder: Path) -> Path:
    """The prefix of the encoded files, named by their content and what else decides the result."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    tokenizer = backbone.tokenizer
    digest.update(repr((sorted(tokenizer.get_vocab().items()), tokenizer.chat_template)).encode())
    digest.update(f"{config.data.sequence_length} {config.data.too_long}".encode())
    prefix = folder / f"sft-{digest.hexdigest()[:12]}"
    if not prefix.with_suffix(".idx").exists():
        encode_sft(
            files,
            tokenizer,
            prefix,
            sequence_length=config.data.sequence_length,
            too_long=config.data.too_long,
        )
    return prefix
