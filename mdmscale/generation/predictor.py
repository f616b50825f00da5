"""The forward pass for sampling: logits at masked positions only, with guidance and a prefix cache.

Legend: rows = texts; length = padded tokens; wanted = positions to predict; vocab = logit columns.
"""

from inspect import signature
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel

from mdmscale.generation.batch import GIVEN, PaddedBatch


class Predictor:
    """Compute the logits of a batch's wanted positions.

    Args:
        model: a Hugging Face causal-LM class with `config.is_causal = False`.
        batch: the texts before sampling.
        logit_shift: read position i from the logits at i - 1, and position 0 from the logits at 0 (Dream).
        guidance: w of l_0 + (1 + w)(l - l_0), where the pass for l_0 sees a mask in place of every given
            token (arXiv 2207.12598 in LLaDA's form); 0 leaves that pass out.
        cache: keep the keys and values of the columns before a block's first mask, from the block's first
            pass until its last. A full pass would give others, as in a bidirectional model they depend on
            later tokens, too.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        batch: PaddedBatch,
        *,
        logit_shift: bool = False,
        guidance: float = 0.0,
        cache: bool = False,
    ) -> None:
        self.model = model
        self.batch = batch
        self.logit_shift = logit_shift
        self.guidance = guidance
        self.keeps_prefix = cache
        self._prefix: _Prefix | None = None

    def start_block(self) -> None:
        """Forget the cached prefix: it lacks the block that has just been finished."""
        self._prefix = None

    def __call__(self, tokens: torch.Tensor, is_wanted: torch.Tensor) -> torch.Tensor:
        """Predict the wanted positions.

        Args:
            tokens: int64 [rows, length].
            is_wanted: bool [rows, length]. Rows without a wanted position are left out of the pass.

        Returns:
            Logits [wanted, vocab] in row-major order.
        """
        columns = is_wanted.any(dim=0).nonzero().squeeze(1)  # [columns]
        read_from = (columns - 1).clamp(min=0) if self.logit_shift else columns
        rows = is_wanted.any(dim=1).nonzero().squeeze(1)  # [active]
        if self.keeps_prefix:
            if self._prefix is None:
                self._prefix = _Prefix(self.model, rows, int(read_from[0]))
            rows = self._prefix.rows
        logits = self._forward(tokens[rows], rows, read_from)  # [active, columns, vocab]
        return logits[is_wanted[rows][:, columns]]

    def _forward(self, tokens: torch.Tensor, rows: torch.Tensor, read_from: torch.Tensor) -> torch.Tensor:
        """Logits [active, columns, vocab] of the columns `read_from`, with guidance where it is set."""
        attention_mask = self.batch.is_real[rows].long() if self.batch.is_padded else None
        position_ids = self.batch.position_ids[rows]
        if self.guidance:
            was_given = self.batch.is_real[rows] & (self.batch.blocks[rows] == GIVEN)
            tokens = torch.cat([tokens, tokens.masked_fill(was_given, self.batch.mask_token_id)])
            position_ids = position_ids.repeat(2, 1)
            attention_mask = None if attention_mask is None else attention_mask.repeat(2, 1)
        first = 0 if self._prefix is None else self._prefix.num_known
        output = self.model(
            input_ids=tokens[:, first:],
            attention_mask=attention_mask,
            position_ids=position_ids[:, first:],
            logits_to_keep=read_from - first,
            **({"use_cache": False} if self._prefix is None else self._prefix.model_inputs),
        )
        if self._prefix is not None:
            self._prefix.cut()
        if not self.guidance:
            return output.logits
        guided, free = output.logits.float().chunk(2)
        return free + (1 + self.guidance) * (guided - free)


class _Prefix:
    """Keys and values of the first `length` columns of `rows`, which lie before a block's first mask."""

    def __init__(self, model: PreTrainedModel, rows: torch.Tensor, length: int) -> None:
        self.cache = DynamicCache(config=model.config)
        # Before transformers 5.24 the argument is past_key_values, from 5.40 on cache; in between both work.
        self._keyword = "cache" if "cache" in signature(model.forward).parameters else "past_key_values"
        self.rows = rows
        self.length = length

    @property
    def num_known(self) -> int:
        """How many columns the next pass takes from the cache: none in a block's first pass."""
        return int(self.cache.get_seq_length())

    @property
    def model_inputs(self) -> dict[str, Any]:
        return {"use_cache": True, self._keyword: self.cache} if self.length else {"use_cache": False}

    def cut(self) -> None:
        """Drop the columns of the block and after it, which the last pass added."""
        if added := self.num_known - self.length * bool(self.num_known):
            self.cache.crop(-added)
