"""The model's options, as the harness gives them: names and values of any kind."""

from dataclasses import fields
from typing import Any, Literal

from mdmscale.evaluation.likelihood.plan import LikelihoodOptions
from mdmscale.evaluation.lm_eval.decoding import DEFAULT_LENGTH, OPTIONS, PRESET, decoding
from mdmscale.models.hub import local_folder
from mdmscale.models.opening import LoadedModel, describe_model, find_model_folder, load_model
from mdmscale.system.errors import UserError

Greedy = Literal["auto", "always", "never"]
DEFAULT_BATCH_SIZE = 8
LIKELIHOOD_OPTIONS = frozenset(field.name for field in fields(LikelihoodOptions))


def split_options(options: dict[str, Any]) -> tuple[LikelihoodOptions, dict[str, Any]]:
    """Options by name as those of the likelihood, and those of sampling that are given.

    Raises:
        UserError: for a name of neither, and for values that are wrong.
    """
    known = OPTIONS | LIKELIHOOD_OPTIONS | {PRESET}
    if unknown := sorted(set(options) - known):
        raise UserError(f"{', '.join(unknown)}: no such option; choose from {', '.join(sorted(known))}")
    given = {name: value for name, value in options.items() if value is not None}
    scoring = {name: value for name, value in given.items() if name in LIKELIHOOD_OPTIONS}
    if scoring.get("method") != "block":
        scoring.pop("block_length", None)
    chosen = {name: value for name, value in given.items() if name in OPTIONS | {PRESET}}
    # A task may yet decide the length, so steps must fit only a length that is given.
    decoding({"max_gen_toks": chosen.get("steps") or DEFAULT_LENGTH}, chosen)
    return LikelihoodOptions(**scoring), chosen


def open_model(pretrained: str | LoadedModel, dtype: str | None) -> LoadedModel:
    """The model of a run, a folder or a hub id; a loaded one stays as it is.

    Raises:
        UserError: where it cannot be opened.
    """
    if isinstance(pretrained, LoadedModel):
        return pretrained
    folder = local_folder("pretrained", pretrained)
    return load_model(describe_model(find_model_folder(folder)), dtype)


def parse_batch_size(value: int | str | None) -> int:
    """A number of rows; auto, which the harness's own models know, means the default.

    Raises:
        UserError: where it is neither.
    """
    if value is None or str(value).startswith("auto"):
        return DEFAULT_BATCH_SIZE
    if not str(value).isdigit() or int(value) < 1:
        raise UserError(f"batch_size = {value!r}: must be a number of at least 1, or auto")
    return int(value)
