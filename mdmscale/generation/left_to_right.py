"""Which options of sampling mean something for an autoregressive model. Needs no torch."""

from dataclasses import fields
from typing import Any

from mdmscale.generation.options import GenerationOptions
from mdmscale.models.opening import ModelDescription
from mdmscale.system.errors import UserError

USED = ("length", "temperature", "top_p", "top_k", "eos", "padding", "seed")
"""The options that decide anything there. The others are about the order in which masks go."""


def left_to_right(description: ModelDescription, values: dict[str, Any]) -> dict[str, Any]:
    """A task's or a preset's options as the model can use them: all of them, unless it is autoregressive."""
    if description.objective != "ar":
        return values
    return {name: value for name, value in values.items() if name in USED}


def check_options(description: ModelDescription, options: GenerationOptions) -> None:
    """Refuse options of denoising where the model is autoregressive.

    Raises:
        UserError: naming each.
    """
    if description.objective != "ar":
        return
    problems = [
        f"{field.name} = {getattr(options, field.name)}: is about filling in masks, but {description.folder} "
        f"is an autoregressive model; leave {field.name} out"
        for field in fields(options)
        if field.name not in USED and getattr(options, field.name) != field.default
    ]
    if options.eos not in ("stop", "never"):
        problems.append(f"eos = {options.eos}: an autoregressive model ends at its EOS; choose stop or never")
    if problems:
        raise UserError(*problems)


def without_denoising(options: GenerationOptions) -> GenerationOptions:
    """The options that decide anything there, the others at their defaults."""
    draws = ("top_p", "top_k") if options.temperature > 0 else ()
    kept = {name: getattr(options, name) for name in ("length", "temperature", "seed", *draws)}
    return GenerationOptions(**kept, eos="never" if options.eos == "never" else "stop")
