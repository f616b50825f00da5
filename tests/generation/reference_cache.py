"""A Llama with bidirectional attention whose keys and values are kept by hand, for one unpadded text."""

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb


class ExplicitCache:
    """Compute some columns of a text; the keys and values of the others are those of their last pass."""

    def __init__(self, model: PreTrainedModel, length: int) -> None:
        self.model = model.model
        self.head = model.lm_head
        num_heads, size = model.config.num_attention_heads, model.config.head_dim
        shape = (len(self.model.layers), num_heads, length, size)
        self.keys, self.values = torch.zeros(shape), torch.zeros(shape)

    @torch.inference_mode()
    def logits(self, text: list[int], columns: list[int]) -> torch.Tensor:
        """Logits [columns, vocab], after the keys and values of these columns have been replaced."""
        hidden = self.model.embed_tokens(torch.tensor([[text[column] for column in columns]]))
        cos, sin = self.model.rotary_emb(hidden, torch.tensor([columns]))
        for number, layer in enumerate(self.model.layers):
            normed, attention = layer.input_layernorm(hidden), layer.self_attn
            query, key, value = (
                each(normed).view(1, len(columns), -1, attention.head_dim).transpose(1, 2)
                for each in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
            query, key = apply_rotary_pos_emb(query, key, cos, sin)
            self.keys[number][:, columns], self.values[number][:, columns] = key[0], value[0]
            mixed = F.scaled_dot_product_attention(query, self.keys[number][None], self.values[number][None])
            hidden = hidden + attention.o_proj(mixed.transpose(1, 2).flatten(2))
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        return self.head(self.model.norm(hidden))[0]
