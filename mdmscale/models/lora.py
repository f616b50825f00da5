"""LoRA (arXiv 2106.09685) through peft: low-rank adapters beside frozen weights, in place.

peft renames an adapted `q_proj.weight` to `q_proj.base_layer.weight` and puts `q_proj.lora_A.default.weight`
and `lora_B` beside it. The functions here translate these names to the base model's and peft's own.
"""

from pathlib import Path

import torch
from peft import LoraConfig, inject_adapter_in_model
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel

from mdmscale.config.model import LoraSection
from mdmscale.system.errors import UserError
from mdmscale.weights.adapters import PEFT_PREFIX, WEIGHTS_FILE, merged_weight

BASE = ".base_layer.weight"
SIDE_A, SIDE_B = ".lora_A.default.weight", ".lora_B.default.weight"


def add_lora(model: PreTrainedModel, options: LoraSection, base: str, seed: int) -> LoraConfig:
    """Freeze `model` and add adapters that change nothing yet: A random by `seed`, B zero.

    Args:
        base: what peft's folder names as the model that it belongs to.

    Raises:
        UserError: where target_modules names no linear layer.
    """
    linears = {
        name.rpartition(".")[2] for name, each in model.model.named_modules() if isinstance(each, nn.Linear)
    }
    targets = options.target_modules or sorted(linears)
    if unknown := sorted(set(targets) - linears):
        raise UserError(f"model.lora.target_modules: {unknown[0]!r} is none of {', '.join(sorted(linears))}")
    config = LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,
        target_modules=targets,
        task_type="CAUSAL_LM",
        base_model_name_or_path=base,
    )
    model.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model)
    return config


def public_name(name: str) -> str:
    """A parameter's name in the base model's folder, or, of an adapter, in peft's."""
    if name.endswith((SIDE_A, SIDE_B)):
        return PEFT_PREFIX + name.replace(".default.", ".")
    return name.removesuffix(BASE) + ".weight" if name.endswith(BASE) else name


def merge(weights: dict[str, torch.Tensor], scale: float) -> dict[str, torch.Tensor]:
    """The weights of the base model with `scale` times the adapters' products added, under its own names."""
    merged = {}
    for name, weight in weights.items():
        if name.endswith(BASE):
            module = name.removesuffix(BASE)
            weight = merged_weight(weight, weights[module + SIDE_A], weights[module + SIDE_B], scale)
        if not name.endswith((SIDE_A, SIDE_B)):
            merged[public_name(name)] = weight
    return merged


def save_adapter(weights: dict[str, torch.Tensor], config: LoraConfig, folder: Path) -> None:
    """A peft adapter folder that `peft.PeftModel.from_pretrained` opens over the base model."""
    config.save_pretrained(str(folder))
    adapters = {
        public_name(name): weight.contiguous()
        for name, weight in weights.items()
        if name.endswith((SIDE_A, SIDE_B))
    }
    save_file(adapters, folder / WEIGHTS_FILE, metadata={"format": "pt"})
