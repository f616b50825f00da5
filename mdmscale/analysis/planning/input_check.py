"""What --dry-run checks of a run's input: that tokenizer, model and data are there, and agree.

It opens what the run would open and refuses what the run would refuse, but makes no model, and of files
that the run encodes it encodes only the first samples of each.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mdmscale.config.rules import length_problems
from mdmscale.config.run import RunConfig
from mdmscale.data.opening import open_source
from mdmscale.data.preparation.sft import fitted_length, read_samples
from mdmscale.data.preparation.sft_files import is_encoded_by_run, matching_files
from mdmscale.data.source import path_list
from mdmscale.data.tokenizer_record import check_tokenizer
from mdmscale.diffusion.objective import model_kind
from mdmscale.models.hub import UnreachableError
from mdmscale.system.errors import UserError
from mdmscale.system.run_folder import RunFolder
from mdmscale.training.paths import check_paths
from mdmscale.training.task_questions import task_questions

if TYPE_CHECKING:
    from transformers import PretrainedConfig

SAMPLES_OF_A_FILE = 100  # that are encoded
ANY_ID = 2**31  # a vocabulary in which every id is


@dataclass
class InputCheck:
    """The result: what is there, what could not be checked and why, and what is wrong."""

    found: dict[str, str] = field(default_factory=dict)
    unchecked: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def run(self, name: str, check: Callable[[], str]) -> None:
        """Run one check, which returns what it has found."""
        try:
            self.found[name] = check()
        except UnreachableError as error:
            self.unchecked += error.problems
        except UserError as error:
            self.problems += error.problems

    def lines(self) -> list[str]:
        """The result for a user; problems are reported as errors."""
        found = [f"  {name:10} {text}" for name, text in self.found.items()]
        unchecked = [f"  not checked: {each}" for each in dict.fromkeys(self.unchecked)]
        return ["input:", *found, *unchecked]


@dataclass
class _Opened:
    """What has been opened so far; later checks compare with it."""

    tokenizer: Any = None
    model: "PretrainedConfig | None" = None
    mask_token_id: int | None = None


def check_input(config: RunConfig) -> InputCheck:
    """Check the input of a run. A missing part does not keep the others from being checked."""
    result, opened = InputCheck(), _Opened()
    try:
        check_paths(config, writes=True)
    except UserError as error:
        result.problems += error.problems
    missing = {problem.partition(" = ")[0] for problem in result.problems}
    if "run.output_dir" not in missing:
        result.run("run folder", lambda: _run_folder(config))
    if not missing & {"model.path", "model.tokenizer"}:
        result.run("tokenizer", lambda: _open_tokenizer(config, opened))
        result.run("model", lambda: _open_model(config, opened))
    if "data.path" not in missing:
        result.run("data", lambda: _open_data(config, opened))
    if config.eval.tasks and not any("task" in problem for problem in missing):
        result.run("tasks", lambda: _open_tasks(config))
    return result


def _run_folder(config: RunConfig) -> str:
    run = RunFolder(Path(config.run.output_dir) / config.run.name)
    checkpoints = run.published_checkpoints()
    if checkpoints:
        return f"{run.path}: has checkpoints, the newest {checkpoints[-1].name}"
    return f"{run.path}: can be written"


def _open_tokenizer(config: RunConfig, opened: _Opened) -> str:
    from mdmscale.models.backbone import run_tokenizer  # imports torch

    opened.tokenizer = tokenizer = run_tokenizer(config.model)
    special = ", ".join(
        f"{name} {token_id}"
        for name, token_id in (
            ("BOS", tokenizer.bos_token_id),
            ("EOS", tokenizer.eos_token_id),
            ("mask", tokenizer.mask_token_id),
        )
        if token_id is not None
    )
    source = config.model.tokenizer or config.model.path
    return f"{source}: {len(tokenizer):,} tokens; special ids: {special or 'none'}"


def _open_model(config: RunConfig, opened: _Opened) -> str:
    if opened.tokenizer is None:
        raise UnreachableError("the model, because its tokenizer cannot be opened")
    from mdmscale.models.backbone import (
        model_config,
        num_scratch_tokens,
        settle_logit_shift,
        settle_mask_token,
    )

    options = config.model
    model = model_config(options, num_scratch_tokens(opened.tokenizer))
    mask_token_id, is_new = settle_mask_token(options, model, opened.tokenizer)
    kind = model_kind(config.diffusion.objective)
    settle_logit_shift(options, getattr(model, "mdm", None) or {}, kind)
    if problems := length_problems(config.data, model.max_position_embeddings):
        raise UserError(*problems)
    opened.model, opened.mask_token_id = model, mask_token_id
    mask = f"mask id {mask_token_id}{' (a new token)' if is_new else ''}"
    rows = f"{model.vocab_size:,} rows for {len(opened.tokenizer):,} tokens, {mask}"
    return f"{_weights(options.path)}; {rows}, up to {model.max_position_embeddings:,} positions"


def _weights(path: str | None) -> str:
    if path is None:
        return "from scratch"
    if not Path(path).is_dir():
        return f"{path}, whose weights are fetched when the run starts"
    from mdmscale.weights.weight_files import WeightFolder

    return f"{path}, with {len(WeightFolder(Path(path)).tensors()):,} weights"


def _open_data(config: RunConfig, opened: _Opened) -> str:
    """Open the data; without a tokenizer or a model, check what needs none."""
    data, named = config.data, ", ".join(path_list(config.data))
    if is_encoded_by_run(data):
        if opened.tokenizer is None:
            raise UnreachableError(f"{named}, because the tokenizer that encodes it cannot be opened")
        return f"{named}: {_encode_first_samples(config, opened.tokenizer)}"
    if opened.tokenizer is not None:
        check_tokenizer(data, opened.tokenizer)
    vocab_size = ANY_ID if opened.model is None else opened.model.vocab_size
    eos = 0 if opened.tokenizer is None else opened.tokenizer.eos_token_id
    source = open_source(data, config.run.seed, vocab_size, eos, opened.mask_token_id)
    ids = "ids not compared with a model" if opened.model is None else "ids within the model's vocabulary"
    return f"{named}: {source.num_train:,} training samples, {source.num_held_out:,} held out; {ids}"


def _open_tasks(config: RunConfig) -> str:
    found = {name: len(task_questions(config, name).items) for name in config.eval.tasks}
    return ", ".join(f"{name} ({number} questions)" for name, number in found.items())


def _encode_first_samples(config: RunConfig, tokenizer: Any) -> str:
    data, number, longest = config.data, 0, 0
    files = [file for path in path_list(data) for file in matching_files(path)]
    for file in files:
        samples = read_samples([file], tokenizer, train_on=data.train_on, special_tokens=data.special_tokens)
        for sample, where in islice(samples, SAMPLES_OF_A_FILE):
            assert sample is not None  # one with the mask token is refused
            fitted_length(sample, where, data.sequence_length, data.too_long)
            number, longest = number + 1, max(longest, len(sample.token_ids))
    if not number:
        raise UserError(f"{', '.join(map(str, files))}: is empty; there is no sample to train on")
    return (
        f"its first samples ({number:,}) encoded; the longest has {longest:,} tokens of "
        f"{data.sequence_length:,}"
    )
