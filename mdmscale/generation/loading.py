"""From a model folder, or a run's folder, to what sampling needs: model, tokenizer, mask token and device."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mdmscale.models.tokenizer import load_tokenizer
from mdmscale.system.errors import UserError
from mdmscale.system.run_folder import RunFolder, kind_of

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class FolderFacts:
    """What a model folder's config.json says that sampling depends on."""

    folder: Path
    mask_token_id: int
    logit_shift: bool
    vocab_size: int
    max_length: int  # positions the model was declared for
    eos_ids: frozenset[int]  # that config.json names, one or several


@dataclass(frozen=True)
class LoadedModel:
    """A masked diffusion model ready to sample, in eval mode on `device`."""

    facts: FolderFacts
    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    device: "torch.device"

    @property
    def eos_ids(self) -> frozenset[int]:
        """What ends a text: the tokenizer's EOS and those of config.json."""
        of_tokenizer = self.tokenizer.eos_token_id
        return self.facts.eos_ids | ({of_tokenizer} if of_tokenizer is not None else set())

    @property
    def mask_token(self) -> str:
        """The mask token as text."""
        return str(self.tokenizer.convert_ids_to_tokens(self.facts.mask_token_id))


def find_model_folder(path: Path) -> Path:
    """The Hugging Face folder at `path`: `path` itself, or the `hf/` that a finished run holds.

    Raises:
        UserError: if `path` does not exist, is a run that has exported nothing yet, a checkpoint, or neither.
    """
    kind, run = kind_of(path), RunFolder(path)
    if kind == "checkpoint":
        raise UserError(f"{path}: this is a checkpoint; make a model of it with tools/convert.py export")
    if kind == "run" and not run.has_export:
        raise UserError(f"{path}: this run has no exported model yet (its hf/ is written when training ends)")
    return path if kind == "model" else run.export


def read_folder_facts(folder: Path) -> FolderFacts:
    """Read and check config.json, without importing torch.

    Raises:
        UserError: if the file is damaged, or does not describe a masked diffusion model.
    """
    path = folder / "config.json"
    config = _read_object(path)
    mdm = config.get("mdm")
    if not isinstance(mdm, dict):
        raise UserError(
            f"{path}: has no mdm section (mask_token_id, logit_shift), so it is no masked diffusion model"
        )
    if config.get("is_causal") is not False:
        raise UserError(
            f"{path}: is_causal is {config.get('is_causal')!r}; a masked diffusion model needs false"
        )
    facts = FolderFacts(
        folder=folder,
        mask_token_id=_typed(path, mdm, "mask_token_id", int, "mdm."),
        logit_shift=_typed(path, mdm, "logit_shift", bool, "mdm."),
        vocab_size=_typed(path, config, "vocab_size", int),
        max_length=_typed(path, config, "max_position_embeddings", int),
        eos_ids=_eos_ids(path, config.get("eos_token_id")),
    )
    if not 0 <= facts.mask_token_id < facts.vocab_size:
        raise UserError(
            f"{path}: mdm.mask_token_id = {facts.mask_token_id} is not below vocab_size = {facts.vocab_size}"
        )
    return facts


def load_model(place: str | Path | FolderFacts, dtype: str | None = None) -> LoadedModel:
    """Load a model folder's or a run's model, on the GPU if there is one.

    Args:
        place: the folder, or what `read_folder_facts` has read of it.
        dtype: fp32 or bf16; None means as it was saved.

    Raises:
        UserError: if it is no masked diffusion model, or its files are missing or damaged.
    """
    import torch

    from mdmscale.models.backbone import DTYPES, load_weights

    facts = place if isinstance(place, FolderFacts) else read_folder_facts(find_model_folder(Path(place)))
    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"dtype = {dtype!r}: choose of {', '.join(DTYPES)}")
    tokenizer = load_tokenizer(facts.folder)
    device = (
        torch.device("cuda", torch.cuda.current_device())
        if torch.cuda.is_available()
        else torch.device("cpu")
    )
    weights_dtype = "auto" if dtype is None else DTYPES[dtype]
    model: Any = load_weights(facts.folder, dtype=weights_dtype, local_files_only=True)
    return LoadedModel(facts, model.to(device).eval(), tokenizer, device)


def _read_object(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    if not isinstance(config, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(config).__name__}")
    return config


def _eos_ids(path: Path, value: Any) -> frozenset[int]:
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(type(token_id) is int for token_id in ids):
        raise UserError(f"{path}: eos_token_id = {value!r} is no token id or list of them")
    return frozenset(ids)


def _typed(path: Path, section: dict[str, Any], name: str, kind: type, prefix: str = "") -> Any:
    if name not in section:
        raise UserError(f"{path}: has no {prefix}{name}")
    value = section[name]
    if type(value) is not kind:  # an exact match, as a bool is an int
        raise UserError(f"{path}: {prefix}{name} = {value!r} is not of type {kind.__name__}")
    return value
