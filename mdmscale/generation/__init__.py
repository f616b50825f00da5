"""Sampling from masked diffusion models. The calls that a program needs; nothing here imports torch yet."""

from mdmscale.generation.loading import LoadedModel, load_model
from mdmscale.generation.options import GenerationOptions
from mdmscale.generation.prompts import (
    Request,
    encode_ids,
    encode_infilling,
    encode_messages,
    encode_prompt,
)
from mdmscale.generation.sampler import Generation, generate, stream

__all__ = [
    "Generation",
    "GenerationOptions",
    "LoadedModel",
    "Request",
    "encode_ids",
    "encode_infilling",
    "encode_messages",
    "encode_prompt",
    "generate",
    "load_model",
    "stream",
]
