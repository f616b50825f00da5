"""Print the first samples of a run as text, with what is trained in colour: `train.py --show`."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

from rich.console import Console

from mdmscale.config.run import RunConfig
from mdmscale.data.opening import open_source
from mdmscale.data.preparation.sft import fitted_length, read_samples
from mdmscale.data.preparation.sft_files import is_encoded_by_run, matching_files
from mdmscale.data.preparation.show import print_samples
from mdmscale.data.sft_source import Fill
from mdmscale.data.source import path_list
from mdmscale.data.tokenizer_record import check_tokenizer
from mdmscale.diffusion.sample import Sample
from mdmscale.models.backbone import model_config, num_scratch_tokens, run_tokenizer


def show_data(config: RunConfig, num_samples: int) -> None:
    """Print the first samples, as training gets them: cut, and filled with EOS.

    Files are read only as far as needed. Of prepared shards these are the samples of the first step.

    Raises:
        UserError: as opening the data does.
    """
    tokenizer: Any = run_tokenizer(config.model)
    encoded = is_encoded_by_run(config.data)
    samples = _of_lines(config, tokenizer) if encoded else _of_shards(config, tokenizer)
    print_samples(islice(samples, num_samples), tokenizer, Console())


def _of_lines(config: RunConfig, tokenizer: Any) -> Iterator[tuple[str, Sample]]:
    data = config.data
    fill = Fill(data.fill_multiple, data.sequence_length, tokenizer.eos_token_id)
    files = [file for path in path_list(data) for file in matching_files(path)]
    samples = read_samples(files, tokenizer, train_on=data.train_on, special_tokens=data.special_tokens)
    for sample, where in samples:
        length = 0 if sample is None else fitted_length(sample, where, data.sequence_length, data.too_long)
        if sample is not None and length:
            yield where, fill(Sample(sample.token_ids[:length], sample.trained[:length]))


def _of_shards(config: RunConfig, tokenizer: Any) -> Iterator[tuple[str, Sample]]:
    check_tokenizer(config.data, tokenizer)
    vocab_size = model_config(config.model, num_scratch_tokens(tokenizer)).vocab_size
    source = open_source(config.data, config.run.seed, vocab_size, tokenizer.eos_token_id)
    for index in range(source.num_train):
        yield f"sample {index}", source.train_sample(index)
