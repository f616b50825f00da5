"""The forward pass for sampling: logits at masked positions only, with guidance and a cache.

Legend: rows = texts; length = padded tokens; wanted = positions to predict; vocab = logit columns.
"""

import torch
from transformers import PreTrainedModel

from mdmscale.generation.batch import GIVEN, PaddedBatch
from mdmscale.generation.block_cache import BlockCache
from mdmscale.generation.options import Cache


class Predictor:
    """Compute the logits of a batch's wanted positions.

    Args:
        model: a Hugging Face causal-LM class with `config.is_causal = False`.
        batch: the texts before sampling.
        logit_shift: read position i from the logits at i - 1, and position 0 from the logits at 0 (Dream).
        guidance: w of l_0 + (1 + w)(l - l_0), where the pass for l_0 sees a mask in place of every given
            token (arXiv 2207.12598 in LLaDA's form); 0 leaves that pass out.
        cache: keep the keys and values of the columns before a block (prefix), or of all columns outside it
            (dual), from the block's first pass until its last; see `BlockCache`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        batch: PaddedBatch,
        *,
        logit_shift: bool = False,
        guidance: float = 0.0,
        cache: Cache | None = None,
    ) -> None:
        self.model = model
        self.batch = batch
        self.logit_shift = logit_shift
        self.guidance = guidance
        self.cache_kind = cache
        self._cache: BlockCache | None = None

    def start_block(self) -> None:
        """Forget what is cached: it lacks the block that has just been finished."""
        self._cache = None

    def __call__(self, tokens: torch.Tensor, is_wanted: torch.Tensor) -> torch.Tensor:
        """Predict the wanted positions.

        Args:
            tokens: int64 [rows, length].
            is_wanted: bool [rows, length]. Rows without a wanted position are left out of the pass.

        Returns:
            Logits [wanted, vocab] in row-major order.
        """
        row_of, column_of = is_wanted.nonzero(as_tuple=True)  # [wanted]
        source = column_of
        if self.logit_shift:  # a text's first position may follow padding, which has no logits to read
            source = column_of - (self.batch.position_ids[row_of, column_of] > 0).long()
        read_from = source.unique()  # [columns], in order
        rows = row_of.unique()  # [active]
        if self.cache_kind is not None:
            if self._cache is None:
                span = (int(read_from[0]), int(column_of.max()), tokens.shape[1])
                self._cache = BlockCache(self.model, self.cache_kind, rows, *span)
            rows = self._cache.rows
        logits = self._forward(tokens[rows], rows, read_from)  # [active, columns, vocab]
        return logits[torch.searchsorted(rows, row_of), torch.searchsorted(read_from, source)]

    def _forward(self, tokens: torch.Tensor, rows: torch.Tensor, read_from: torch.Tensor) -> torch.Tensor:
        """Logits [active, columns, vocab] of the columns `read_from`, with guidance where it is set."""
        attention_mask = self.batch.is_real[rows].long() if self.batch.is_padded else None
        position_ids = self.batch.position_ids[rows]
        if self.guidance:
            was_given = self.batch.is_real[rows] & (self.batch.blocks[rows] == GIVEN)
            tokens = torch.cat([tokens, tokens.masked_fill(was_given, self.batch.mask_token_id)])
            position_ids = position_ids.repeat(2, 1)
            attention_mask = None if attention_mask is None else attention_mask.repeat(2, 1)
        window, cached = slice(None), {"use_cache": False}
        if self._cache is not None:
            window, cached = self._cache.window, self._cache.model_inputs
            attention_mask = None if attention_mask is None else self._cache.keys_in_order(attention_mask)
        output = self.model(
            input_ids=tokens[:, window],
            attention_mask=attention_mask,
            position_ids=position_ids[:, window],
            logits_to_keep=read_from - (window.start or 0),
            **cached,
        )
        if self._cache is not None:
            self._cache.after_pass()
        if not self.guidance:
            return output.logits
        guided, free = output.logits.float().chunk(2)
        return free + (1 + self.guidance) * (guided - free)
