"""LoRA (arXiv 2106.09685) through peft: low-rank adapters beside frozen weights, added to a model."""

from pathlib import Path

import torch
from peft import LoraConfig, inject_adapter_in_model
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel

from mdmscale.config.model import LoraSection
from mdmscale.system.errors import UserError
from mdmscale.weights.adapter_names import WEIGHTS_FILE, is_trained_adapter, public_name


def add_lora(model: PreTrainedModel, options: LoraSection, base: str, seed: int) -> LoraConfig:
    """Freeze `model` and add adapters that change nothing yet: A random by `seed`, B zero.

    Args:
        base: the model that the adapter belongs to, as peft's folder will name it.

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


def save_adapter(weights: dict[str, torch.Tensor], config: LoraConfig, folder: Path) -> None:
    """Write a peft adapter folder, which `peft.PeftModel.from_pretrained` opens over the base model."""
    config.save_pretrained(str(folder))
    adapters = {
        public_name(name): weight.contiguous() for name, weight in weights.items() if is_trained_adapter(name)
    }
    save_file(adapters, folder / WEIGHTS_FILE, metadata={"format": "pt"})
