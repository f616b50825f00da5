"""A tiny random Llama in double precision, whose losses differ clearly from token to token."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mdmscale.models.mdm import MaskedDiffusionModel


def make_model(vocab_size: int, head_chunk_size: int | None) -> MaskedDiffusionModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        is_causal=False,
        initializer_range=0.5,
    )
    return MaskedDiffusionModel(LlamaForCausalLM(config).double().eval(), head_chunk_size)
