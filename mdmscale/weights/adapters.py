"""LoRA adapters in peft's format: merged into the weights, or written as a folder of their own."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mdmscale.system.bounded import BoundedError
from mdmscale.system.errors import UserError
from mdmscale.system.files import read_object, write_object
from mdmscale.system.links import check_links
from mdmscale.system.patterns import found_in
from mdmscale.system.sums import check_sums
from mdmscale.weights.adapter_names import (
    CONFIG_FILE,
    OLD_WEIGHTS_FILE,
    WEIGHTS_FILE,
    is_public_adapter,
    is_trained_adapter,
    public_name,
    public_pair,
    trained_pair,
)
from mdmscale.weights.tensor_source import TensorInfo, TensorSource
from mdmscale.weights.tensor_views import Part, RemappedSource
from mdmscale.weights.weight_files import BinFile, SafetensorsFile, WeightFile

# Variants of LoRA that compute something else from the same A and B.
VARIANTS = ("use_dora", "use_qalora", "use_bdlora", "alora_invocation_tokens", "arrow_config")


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
    """peft's adapter_config.json and tensors, under peft's names.

    Attributes:
        config: the content of adapter_config.json.
        weights: the pairs of A and B, and whatever else the adapter has.
        origin: where it is, for messages.
    """

    config: dict[str, Any]
    weights: TensorSource
    origin: str = "adapter"

    def scale(self, module: str) -> float:
        """alpha / rank of a module (rsLoRA: alpha / sqrt(rank)). A pattern may set both for some modules."""
        rank = _of_pattern(self.config.get("rank_pattern"), module, self.config["r"])
        alpha = _of_pattern(self.config.get("alpha_pattern"), module, self.config["lora_alpha"])
        return alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank)

    def check_mergeable(self, base: TensorSource, mend: str) -> None:
        """Check that the adapter is pairs of A and B for weights of `base`, and nothing more.

        Raises:
            UserError: naming what cannot be merged, and `mend`.
        """
        if missing := [name for name in ("r", "lora_alpha") if name not in self.config]:
            raise UserError(f"{self.origin}: {CONFIG_FILE} has no {missing[0]}, so it is no LoRA adapter")
        variants = [name for name in VARIANTS if self.config.get(name)]
        if variants or self.config.get("peft_type", "LORA") != "LORA":
            named = variants[0] if variants else f"peft_type {self.config['peft_type']}"
            raise UserError(f"{self.origin}: is no plain LoRA ({named}), so it is not merged; {mend}")
        weights, names = base.tensors(), self.weights.tensors()
        pairs = {weight: pair for weight in weights if names.keys() >= set(pair := public_pair(weight))}
        if unknown := sorted(names.keys() - {name for pair in pairs.values() for name in pair}):
            raise UserError(f"{self.origin}: {unknown[0]} is no LoRA pair of a weight; {mend}")
        for weight, (lora_a, lora_b) in pairs.items():
            a, b = names[lora_a].shape, names[lora_b].shape
            if (b[0], a[-1]) != weights[weight].shape or a[0] != b[-1]:
                raise UserError(
                    f"{self.origin}: {lora_a} {a} and its lora_B {b} do not fit {weight} "
                    f"{weights[weight].shape}; the adapter belongs to another model"
                )

    def save(self, folder: Path) -> None:
        """Write a standard peft adapter folder. An adapter is small enough to be in memory at once."""
        from safetensors.torch import save_file

        folder.mkdir(exist_ok=True)
        tensors = {name: self.weights.read(name).contiguous() for name in self.weights.tensors()}
        save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
        write_object(folder / CONFIG_FILE, self.config)


class MergedSource:
    """`base` with an adapter's products added to the weights that it adapts."""

    def __init__(self, base: TensorSource, adapter: Adapter, mend: str = "give --lora keep") -> None:
        """Refuses, with `mend`, an adapter that cannot be merged."""
        adapter.check_mergeable(base, mend)
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


class AdapterFile:
    """The tensors of a peft adapter folder, whose file is safetensors, or .bin of older releases.

    Raises:
        UserError: where the file is missing or damaged, or does not match the sums of the folder.
    """

    def __init__(self, folder: Path) -> None:
        check_sums(folder)
        old, path = folder / OLD_WEIGHTS_FILE, folder / WEIGHTS_FILE
        if not path.is_file() and not old.is_file():
            raise UserError(f"{path}: is missing, but {CONFIG_FILE} is there")
        self._file: WeightFile = SafetensorsFile(path) if path.is_file() else BinFile(old)

    def tensors(self) -> dict[str, TensorInfo]:
        return self._file.infos()

    def read(self, name: str) -> torch.Tensor:
        return self._file.read(name)


def read_adapter(folder: Path) -> Adapter | None:
    """The peft adapter in `folder`, or None where there is none.

    Raises:
        UserError: where it is damaged.
    """
    if not (folder / CONFIG_FILE).is_file():
        return None
    check_links(folder)
    return Adapter(read_object(folder / CONFIG_FILE), AdapterFile(folder), str(folder))


def split_adapter(source: TensorSource, config: dict[str, Any]) -> tuple[TensorSource, Adapter]:
    """A checkpoint's base weights, and its adapter, whose tensors have peft's names."""
    names = source.tensors()
    base = {name: Part(name) for name in names if not is_public_adapter(name)}
    adapter = {name: Part(name) for name in names if is_public_adapter(name)}
    return RemappedSource(source, base), Adapter(config, RemappedSource(source, adapter))


def _of_pattern(pattern: dict[str, float] | None, module: str, default: float) -> float:
    """By peft's rule: the first key that matches the module's name, or the end of it after a dot.

    Keys are regular expressions.

    Raises:
        UserError: naming one that is none, or takes too long.
    """
    for key, value in (pattern or {}).items():
        try:
            if found_in(rf"\A(?:(.*\.)?({key}))\Z", [module]):
                return value
        except BoundedError as error:
            raise UserError(f"{CONFIG_FILE}: the pattern {key!r}: {error}") from None
    return default
