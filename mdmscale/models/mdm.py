"""The masked diffusion model as DeepSpeed sees it: backbone and masked-only head in one forward."""

import torch
from torch import nn
from transformers import PreTrainedModel

from mdmscale.models.annealing import for_attention
from mdmscale.models.head import HeadOutput, MaskedCrossEntropyHead


class MaskedDiffusionModel(nn.Module):
    """A causal-LM class made bidirectional (`is_causal: false`), whose head computes the loss where masked.

    Args:
        backbone: a Hugging Face model with `.model` (decoder) and `.lm_head`.
        logit_shift: predict position i from hidden state i - 1, and position 0 from itself (Dream).
        head_chunk_size: masked positions projected to the vocabulary at a time.
    """

    def __init__(self, backbone: PreTrainedModel, logit_shift: bool, head_chunk_size: int) -> None:
        super().__init__()
        backbone.lm_head = MaskedCrossEntropyHead.replacing(backbone.lm_head, head_chunk_size)
        self.backbone = backbone
        self.logit_shift = logit_shift

    def forward(
        self,
        input_ids: torch.Tensor,  # [rows, length]
        attention_mask: torch.Tensor | None,  # [rows, length], [rows, 1, length, length], or None
        positions: torch.Tensor,  # [masked], into the flattened rows
        targets: torch.Tensor,  # [masked]
        weights: torch.Tensor,  # [masked]
        position_ids: torch.Tensor | None = None,  # [1, length]; None: 0, 1, ...
    ) -> HeadOutput:
        """Weighted loss over masked positions, with each position's loss and squared logit-gradient norm."""
        if attention_mask is not None and attention_mask.dim() == 4:
            implementation = self.backbone.config._attn_implementation
            attention_mask = for_attention(attention_mask, implementation, self.backbone.dtype)
        decoder = self.backbone.model(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=False
        )
        if self.logit_shift:
            positions = torch.where(positions % input_ids.shape[1] == 0, positions, positions - 1)
        hidden = decoder.last_hidden_state.flatten(0, 1)[positions]  # [masked, hidden]
        return self.backbone.lm_head(hidden, targets, weights)
