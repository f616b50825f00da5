"""Open a model folder for computing: a Hugging Face folder, or the `hf/` that a run exports.

Sampling and analysis open models here, and training loads its starting weights with `load_weights`.
Conversion reads folders tensor by tensor instead (conversion/stored_model.py), as it must not hold a whole
model in memory.

This module imports torch and transformers only where it loads weights, so that a wrong path or a wrong
config.json costs a second.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from mdmscale.diffusion.objective import ModelKind
from mdmscale.models.folder_checks import (
    check_layers,
    check_no_adapter,
    check_not_adapter_alone,
    check_unquantized,
)
from mdmscale.models.hub import why_not_opened
from mdmscale.models.token_ids import TokenIds, settle_ids, stated_ids
from mdmscale.models.tokenizer import load_tokenizer
from mdmscale.system.errors import UserError
from mdmscale.system.files import read_object
from mdmscale.system.links import check_links
from mdmscale.system.notices import say
from mdmscale.system.run_folder import RunFolder, kind_of

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class ModelDescription:
    """What config.json of a model folder says about the model, as far as sampling needs it."""

    folder: Path
    mask_token_id: int | None  # None for an autoregressive model that has none
    logit_shift: bool
    vocab_size: int
    max_length: int  # max_position_embeddings
    stated_ids: TokenIds  # EOS, BOS and padding
    objective: ModelKind = "full"  # ar: it predicts the next token, and is sampled from left to right

    @property
    def wanted_id(self) -> int:
        """What stands for a token that is to be sampled: the mask token, or -1 where there is none."""
        return -1 if self.mask_token_id is None else self.mask_token_id


@dataclass(frozen=True)
class LoadedModel:
    """A model in eval mode on `device`, ready to sample from."""

    description: ModelDescription
    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    device: "torch.device"

    @cached_property
    def eos_ids(self) -> frozenset[int]:
        """The tokens that end a text: the tokenizer's EOS, and what the folder states besides."""
        facts = self.description
        ids, _ = settle_ids(facts.stated_ids, self.tokenizer, facts.vocab_size, facts.wanted_id)
        return frozenset(ids.eos)

    @property
    def mask_token(self) -> str:
        """The mask token as text. The model must have one."""
        assert self.description.mask_token_id is not None
        return str(self.tokenizer.convert_ids_to_tokens(self.description.mask_token_id))


def find_model_folder(path: Path) -> Path:
    """The Hugging Face folder that `path` stands for: `path` itself, or the `hf/` of a run.

    Raises:
        UserError: where `path` is missing, is a checkpoint, is a run without an exported model, or is none of
            these.
    """
    check_not_adapter_alone(path)
    kind, run = kind_of(path), RunFolder(path)
    if kind == "checkpoint":
        raise UserError(f"{path}: is a checkpoint; make a model folder of it with tools/convert.py export")
    if kind == "run" and not run.has_export:
        raise UserError(f"{path}: this run has no exported model yet (its hf/ is written when training ends)")
    return path if kind == "model" else run.export


def describe_model(folder: Path, *, autoregressive: bool = False) -> ModelDescription:
    """Read and check config.json, without importing torch.

    Args:
        autoregressive: the folder is an autoregressive model: one that a run with `diffusion.objective: ar`
            has exported, or an ordinary Hugging Face model without an mdm section, which is taken as it is.

    Raises:
        UserError: where the file is damaged or does not describe a model of that kind.
    """
    path = folder / "config.json"
    check_links(folder)
    config = read_object(path)
    check_layers(config, folder)
    mdm = config.get("mdm")
    if mdm is None and autoregressive:
        mdm = {"objective": "ar", "logit_shift": True}
    if not isinstance(mdm, dict):
        raise UserError(
            f"{path}: has no mdm section (mask_token_id, logit_shift), so it is no masked diffusion model; "
            "import it (tools/convert.py import), or measure an autoregressive model as it is "
            "(tools/evaluate.py --autoregressive)"
        )
    objective = mdm.get("objective", "full")
    _check_objective(path, objective, config.get("is_causal"), autoregressive)
    has_mask = objective == "full" or "mask_token_id" in mdm
    description = ModelDescription(
        folder=folder,
        mask_token_id=_typed(path, mdm, "mask_token_id", int, "mdm.") if has_mask else None,
        logit_shift=_typed(path, mdm, "logit_shift", bool, "mdm."),
        objective=objective,
        vocab_size=_typed(path, config, "vocab_size", int),
        max_length=_typed(path, config, "max_position_embeddings", int),
        stated_ids=stated_ids(folder),
    )
    if has_mask and not 0 <= description.wanted_id < description.vocab_size:
        raise UserError(
            f"{path}: mdm.mask_token_id = {description.mask_token_id} is not below "
            f"vocab_size = {description.vocab_size}"
        )
    return description


def _check_objective(path: Path, objective: Any, is_causal: Any, autoregressive: bool) -> None:
    """Refuse an attention that does not fit the objective, and an MDM where none is wanted."""
    if objective not in get_args(ModelKind):
        raise UserError(
            f"{path}: mdm.objective = {objective!r}: must be one of {', '.join(get_args(ModelKind))}"
        )
    if objective == "full" and autoregressive:
        raise UserError(f"{path}: is a masked diffusion model, not an autoregressive one")
    if (is_causal is False) is (objective == "ar"):  # a config without the key is causal
        kind, needed = ("an autoregressive", "true") if objective == "ar" else ("a masked diffusion", "false")
        raise UserError(f"{path}: is_causal is {is_causal!r}; {kind} model needs {needed}")


def load_model(source: str | Path | ModelDescription, dtype: str | None = None) -> LoadedModel:
    """Load the model and the tokenizer of a model folder or a run, on the GPU if there is one.

    Args:
        source: the folder, or its description from `describe_model`.
        dtype: fp32 or bf16; None keeps the precision of the saved weights.

    Raises:
        UserError: where the folder is not a masked diffusion model, or its files are missing or damaged.
    """
    import torch

    from mdmscale.models.precision import DTYPES

    if isinstance(source, ModelDescription):
        description = source
    else:
        description = describe_model(find_model_folder(Path(source)))
    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"dtype = {dtype!r}: choose one of {', '.join(DTYPES)}")
    tokenizer = load_tokenizer(description.folder)
    device = (
        torch.device("cuda", torch.cuda.current_device())
        if torch.cuda.is_available()
        else torch.device("cpu")
    )
    weights_dtype = "auto" if dtype is None else DTYPES[dtype]
    model: Any = load_weights(description.folder, dtype=weights_dtype, local_files_only=True)
    return LoadedModel(description, model.to(device).eval(), tokenizer, device)


def load_quietly(description: ModelDescription, dtype: str | None = None) -> LoadedModel:
    """`load_model` for a command, which shows its own progress: without transformers' bar."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    return load_model(description, dtype)


def load_weights(folder: str | Path, **arguments: Any) -> "PreTrainedModel":
    """`AutoModelForCausalLM.from_pretrained`, but the model is exactly what the folder holds.

    Missing weights are refused instead of drawn at random, unknown ones instead of left out. A head of its
    own is no longer called tied.

    Raises:
        UserError: where weights are missing, unknown, quantised or damaged, or an adapter lies beside them.
    """
    from transformers import AutoModelForCausalLM

    is_gguf = "gguf_file" in arguments  # one file instead of a folder's, which transformers dequantises
    if Path(folder).is_dir() and not is_gguf:
        check_folder(Path(folder))
    try:
        # Typed Any: from_pretrained's annotation lacks the pair that output_loading_info makes it return.
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, output_loading_info=True, trust_remote_code=False, **arguments
        )
    except Exception as error:  # transformers and safetensors raise many types for damaged files
        raise UserError(f"{folder}: the model cannot be loaded: {why_not_opened(error)}") from error
    model, report = loaded
    if not is_gguf:
        _check_plain(model, folder)
    if missing := sorted(report["missing_keys"]):
        raise UserError(f"{folder}: {len(missing)} weights are missing, such as {missing[0]}")
    if unknown := sorted(report["unexpected_keys"]):
        raise UserError(
            f"{folder}: {len(unknown)} weights are not known to the model, such as {unknown[0]}; its "
            "config.json belongs to another model"
        )
    _untie_own_head(model, folder)
    return model


def check_folder(folder: Path) -> None:
    """Refuse a model folder that transformers would load as another model, or not at all. Loads nothing.

    Raises:
        UserError: where its weights are quantised or damaged, or an adapter lies beside them.
    """
    from mdmscale.weights.weight_files import WeightFolder, check_floating

    config = read_object(folder / "config.json")
    check_unquantized(config, folder)
    command = "export FOLDER DST --to hf" if "mdm" in config else "import FOLDER DST"
    check_no_adapter(folder, f"merge it with tools/convert.py {command}, or move it away")
    files = WeightFolder(folder)
    check_floating(files.tensors(), folder)
    if files.ignored:
        say(f"{folder}: {files.ignored} is ignored, as a single file of weights is beside it")


def _check_plain(model: Any, folder: str | Path) -> None:
    """Refuse what `check_folder` refuses for a model of the hub, which is downloaded only by loading it."""
    if getattr(model, "_hf_peft_config_loaded", False):
        raise UserError(
            f"{folder}: is a LoRA adapter; download it with its model, and merge them by an import"
        )
    if getattr(model.config, "quantization_config", None) is not None:
        raise UserError(
            f"{folder}: quantised weights cannot be trained; choose the model without quantisation"
        )


def _untie_own_head(model: Any, folder: str | Path) -> None:
    """Call a model untied whose folder has a head of its own, though config.json says that it is tied.

    transformers loads such a head but keeps the config, so the head would be lost at the next save.
    """
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if model.config.tie_word_embeddings and head.weight is not embedding.weight:
        model.config.tie_word_embeddings = False
        say(f"{folder}: config.json says that the head is tied, but it has a head of its own, which is kept")


def _typed(path: Path, section: dict[str, Any], name: str, kind: type, prefix: str = "") -> Any:
    if name not in section:
        raise UserError(f"{path}: has no {prefix}{name}")
    value = section[name]
    if type(value) is not kind:  # an exact match, as a bool is an int
        raise UserError(f"{path}: {prefix}{name} = {value!r} is not of type {kind.__name__}")
    return value
