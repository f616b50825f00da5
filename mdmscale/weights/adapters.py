"""LoRA adapters in peft's format: merged into the weights, or written as a folder of their own."""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mdmscale.system.errors import UserError
from mdmscale.system.files import read_object, write_object
from mdmscale.weights.tensor_source import TensorInfo, TensorSource
from mdmscale.weights.tensor_views import Part, RemappedSource
from mdmscale.weights.weight_files import SafetensorsFile

PEFT_PREFIX = "base_model.model."
CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"


def merged_weight(
    weight: torch.Tensor, lora_a: torch.Tensor, lora_b: torch.Tensor, scale: float
) -> torch.Tensor:
    """W + scale * B A in fp32, in W's precision; weight [out, in], lora_a [rank, in], lora_b [out, rank]."""
    return (weight.float() + scale * (lora_b.float() @ lora_a.float())).to(weight.dtype)


@dataclass(frozen=True)
class Adapter:
    """peft's adapter_config.json and tensors, under peft's names."""

    config: dict[str, Any]
    weights: TensorSource

    def scale(self, module: str) -> float:
        """alpha / rank (or its root, for rsLoRA) of a module, whose own values may be in a pattern."""
        rank = _of_pattern(self.config.get("rank_pattern"), module, self.config["r"])
        alpha = _of_pattern(self.config.get("alpha_pattern"), module, self.config["lora_alpha"])
        return alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank)

    def check_mergeable(self, base: TensorSource) -> None:
        """Raises UserError for what is more than pairs of A and B beside known weights."""
        if self.config.get("use_dora") or self.config.get("peft_type", "LORA") != "LORA":
            raise UserError("--lora merge: the adapter is no plain LoRA; give --lora keep")
        names = self.weights.tensors().keys()
        pairs = {
            name: (f"{PEFT_PREFIX}{stem}.lora_A.weight", f"{PEFT_PREFIX}{stem}.lora_B.weight")
            for name in base.tensors()
            if (stem := name.removesuffix(".weight")) and f"{PEFT_PREFIX}{stem}.lora_A.weight" in names
        }
        if unknown := sorted(names - {name for pair in pairs.values() for name in pair}):
            raise UserError(f"--lora merge: {unknown[0]} is no LoRA pair of a weight; give --lora keep")

    def save(self, folder: Path) -> None:
        """Write a standard peft adapter folder; an adapter is small enough to be held at once."""
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
        module = name.removesuffix(".weight")
        lora_a, lora_b = (f"{PEFT_PREFIX}{module}.lora_{side}.weight" for side in "AB")
        if lora_a not in self._adapted:
            return weight
        read = self._adapter.weights.read
        return merged_weight(weight, read(lora_a), read(lora_b), self._adapter.scale(module))


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
    """A checkpoint's base weights, and its adapter's, which have peft's names."""
    names = source.tensors()
    base = {name: Part(name) for name in names if not name.startswith(PEFT_PREFIX)}
    adapter = {name: Part(name) for name in names if name.startswith(PEFT_PREFIX)}
    return RemappedSource(source, base), Adapter(config, RemappedSource(source, adapter))


def _of_pattern(pattern: dict[str, float] | None, module: str, default: float) -> float:
    """peft's rule: the first key that is the end of the module's name, at a dot."""
    for key, value in (pattern or {}).items():
        if re.fullmatch(rf"(.*\.)?({key})", module):
            return value
    return default
