"""Looks up the tokens of ISAD and SyRM in a run's tokenizer."""

from typing import TYPE_CHECKING

import numpy as np

from mdmscale.config.diffusion import DiffusionSection, ISADSection, SyRMSection
from mdmscale.diffusion.noise import Noise
from mdmscale.models.tokenizer import num_token_ids
from mdmscale.system.bounded import BoundedError
from mdmscale.system.errors import UserError
from mdmscale.system.patterns import found_in

if TYPE_CHECKING:  # without this import, workers that make batches start one second earlier
    from transformers import PreTrainedTokenizerBase


def make_noise(options: DiffusionSection, tokenizer: "PreTrainedTokenizerBase", vocab_size: int) -> Noise:
    """The noise of a run, with the tokens that ISAD and SyRM name.

    Raises:
        UserError: for ids outside the vocabulary, texts without tokens, or a pattern that matches no token or
            takes too long.
    """
    delimiters = structural = None
    if options.isad is not None:
        delimiters = _table(_delimiter_ids(options.isad, tokenizer), vocab_size, "diffusion.isad.tokens")
    if options.syrm is not None:
        structural = _table(_structural_ids(options.syrm, tokenizer), vocab_size, "diffusion.syrm.tokens")
    return Noise(options, delimiters, structural)


def _delimiter_ids(isad: ISADSection, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    ids: list[int] = []
    for token in isad.tokens:
        found = [token] if isinstance(token, int) else tokenizer.encode(token, add_special_tokens=False)
        if not found:
            raise UserError(f"diffusion.isad.tokens: this tokenizer makes no token from {token!r}")
        ids += found
    return ids


def _structural_ids(syrm: SyRMSection, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    if syrm.pattern is None:
        return syrm.tokens
    special = set(tokenizer.all_special_ids)
    ordinary = [token_id for token_id in range(num_token_ids(tokenizer)) if token_id not in special]
    try:
        found = found_in(syrm.pattern, [str(tokenizer.decode([token_id])) for token_id in ordinary])
    except BoundedError as error:
        raise UserError(
            f"diffusion.syrm.pattern = {syrm.pattern!r}: {error}; simplify it (no repetition inside another)"
        ) from None
    matching = [ordinary[number] for number in found]
    if not matching:
        raise UserError(f"diffusion.syrm.pattern = {syrm.pattern!r} matches no token of the tokenizer")
    return syrm.tokens + matching


def _table(ids: list[int], vocab_size: int, name: str) -> np.ndarray:
    beyond = [token_id for token_id in ids if not 0 <= token_id < vocab_size]
    if beyond:
        raise UserError(f"{name}: id {beyond[0]} is not among the model's {vocab_size} tokens")
    table = np.zeros(vocab_size, dtype=bool)
    table[ids] = True
    return table
