"""The masked diffusion model as DeepSpeed sees it: backbone and masked-only head in one forward."""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from mdmscale.config.section import HeadKind
from mdmscale.models.annealing import for_attention
from mdmscale.models.head import MaskedCrossEntropyHead
from mdmscale.models.packed_attention import PackedRows


class MaskedDiffusionModel(nn.Module):
    """A causal-LM class made bidirectional (`is_causal: false`). Its head computes the loss where masked.

    With `is_causal: true` it trains an autoregressive model, whose targets are called masked all the same.

    Args:
        backbone: a Hugging Face model with `.model` (decoder) and `.lm_head`.
        head_chunk_size: masked positions projected to the vocabulary at a time; None: see shape.head_chunk.
        head: how the logits become a loss, see head.is_fused.
    """

    def __init__(
        self, backbone: PreTrainedModel, head_chunk_size: int | None, head: HeadKind = "auto"
    ) -> None:
        super().__init__()
        backbone.lm_head = MaskedCrossEntropyHead.replacing(backbone.lm_head, head_chunk_size, head)
        self.backbone = backbone

    def forward(
        self,
        input_ids: torch.Tensor,  # [rows, length]
        attention_mask: torch.Tensor | None,  # see Batch
        positions: torch.Tensor,  # [masked], index in the flattened rows that a target is predicted from
        targets: torch.Tensor | None = None,  # [masked]
        weights: torch.Tensor | None = None,  # [masked]
        position_ids: torch.Tensor | None = None,  # [1 or rows, length]; None: 0, 1, ...
        row_lengths: tuple[int, ...] | None = None,  # of packed rows, see packed_attention.PackedRows
    ) -> Any:
        """The weighted loss over masked positions, and each one's loss and squared logit-gradient norm.

        Without targets, the logits at the positions instead: [masked, vocab], of which a tensor-parallel rank
        has its rows of the vocabulary.

        Returns:
            HeadOutput, or a tensor.
        """
        if self.backbone.config.is_causal:
            attention_mask = None  # padding is at the end of rows, where no token sees it
        implementation = self.backbone.config._attn_implementation
        if attention_mask is not None and implementation != "flash_attention_2":
            if attention_mask.dim() == 2:  # or transformers would ask the device whether it masks anything
                attention_mask = attention_mask.bool()[:, None, None, :]  # [rows, 1, 1, length]
            attention_mask = for_attention(attention_mask, implementation, self.backbone.dtype)
        packed = {} if row_lengths is None else {"packed_rows": PackedRows.of(row_lengths, input_ids.device)}
        decoder = self.backbone.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=False,
            **packed,
        )
        hidden = decoder.last_hidden_state.flatten(0, 1)[positions]  # [masked, hidden]
        return self.backbone.lm_head(hidden, targets, weights)
