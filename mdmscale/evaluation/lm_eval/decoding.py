"""What a generation request of lm-evaluation-harness asks for, as options of sampling.

A task names Hugging Face's arguments: max_gen_toks, do_sample, temperature, until. What the user set for the
model comes first, as the length, steps and blocks of a diffusion model decide its answer; the task's request
fills in the rest.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from mdmscale.generation.options import GenerationOptions
from mdmscale.generation.presets import PRESETS, preset_options
from mdmscale.generation.prompts import decode_response
from mdmscale.generation.sampler import Generation
from mdmscale.models.opening import LoadedModel
from mdmscale.models.special_tokens import special_texts

DEFAULT_LENGTH = 256  # the harness's max_gen_toks
OPTIONS = frozenset(field.name for field in fields(GenerationOptions))
PRESET = "preset"  # the name of one of PRESETS, among the options that the user sets
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # the first one counts
_READ = frozenset({*_LENGTHS, "do_sample", "temperature", "top_p", "top_k", "until"})


@dataclass(frozen=True)
class Decoding:
    """How to answer a request, and where to cut the answer."""

    options: GenerationOptions
    until: tuple[str, ...]


def decoding(request: Mapping[str, Any], chosen: Mapping[str, Any]) -> Decoding:
    """The decoding of a request's arguments.

    Args:
        request: the task's generation_kwargs, with those of the harness's --gen_kwargs.
        chosen: the options of sampling that the user set for the model, and `preset`, which sets others.

    Raises:
        UserError: where the options do not go together, or there is no such preset.
    """
    given = {name: value for name, value in chosen.items() if name != PRESET}
    preset = chosen.get(PRESET)
    if preset is None:
        return Decoding(GenerationOptions(**{**requested(request), **given}), _until(request))
    left = {name: value for name, value in requested(request).items() if name not in PRESETS.get(preset, {})}
    return Decoding(preset_options(preset, **{**left, **given}), _until(request))


def requested(request: Mapping[str, Any]) -> dict[str, Any]:
    """The options of sampling that a request's arguments name."""
    lengths = [int(request[name]) for name in _LENGTHS if request.get(name) is not None]
    values: dict[str, Any] = {"length": lengths[0] if lengths else DEFAULT_LENGTH}
    values |= {name: value for name, value in request.items() if name in OPTIONS and name not in _READ}
    temperature = _temperature(request)
    if temperature > 0:
        values["temperature"] = temperature
        for name, off in (("top_p", 1), ("top_k", 0)):
            if name in OPTIONS and request.get(name) not in (None, off):
                values[name] = request[name]
    return values


def unread(request: Mapping[str, Any]) -> list[str]:
    """The arguments of a request that have no meaning for a diffusion model, such as num_beams."""
    return sorted(set(request) - OPTIONS - _READ)


def response_text(loaded: LoadedModel, generation: Generation, until: tuple[str, ...]) -> str:
    """The response up to its first EOS or `until`, which may be text or a special token."""
    special = set(special_texts(loaded.tokenizer)) & set(until)
    stops = {loaded.tokenizer.convert_tokens_to_ids(text) for text in special}
    prompt_length = generation.request.prompt_length or 0
    ends = [
        place for place, token in enumerate(generation.token_ids) if place >= prompt_length and token in stops
    ]
    text = generation.text
    if ends:
        text = decode_response(loaded, generation.request, generation.token_ids[: ends[0]])
    for stop in until:
        text = text.split(stop)[0] if stop else text
    return text


def _temperature(request: Mapping[str, Any]) -> float:
    """0 where the request does not sample; 1, transformers' default, where it does and names none."""
    does_sample = request.get("do_sample")
    if does_sample is False:
        return 0.0
    return float(request.get("temperature", 1.0 if does_sample else 0.0))


def _until(request: Mapping[str, Any]) -> tuple[str, ...]:
    until = request.get("until") or ()
    return (until,) if isinstance(until, str) else tuple(until)
