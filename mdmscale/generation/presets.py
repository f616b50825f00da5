"""Named settings of sampling: those of published models and of this project's paper. Needs no torch."""

from typing import Any

from mdmscale.generation.options import GenerationOptions
from mdmscale.system.errors import UserError

PRESETS: dict[str, dict[str, Any]] = {
    # generate.py of LLaDA: one token a step, blocks of 32, no noise.
    "llada": {"length": 128, "block_length": 32},
    # The model card of Dream-v0-Instruct-7B: one token a step.
    "dream": {
        "length": 512,
        "schedule": "dream",
        "remasking": "entropy",
        "scores": "sampling",
        "temperature": 0.2,
        "top_p": 0.95,
    },
    # Greedy decoding of LLaDA-8B-Instruct in the evaluations of arXiv 2511.18159.
    "paper-gsm8k": {"length": 128, "steps": 128, "block_length": 32},
    "paper-hitab": {"length": 512, "steps": 256, "block_length": 16},
    "paper-openscience": {"length": 256, "steps": 256, "block_length": 256},
}
"""What each preset sets. Only options of sampling: whether a prompt is a chat is up to the caller."""


def preset_options(name: str, **given: Any) -> GenerationOptions:
    """The preset's options, with those `given` in their place.

    A given threshold or factor decides the number of passes instead of the preset's steps and schedule.

    Raises:
        UserError: for an unknown name, and for options that do not go together.
    """
    if name not in PRESETS:
        raise UserError(f"preset = {name!r}: choose one of {', '.join(PRESETS)}")
    return GenerationOptions(**{**without_replaced(PRESETS[name], given), **given})


def without_replaced(values: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """`values` without steps and schedule, where a given threshold or factor decides in their place."""
    if given.get("threshold") is None and given.get("factor") is None:
        return dict(values)
    return {name: value for name, value in values.items() if name not in ("steps", "schedule")}
