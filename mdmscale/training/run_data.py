"""Opens the training data that a run's config names."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mdmscale.config.run import RunConfig
from mdmscale.data.indexed import idx_path
from mdmscale.data.opening import open_source
from mdmscale.data.preparation.sft import encode_sft
from mdmscale.data.preparation.sft_files import is_encoded_by_run, matching_files
from mdmscale.data.source import SampleSource, describe, path_list
from mdmscale.data.tokenizer_record import check_tokenizer
from mdmscale.models.backbone import Backbone
from mdmscale.models.prompts import opening_ids
from mdmscale.parallel.collectives import on_every_rank, on_first_rank
from mdmscale.parallel.ranks import Ranks
from mdmscale.system.errors import UserError
from mdmscale.system.run_folder import RunFolder


def open_run_data(config: RunConfig, backbone: Backbone, folder: Path, ranks: Ranks) -> SampleSource:
    """Open `data.path`. Rank 0 first tokenises SFT files into the run folder, once per run.

    Raises:
        UserError: for data that are missing, damaged or made with another tokenizer than the run's.
    """
    data = config.data
    paths = path_list(data)
    if is_encoded_by_run(data):
        prefix = on_first_rank(ranks, lambda: _encode_once(config, backbone, paths, RunFolder(folder).data))
        data = data.model_copy(update={"path": str(prefix)})
    else:
        on_first_rank(ranks, lambda: check_tokenizer(data, backbone.tokenizer))
    vocab_size, eos_token_id = backbone.model.config.vocab_size, backbone.tokenizer.eos_token_id
    source = on_every_rank(
        ranks,
        lambda: open_source(data, config.run.seed, vocab_size, eos_token_id, backbone.mask_token_id),
    )
    # The user's paths, not those of the encoded files.
    source.description = describe(config.data, source.fingerprint)
    return source


@contextmanager
def undone_on_refusal(folder: Path, ranks: Ranks) -> Iterator[None]:
    """If the block raises a UserError, remove what it added to `folder`. The error must be on every rank."""
    before = set(folder.rglob("*"))
    new_folders = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        yield
    except UserError:
        if ranks.is_first:
            for path in set(folder.rglob("*")) - before:
                path.unlink()
            for new in new_folders:
                with suppress(OSError):  # the block did not create it
                    new.rmdir()
        raise


def _encode_once(config: RunConfig, backbone: Backbone, paths: list[str], folder: Path) -> Path:
    """Encode SFT files, unless that is done already. Returns the prefix of the encoded files.

    The prefix has a hash of everything that decides the result: content, tokenizer and options.
    """
    data, tokenizer = config.data, backbone.tokenizer
    files = [file for path in paths for file in matching_files(path)]
    options = data.model_dump(include={"sequence_length", "too_long", "train_on", "special_tokens"})
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    identity = (
        sorted(tokenizer.get_vocab().items()),
        tokenizer.chat_template,
        opening_ids(tokenizer),
        options,
    )
    digest.update(repr(identity).encode())
    prefix = folder / f"sft-{digest.hexdigest()[:12]}"
    if not idx_path(prefix).exists():
        summary = encode_sft(files, tokenizer, prefix, **options)
        print(
            f"{', '.join(map(str, files))}: {summary.num_samples:,} samples, {summary.num_tokens:,} tokens, "
            f"{summary.num_trained_tokens:,} of them trained; "
            f"{summary.num_truncated:,} samples truncated, {summary.num_dropped:,} dropped",
            flush=True,
        )
    return prefix
