"""Open a model folder for computing: a Hugging Face folder, or the `hf/` that a run exports.

Sampling and analysis open models here, and training loads its starting weights with `load_weights`.
Conversion reads folders tensor by tensor instead (conversion/stored_model.py), as it must not hold a whole
model in memory.

This module imports torch and transformers only where it loads weights, so that a wrong path or a wrong
config.json costs a second.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mdmscale.models.tokenizer import load_tokenizer
from mdmscale.system.errors import UserError, first_line
from mdmscale.system.files import read_object
from mdmscale.system.run_folder import RunFolder, kind_of

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class ModelDescription:
    """What config.json of a model folder says about the model, as far as sampling needs it."""

    folder: Path
    mask_token_id: int
    logit_shift: bool
    vocab_size: int
    max_length: int  # max_position_embeddings
    eos_ids: frozenset[int]  # config.json names none, one or several


@dataclass(frozen=True)
class LoadedModel:
    """A masked diffusion model in eval mode on `device`, ready to sample from."""

    description: ModelDescription
    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    device: "torch.device"

    @property
    def eos_ids(self) -> frozenset[int]:
        """The tokens that end a text: the tokenizer's EOS and those of config.json."""
        of_tokenizer = self.tokenizer.eos_token_id
        return self.description.eos_ids | ({of_tokenizer} if of_tokenizer is not None else set())

    @property
    def mask_token(self) -> str:
        """The mask token as text."""
        return str(self.tokenizer.convert_ids_to_tokens(self.description.mask_token_id))


def find_model_folder(path: Path) -> Path:
    """The Hugging Face folder that `path` stands for: `path` itself, or the `hf/` of a run.

    Raises:
        UserError: where `path` is missing, is a checkpoint, is a run without an exported model, or is none of
            these.
    """
    kind, run = kind_of(path), RunFolder(path)
    if kind == "checkpoint":
        raise UserError(f"{path}: is a checkpoint; make a model folder of it with tools/convert.py export")
    if kind == "run" and not run.has_export:
        raise UserError(f"{path}: this run has no exported model yet (its hf/ is written when training ends)")
    return path if kind == "model" else run.export


def describe_model(folder: Path) -> ModelDescription:
    """Read and check config.json, without importing torch.

    Raises:
        UserError: where the file is damaged or does not describe a masked diffusion model.
    """
    path = folder / "config.json"
    config = read_object(path)
    mdm = config.get("mdm")
    if not isinstance(mdm, dict):
        raise UserError(
            f"{path}: has no mdm section (mask_token_id, logit_shift), so it is not a masked diffusion model"
        )
    if config.get("is_causal") is not False:
        raise UserError(
            f"{path}: is_causal is {config.get('is_causal')!r}; a masked diffusion model needs false"
        )
    description = ModelDescription(
        folder=folder,
        mask_token_id=_typed(path, mdm, "mask_token_id", int, "mdm."),
        logit_shift=_typed(path, mdm, "logit_shift", bool, "mdm."),
        vocab_size=_typed(path, config, "vocab_size", int),
        max_length=_typed(path, config, "max_position_embeddings", int),
        eos_ids=_eos_ids(path, config.get("eos_token_id")),
    )
    if not 0 <= description.mask_token_id < description.vocab_size:
        raise UserError(
            f"{path}: mdm.mask_token_id = {description.mask_token_id} is not below "
            f"vocab_size = {description.vocab_size}"
        )
    return description


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


def load_weights(folder: str | Path, **arguments: Any) -> "PreTrainedModel":
    """`AutoModelForCausalLM.from_pretrained`, but refuse missing weights instead of drawing them at random.

    Raises:
        UserError: where weights are missing or damaged.
    """
    from transformers import AutoModelForCausalLM

    try:
        # Typed Any: from_pretrained's annotation lacks the pair that output_loading_info makes it return.
        loaded: Any = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **arguments)
    except Exception as error:  # transformers and safetensors raise many types for damaged files
        raise UserError(f"{folder}: the model cannot be loaded: {first_line(error)}") from error
    model, report = loaded
    if missing := sorted(report["missing_keys"]):
        raise UserError(f"{folder}: {len(missing)} weights are missing, such as {missing[0]}")
    return model


def _eos_ids(path: Path, value: Any) -> frozenset[int]:
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(type(token_id) is int for token_id in ids):
        raise UserError(f"{path}: eos_token_id = {value!r} is neither a token id nor a list of token ids")
    return frozenset(ids)


def _typed(path: Path, section: dict[str, Any], name: str, kind: type, prefix: str = "") -> Any:
    if name not in section:
        raise UserError(f"{path}: has no {prefix}{name}")
    value = section[name]
    if type(value) is not kind:  # an exact match, as a bool is an int
        raise UserError(f"{path}: {prefix}{name} = {value!r} is not of type {kind.__name__}")
    return value
