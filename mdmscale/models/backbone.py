"""Hugging Face backbones for diffusion: from a folder or from scratch, bidirectional, with a mask token.

For autoregressive training (`objective = "ar"`) they stay causal, and the mask token is never used.
"""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from mdmscale.config.model import ModelSection
from mdmscale.diffusion.objective import ModelKind
from mdmscale.models.dropout import remove_dropout
from mdmscale.models.folder_checks import check_layers, check_not_adapter_alone
from mdmscale.models.hub import opening_arguments, why_not_opened
from mdmscale.models.lora import add_lora
from mdmscale.models.opening import load_weights
from mdmscale.models.precision import DTYPES
from mdmscale.models.shape import ROW_MULTIPLE, round_up, shape_of_keys
from mdmscale.models.token_ids import set_special_tokens
from mdmscale.models.tokenizer import load_tokenizer, num_token_ids
from mdmscale.system.errors import UserError, first_line
from mdmscale.system.files import read_object
from mdmscale.system.run_folder import is_model

logger = logging.getLogger(__name__)

MASK_TOKEN = "<|mask|>"
ARCHITECTURE_KEYS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "tie_word_embeddings",
)
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")


@dataclass(frozen=True)
class Backbone:
    """A model with its tokenizer, and the settings that diffusion adds."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    mask_token_id: int
    logit_shift: bool
    objective: ModelKind = "full"
    lora: LoraConfig | None = None  # peft's, where adapters were added
    removed_dropout: dict[str, float] = field(
        default_factory=dict
    )  # the rates of config.json that were not 0


def run_tokenizer(options: ModelSection) -> PreTrainedTokenizerBase:
    """The tokenizer of `model.tokenizer`, or of `model.path`."""
    source = options.tokenizer or options.path
    assert source is not None  # RunConfig requires one of them
    tokenizer = load_tokenizer(source, "model.tokenizer" if options.tokenizer else "model.path")
    if options.path is None and options.architecture == "qwen2" and "Qwen2" not in type(tokenizer).__name__:
        logger.warning(
            "transformers opens the tokenizer of every qwen2 folder as Qwen's own, so AutoTokenizer will "
            "misread the tokenizer of the exported model (mdmscale will not); "
            "model.architecture = llama or qwen3 avoids this"
        )
    return tokenizer


def build_backbone(options: ModelSection, eps: float, seed: int, objective: ModelKind = "full") -> Backbone:
    """Load or initialise the model on the CPU, make it bidirectional and settle its mask token.

    Where neither options, model nor tokenizer name a mask token, one is added to the tokenizer. Its row is
    the mean embedding, because a random row would make the first losses enormous. Dropout is turned off.
    """
    tokenizer = run_tokenizer(options)
    config = model_config(options, num_scratch_tokens(tokenizer), objective)
    removed_dropout = remove_dropout(config)
    declared = getattr(config, "mdm", None) or {}
    logit_shift = settle_logit_shift(options, declared, objective)
    mask_token_id, is_new = settle_mask_token(options, config, tokenizer)
    model = _make_model(options, config, seed)
    if is_new:
        _set_mean_row(model, mask_token_id)
    set_special_tokens(model, options.path, tokenizer, mask_token_id)
    model.config.mdm = {
        **declared,  # including what the import recorded for an export back
        "mask_token_id": mask_token_id,
        "logit_shift": logit_shift,
        "objective": objective,
        "eps": eps,
        "source": declared.get("source") or options.path or "scratch",
    }
    model.config.use_cache = False
    lora = None
    if options.lora is not None:
        assert options.path is not None  # RunConfig requires it
        lora = add_lora(model, options.lora, options.path, seed)
    return Backbone(model, tokenizer, mask_token_id, logit_shift, objective, lora, removed_dropout)


def model_config(options: ModelSection, num_tokens: int, objective: ModelKind = "full") -> PretrainedConfig:
    """The Hugging Face config that `options` describes: bidirectional, or causal for `ar`.

    With model.path, architecture keys that are given too must agree with the folder's. `num_tokens` is the
    size of the vocabulary of a model from scratch.

    Raises:
        UserError: where the folder has no config, another architecture, or values that contradict the keys.
    """
    if options.path is None:
        return scratch_config(options, num_tokens, objective)
    check_not_adapter_alone(Path(options.path))
    arguments = opening_arguments("model.path", options.path)
    if is_model(Path(options.path)):
        check_layers(read_object(Path(options.path) / "config.json"), Path(options.path))
    try:
        config = AutoConfig.from_pretrained(options.path, trust_remote_code=False, **arguments)
    except Exception as error:  # transformers raises many types for damaged files
        raise UserError(
            f"model.path = {options.path!r}: no model config there: {why_not_opened(error)}"
        ) from None
    given = {name: getattr(options, name) for name in ARCHITECTURE_KEYS if name in options.model_fields_set}
    differing = [
        f"model.{name} = {value!r}, but {options.path}/config.json says {getattr(config, name, None)!r}"
        for name, value in given.items()
        if value is not None and getattr(config, name, None) != value
    ]
    if differing:
        raise UserError(*differing)
    if config.model_type not in FAMILIES:
        raise UserError(
            f"model.path = {options.path!r} is a {config.model_type!r} model; "
            f"supported are {', '.join(FAMILIES)}"
        )
    config.is_causal = objective == "ar"
    open_windows(config)
    return config


def scratch_config(options: ModelSection, num_tokens: int, objective: ModelKind = "full") -> PretrainedConfig:
    """A config from the architecture keys alone, for a model that is trained from scratch."""
    shape = shape_of_keys(options, options.vocab_size or round_up(num_tokens, ROW_MULTIPLE))
    values: dict[str, Any] = {
        "vocab_size": shape.vocab,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.inner,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.key_heads,
        "head_dim": shape.head_dim,
        "max_position_embeddings": options.max_position_embeddings,
        "rms_norm_eps": options.rms_norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": options.rope_theta},
        "tie_word_embeddings": shape.is_tied,
        "initializer_range": options.initializer_range,
        "is_causal": objective == "ar",
    }
    config = AutoConfig.for_model(options.architecture, **values)
    open_windows(config)
    return config


def open_windows(config: PretrainedConfig) -> None:
    """Let every layer attend to all positions: a sliding window would hide most of the context.

    Autoregressive training opens it as well, so that a comparison has one difference only.
    """
    if getattr(config, "sliding_window", None) is not None:
        config.sliding_window = None
    if getattr(config, "layer_types", None):
        config.layer_types = ["full_attention"] * config.num_hidden_layers


def _make_model(options: ModelSection, config: PretrainedConfig, seed: int) -> PreTrainedModel:
    arguments: dict[str, Any] = {"dtype": DTYPES[options.dtype], "attn_implementation": options.attention}
    if options.path is not None:
        arguments |= opening_arguments("model.path", options.path)
        return load_weights(options.path, config=config, **arguments)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False, **arguments)
        except ImportError as error:
            raise UserError(f"model.attention = {options.attention}: {first_line(error)}") from None


def num_scratch_tokens(tokenizer: PreTrainedTokenizerBase) -> int:
    """How many rows a model from scratch needs: one for each id, and for a mask token where there is none."""
    return num_token_ids(tokenizer) + (tokenizer.mask_token_id is None)


def settle_logit_shift(
    options: ModelSection, declared: dict[str, Any], objective: ModelKind = "full"
) -> bool:
    """Whether the logits are shifted: as the options say, else as the folder's mdm section declares.

    A folder without one is an autoregressive model in general. Its head predicts the next token, so without
    the shift training would first have to unlearn that. Autoregressive training always shifts.

    Raises:
        UserError: where neither says it of a model that has been trained before; and for autoregressive
            training of a model that predicts in place.
    """
    if objective == "ar":
        if declared.get("logit_shift") is False and options.logit_shift is None:
            raise UserError(
                f"model.path = {options.path!r} predicts each token in place (its config.json has "
                "mdm.logit_shift false), but diffusion.objective = ar predicts the next one; start from an "
                "autoregressive model, or set model.logit_shift: true to let training unlearn it"
            )
        return True
    if options.logit_shift is not None:
        return options.logit_shift
    if options.path is None:
        return False
    if "logit_shift" not in declared:
        raise UserError(
            f"model.path = {options.path!r}: its config.json has no mdm section that says whether the logits "
            f"are shifted; import it first (tools/convert.py import {options.path} FOLDER), or set "
            "model.logit_shift: true for an autoregressive model, false for one that predicts in place"
        )
    return bool(declared["logit_shift"])


def settle_mask_token(
    options: ModelSection, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase
) -> tuple[int, bool]:
    """The mask token's id, and whether it had to be added to the tokenizer.

    Raises:
        UserError: where the model has too few embedding rows for the tokenizer or its mask token.
    """
    declared = getattr(config, "mdm", None) or {}
    mask_token_id, is_new = _find_mask_token(options, declared, tokenizer)
    _check_rows(options, config.vocab_size, tokenizer, mask_token_id, is_new)
    return mask_token_id, is_new


def _find_mask_token(
    options: ModelSection, declared: dict[str, Any], tokenizer: PreTrainedTokenizerBase
) -> tuple[int, bool]:
    known: int | None
    for known in (options.mask_token_id, declared.get("mask_token_id"), tokenizer.mask_token_id):
        if known is not None:
            text = tokenizer.convert_ids_to_tokens(known) if known < num_token_ids(tokenizer) else None
            if text is not None:  # otherwise the id is in a gap of the tokenizer's ids, or beyond them
                tokenizer.mask_token = text
            return known, False
    return _add_mask_token(tokenizer), True


def _add_mask_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """Add a mask token. The tokenizers library gives it the id len(tokenizer), which may be another's."""
    before = tokenizer.get_vocab()
    tokenizer.add_special_tokens({"mask_token": MASK_TOKEN})
    token_id = tokenizer.get_vocab()[MASK_TOKEN]
    taken = [text for text, known in before.items() if known == token_id and text != MASK_TOKEN]
    if taken:
        raise UserError(
            f"the tokenizer has no mask token, and one added to it would take the id {token_id} of "
            f"{taken[0]!r}, because its ids have gaps; name a token of your own with model.mask_token_id"
        )
    return token_id


def _check_rows(
    options: ModelSection, num_rows: int, tokenizer: PreTrainedTokenizerBase, mask_token_id: int, is_new: bool
) -> None:
    num_ids = num_token_ids(tokenizer)
    if options.path is None and num_ids > num_rows:
        raise UserError(
            f"model.vocab_size = {num_rows} is smaller than the tokenizer's {num_ids} token ids "
            "(mask token included); give at least that, or null"
        )
    if mask_token_id >= num_rows and not is_new:
        raise UserError(
            f"model.mask_token_id = {mask_token_id} is beyond the model's {num_rows} embedding rows"
        )


def _set_mean_row(model: PreTrainedModel, token_id: int) -> None:
    """Set the row of a new token, and the rows added to make room for it, to the mean of the rows before."""
    num_rows = model.config.vocab_size
    if token_id >= num_rows:
        model.resize_token_embeddings(round_up(token_id + 1, ROW_MULTIPLE), mean_resizing=False)
    with torch.no_grad():
        for embedding in (model.get_input_embeddings(), model.get_output_embeddings()):
            weight: torch.Tensor = embedding.weight  # type: ignore[union-attr, assignment]
            mean = weight[: min(token_id, num_rows)].float().mean(dim=0).to(weight.dtype)
            weight[token_id] = mean
            weight[num_rows:] = mean
