"""LoRA adapters in peft's format: merged into the weights, or written as a folder of their own."""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mdmscale.system.errors import UserError
from mdmscale.system.files import read_object, write_object
from mdmscale.weights.adapter_names import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    is_public_adapter,
    is_trained_adapter,
    public_name,
    public_pair,
    trained_pair,
)
from mdmscale.weights.tensor_source import TensorInfo, TensorSource
from mdmscale.weights.tensor_views import Part, RemappedSource
from mdmscale.weights.weight_files import SafetensorsFile


def merged_weight(
    weight: torch.Tensor, lora_a: torch.Tensor, lora_b: torch.Tensor, scale: float
) -> torch.Tensor:
    """W + scale * B A in fp32, in W's precision; weight [out, in], lora_a [rank, in], lora_b [out, rank]."""
    return (weight.float() + scale * (lora_b.float() @ lora_a.float())).to(weight.dtype)


def merge_trained(weights: dict[str, torch.Tensor], scale: float) -> dict[str, torch.Tensor]:
    """The base model under its own names, adapters merged, from the weights of a model under training."""
    merged = {}
    for name, weight in weights.items():
        if pair := trained_pair(name):
            lora_a, lora_b = (weights[each] for each in pair)
            weight = merged_weight(weight, lora_a, lora_b, scale)
        if not is_trained_adapter(name):
            merged[public_name(name)] = weight
    return merged


@dataclass(frozen=True)
class Adapter:
    """peft's adapter_config.json and tensors, under peft's names."""

    config: dict[str, Any]
    weights: TensorSource

    def scale(self, module: str) -> float:
        """alpha / rank of a module (rsLoRA: alpha / sqrt(rank)). A pattern may set both for some modules."""
        rank = _of_pattern(self.config.get("rank_pattern"), module, self.config["r"])
        alpha = _of_pattern(self.config.get("alpha_pattern"), module, self.config["lora_alpha"])
        return alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank)

    def check_mergeable(self, base: TensorSource) -> None:
        """Raises UserError for an adapter that is more than pairs of A and B for weights of `base`."""
        if self.config.get("use_dora") or self.config.get("peft_type", "LORA") != "LORA":
            raise UserError("--lora merge: the adapter is no plain LoRA; give --lora keep")
        names = self.weights.tensors().keys()
        pairs = [pair for weight in base.tensors() if names >= set(pair := public_pair(weight))]
        known = {name for pair in pairs for name in pair}
        if unknown := sorted(names - known):
            raise UserError(f"--lora merge: {unknown[0]} is no LoRA pair of a weight; give --lora keep")

    def save(self, folder: Path) -> None:
        """Write a standard peft adapter folder. An adapter is small enough to be in memory at once."""
        from safetensors.torch import save_file

        folder.mkdir(exist_ok=True)
        tensors = {name: self.weights.read(name).contiguous() for name in self.weights.tensors()}
        save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
        write_object(folder / CONFIG_FILE, self.config)


class MergedSource:
    """`base` with an adapter's products added to the weights that it adapts."""

    def __init__(self, base: TensorSource, adapter: Adapter) -> None:
        adapter.check_mergeable(base)
        self._base = base
        self._adapter = adapter
        self._adapted = adapter.weights.tensors().keys()

    def tensors(self) -> dict[str, TensorInfo]:
        return self._base.tensors()

    def read(self, name: str) -> torch.Tensor:
        weight = self._base.read(name)
        lora_a, lora_b = public_pair(name)
        if lora_a not in self._adapted:
            return weight
        read, scale = self._adapter.weights.read, self._adapter.scale(name.removesuffix(".weight"))
        return merged_weight(weight, read(lora_a), read(lora_b), scale)


class AdapterFile(SafetensorsFile):
    """The tensors of a peft adapter folder."""

    def tensors(self) -> dict[str, TensorInfo]:
        return self.infos()


def read_adapter(folder: Path) -> Adapter | None:
    """The peft adapter in `folder`, or None where there is none.

    Raises:
        UserError: where it is damaged.
    """
    if not (folder / CONFIG_FILE).is_file():
        return None
    return Adapter(read_object(folder / CONFIG_FILE), AdapterFile(folder / WEIGHTS_FILE))


def split_adapter(source: TensorSource, config: dict[str, Any]) -> tuple[TensorSource, Adapter]:
    """A checkpoint's base weights, and its adapter, whose tensors have peft's names."""
    names = source.tensors()
    base = {name: Part(name) for name in names if not is_public_adapter(name)}
    adapter = {name: Part(name) for name in names if is_public_adapter(name)}
    return RemappedSource(source, base), Adapter(config, RemappedSource(source, adapter))


def _of_pattern(pattern: dict[str, float] | None, module: str, default: float) -> float:
    """By peft's rule: the first key that matches the module's name, or the end of it after a dot."""
    for key, value in (pattern or {}).items():
        if re.fullmatch(rf"(.*\.)?({key})", module):
            return value
    return default
