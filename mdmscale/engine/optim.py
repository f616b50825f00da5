"""AdamW's parameter groups, and learning-rate schedules as pure functions of the step."""

import math
from typing import Any

import torch
from torch import nn

from mdmscale.config.training import OptimizerSection
from mdmscale.engine.averaging import AveragingAdamW


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Two groups: matrices with weight decay; norms, biases and embeddings without. No group is empty.

    A head that is tied to the input embedding counts as an embedding. The kind of a parameter follows from
    its module, because under ZeRO-3 the shape of a parameter says nothing.
    """
    undecayed_ids = {
        id(parameter)
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if isinstance(module, nn.Embedding) or "norm" in type(module).__name__.lower() or name == "bias"
    }
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decayed = [parameter for parameter in trained if id(parameter) not in undecayed_ids]
    undecayed = [parameter for parameter in trained if id(parameter) in undecayed_ids]
    groups: list[dict[str, object]] = [
        {"params": decayed, "is_decayed": True, "weight_decay": weight_decay},
        {"params": undecayed, "is_decayed": False, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]  # for example, all adapters are matrices


def named_groups(model: nn.Module) -> list[list[str]]:
    """The parameter names of each group in `parameter_groups`."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, 0.0)
    return [[names[id(parameter)] for parameter in group["params"]] for group in groups]  # type: ignore[attr-defined]


def make_optimizer(
    model: nn.Module, options: OptimizerSection, ema_decay: float | None = None
) -> torch.optim.AdamW:
    """AdamW over `parameter_groups`. `set_learning_rate` sets its learning rate at each step.

    With `ema_decay` it also averages the weights, see averaging.py.

    The fused kernel reads and writes each element once and needs no temporaries. It is used on the device
    and, for offloaded state, on the host.
    """
    groups = parameter_groups(model, options.weight_decay)
    values: dict[str, Any] = {
        "lr": options.lr,
        "betas": (options.betas[0], options.betas[1]),
        "eps": options.eps,
        "fused": True,
    }
    if ema_decay is None:
        return torch.optim.AdamW(groups, **values)
    return AveragingAdamW(groups, ema_decay, **values)


def set_options(optimizer: torch.optim.Optimizer, options: OptimizerSection) -> None:
    """Give this config's options to every group of `optimizer`, which may be DeepSpeed's wrapper."""
    for group in optimizer.param_groups:
        group["betas"] = (options.betas[0], options.betas[1])
        group["eps"] = options.eps
        group["weight_decay"] = options.weight_decay if group["is_decayed"] else 0.0


def learning_rate(step: int, num_steps: int, options: OptimizerSection) -> float:
    """The learning rate of step `step` (0-based) of `num_steps`.

    A linear warm-up from 0 reaches the peak at step warmup_steps. Then the rate decays to min_lr_ratio times
    the peak at step num_steps. The schedule wsd holds the peak and decays linearly in the last decay_steps.
    """
    warmup = options.warmup_steps
    if step < warmup:
        return options.lr * (step + 1) / (warmup + 1)
    match options.schedule:
        case "constant":
            share = 1.0
        case "linear":
            share = 1 - _progress(step, warmup, num_steps)
        case "cosine":
            share = 0.5 * (1 + math.cos(math.pi * _progress(step, warmup, num_steps)))
        case "wsd":
            decay_steps = options.decay_steps or max(1, num_steps // 10)
            share = 1 - _progress(step, max(warmup, num_steps - decay_steps), num_steps)
    return options.lr * (options.min_lr_ratio + (1 - options.min_lr_ratio) * share)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give the rate to every group of `optimizer`, which may be DeepSpeed's wrapper."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def _progress(step: int, start: int, end: int) -> float:
    return min(1.0, max(0.0, (step - start) / max(1, end - start)))
