"""Sample text from masked diffusion models: the calls that a program needs. Importing them loads no torch."""

from mdmscale.generation.options import GenerationOptions
from mdmscale.generation.prompts import (
    Request,
    encode_ids,
    encode_infilling,
    encode_messages,
    encode_prompt,
)
from mdmscale.generation.sampler import Generation, generate, stream
from mdmscale.models.opening import LoadedModel, load_model

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
