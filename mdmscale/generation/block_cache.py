"""Keys and values of the tokens that a block's later passes do not compute (arXiv 2505.22618).

A block's first pass computes every column. The later ones compute a window of columns only, and take the keys
and values of the others from the first pass. In a bidirectional model a full pass would give others, as they
depend on the tokens that the block has got since.

Legend: rows = texts; length = padded tokens; kept = cached columns; window = columns that are computed.
"""

from inspect import signature
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel

from mdmscale.generation.options import Cache
from mdmscale.system.errors import UserError


class BlockCache:
    """The cache of one block.

    Args:
        kind: prefix computes the columns from the block to the end; dual computes the block alone.
        rows: the batch's rows that take part in the block.
        first: the first column of the window.
        last: the last column of the block.
        length: the batch's number of columns.
    """

    def __init__(
        self, model: PreTrainedModel, kind: Cache, rows: torch.Tensor, first: int, last: int, length: int
    ) -> None:
        self.rows = rows
        self.cache = DynamicCache(config=model.config)
        if kind == "dual" and any(getattr(layer, "is_sliding", False) for layer in self.cache.layers):
            raise UserError(
                "cache = dual: the model attends within a sliding window, which needs its keys in order; "
                "choose prefix"
            )
        self._keyword = cache_keyword(model)
        end = last + 1 if kind == "dual" else length
        columns = torch.arange(length, device=rows.device)
        is_kept = (columns < first) | (columns >= end)
        self._kept = columns[is_kept]
        self._window = slice(first, end)
        self.is_filled = False

    @property
    def window(self) -> slice:
        """The columns that the next pass computes."""
        return self._window if self.is_filled else slice(None)

    def keys_in_order(self, columns: torch.Tensor) -> torch.Tensor:
        """[rows, length], such as an attention mask, with its columns as the next pass has its keys.

        Those of the window come last. Attention does not mind, as the keys carry their positions.
        """
        if not self.is_filled:
            return columns
        return torch.cat([columns[:, self._kept], columns[:, self._window]], dim=1)

    @property
    def model_inputs(self) -> dict[str, Any]:
        return {"use_cache": True, self._keyword: self.cache} if len(self._kept) else {"use_cache": False}

    def after_pass(self) -> None:
        """Keep the keys and values of the first pass outside the window; drop those of a later pass."""
        if not len(self._kept):
            return
        if self.is_filled:
            self.cache.crop(len(self._kept) - int(self.cache.get_seq_length()))
            return
        layers: list[Any] = self.cache.layers  # typed Any: layers of other kinds have no keys
        for layer in layers:
            if not layer.is_initialized:  # a layer that shares another's keys
                continue
            layer.keys = layer.keys.index_select(-2, self._kept)
            layer.values = layer.values.index_select(-2, self._kept)
        self.is_filled = True


def cache_keyword(model: PreTrainedModel) -> str:
    """The argument that takes a cache.

    Before transformers 5.24 it is past_key_values, from 5.40 on cache; in between both work.
    """
    return "cache" if "cache" in signature(model.forward).parameters else "past_key_values"
