"""Small stacked models, and the same model as Hugging Face's Llama."""

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mdmscale.analysis.decision.stacked_model import ModelShape, StackedModel
from mdmscale.diffusion.sample import Sample
from mdmscale.models.mdm import MaskedDiffusionModel

SHAPE = ModelShape(vocab_size=12, hidden_size=16, num_layers=2, num_heads=2, intermediate_size=24)


def as_llama(shape: ModelShape, values: torch.Tensor, is_causal: bool = False) -> MaskedDiffusionModel:
    """The model of a lane whose parameters are `values` [parameters], as training builds it."""
    config = LlamaConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        rms_norm_eps=shape.rms_norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        tie_word_embeddings=True,
        is_causal=is_causal,
        attention_dropout=0.0,
    )
    model = LlamaForCausalLM(config)
    model.load_state_dict(named(shape, values), strict=False)
    model.tie_weights()
    return MaskedDiffusionModel(model, head_chunk_size=None)


def named(shape: ModelShape, values: torch.Tensor) -> dict[str, torch.Tensor]:
    """The parameters of a lane under Llama's names."""
    stack = StackedModel(shape, values[None])
    own = {name: each[0].detach() for name, each in stack.parameters.items()}
    found = {"model.embed_tokens.weight": own["embedding"], "model.norm.weight": own["norm"]}
    for layer in range(shape.num_layers):
        to = f"model.layers.{layer}."
        parts = own[f"{layer}.qkv"].chunk(3)
        found |= {f"{to}self_attn.{name}_proj.weight": part for name, part in zip("qkv", parts, strict=True)}
        gate, up = own[f"{layer}.gate_up"].chunk(2)
        found |= {
            f"{to}self_attn.o_proj.weight": own[f"{layer}.out"],
            f"{to}mlp.gate_proj.weight": gate,
            f"{to}mlp.up_proj.weight": up,
            f"{to}mlp.down_proj.weight": own[f"{layer}.down"],
            f"{to}input_layernorm.weight": own[f"{layer}.attention_norm"],
            f"{to}post_attention_layernorm.weight": own[f"{layer}.mlp_norm"],
        }
    return found


def samples(num: int = 8, length: int = 9, prompt: int = 3) -> list[Sample]:
    draws = np.random.default_rng(0)
    eligible = np.arange(length) >= prompt
    return [Sample(draws.integers(SHAPE.mask_token_id, size=length), eligible) for _ in range(num)]
