"""RunConfig to DeepSpeed: the one place where its configuration dict is made."""

from dataclasses import dataclass
from typing import Any

import deepspeed
import torch
from torch import nn

from mdmscale.config import RunConfig
from mdmscale.layout import BatchLayout
from mdmscale.optim import make_optimizer


@dataclass(frozen=True)
class Engine:
    """A DeepSpeed engine behind two verbs, so that every ZeRO stage clips and reports the same way."""

    deepspeed: Any
    gradient_clipping: float
    clips_itself: bool

    def accumulate(self, loss: torch.Tensor, is_last: bool) -> None:
        """Backward of one micro-batch's mean loss; DeepSpeed averages over micro-batches and ranks.

        After all but the last micro-batch of a step this also moves DeepSpeed's accumulation on.
        """
        self.deepspeed.backward(loss)
        if not is_last:
            self.deepspeed.step()

    def step(self) -> float:
        """Clip and apply the step's gradients. Returns the global gradient norm before clipping.

        Where that is not finite the weights stay as they are.
        """
        if self.clips_itself:
            parameters = self.deepspeed.module.parameters()
            norm = nn.utils.clip_grad_norm_(parameters, self.gradient_clipping or float("inf"))
            if not norm.isfinite():  # as DeepSpeed does in the other stages; NaN would get into the weights
                self.deepspeed.module.zero_grad()
            self.deepspeed.step()
        else:
            self.deepspeed.step()
            norm = self.deepspeed.get_global_grad_norm()
        return float(norm)


def clips_itself(config: RunConfig) -> bool:
    """Whether clipping is ours: DeepSpeed reports no gradient norm for ZeRO-0 in fp32."""
    return config.parallel.zero_stage == 0 and config.model.dtype == "fp32"


def deepspeed_config(config: RunConfig, layout: BatchLayout) -> dict[str, Any]:
    """DeepSpeed's configuration. It accepts misspelled keys in silence, so users never write it."""
    stage = config.parallel.zero_stage
    is_bf16 = config.model.dtype == "bf16"
    # Many micro-batches add up to one gradient; in bf16 small ones would be lost. ZeRO-0 has no such choice.
    grad_accum_dtype = "fp32" if stage > 0 or not is_bf16 else "bf16"
    turns = layout.forwards  # each is a micro-batch of its own to DeepSpeed
    return {
        "train_batch_size": layout.global_batch_size * turns,
        "train_micro_batch_size_per_gpu": layout.micro_batch_size,
        "gradient_accumulation_steps": layout.accumulation * turns,
        "gradient_clipping": 0.0 if clips_itself(config) else config.optimizer.gradient_clipping,
        "bf16": {"enabled": is_bf16},
        "data_types": {"grad_accum_dtype": grad_accum_dtype},
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 2**31,
    }


def initialise_engine(model: nn.Module, config: RunConfig, layout: BatchLayout) -> Engine:
    """Hand the model (on the CPU) to DeepSpeed, which moves, casts and shards it as the config says."""
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=make_optimizer(model, config.optimizer),
        config=deepspeed_config(config, layout),
        dist_init_required=False,
    )
    return Engine(engine, config.optimizer.gradient_clipping, clips_itself(config))
