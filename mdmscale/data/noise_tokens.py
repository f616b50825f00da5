"""Looks up the tokens of ISAD and SyRM in a run's tokenizer."""

import re
from typing import TYPE_CHECKING

import numpy as np

from mdmscale.config.diffusion import DiffusionSection, ISADSection, SyRMSection
from mdmscale.diffusion.noise import Noise
from mdmscale.models.tokenizer import num_token_ids
from mdmscale.system.errors import UserError

if TYPE_CHECKING:  # without this import, workers that make batches start one second earlier
    from transformers import PreTrainedTokenizerBase


def make_noise(options: DiffusionSection, tokenizer: "PreTrainedTokenizerBase", vocab_size: int) -> Noise:
    """The noise of a run, with the tokens that ISAD and SyRM name.

    Raises:
        UserError: for ids outside the vocabulary, texts without tokens, or a pattern that matches no token.
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
    pattern = re.compile(syrm.pattern)
    special = set(tokenizer.all_special_ids)
    matching = [
        token_id
        for token_id in range(num_token_ids(tokenizer))
        if token_id not in special and pattern.search(str(tokenizer.decode([token_id])))
    ]
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
