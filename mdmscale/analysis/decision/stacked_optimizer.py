"""Clipping, AdamW and an average of the weights, each for every lane of a stack by itself."""

from collections.abc import Sequence

import torch

from mdmscale.analysis.decision.stacked_model import StackedModel
from mdmscale.config.training import OptimizerSection
from mdmscale.engine.optim import learning_rate


class StackedOptimizer:
    """torch's fused AdamW, with two groups for each lane: its decayed parameters and its others.

    options: of each lane; lanes may differ in their learning rate, schedule and clipping.
    ema_decay: of `averages`, float32 [lanes, parameters]: an exponential moving average of the weights after
    each step, which begins at the first weights.
    """

    def __init__(
        self,
        model: StackedModel,
        options: Sequence[OptimizerSection],
        num_steps: int,
        ema_decay: float,
    ) -> None:
        assert len(options) == model.num_lanes
        self.model, self.options, self.num_steps, self.ema_decay = model, options, num_steps, ema_decay
        self.averages = model.values.clone()
        self.limits = torch.tensor([each.gradient_clipping or float("inf") for each in options])  # [lanes]
        groups: list[dict[str, object]] = []
        decayed = model.shape.num_decayed
        for lane, each in enumerate(options):
            for part, decay in ((slice(0, decayed), each.weight_decay), (slice(decayed, None), 0.0)):
                flat = model.values[lane, part].detach().requires_grad_()
                flat.grad = model.gradients[lane, part]
                betas = (each.betas[0], each.betas[1])
                groups.append(
                    {"params": [flat], "weight_decay": decay, "betas": betas, "eps": each.eps, "lane": lane}
                )
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, fused=True)

    @torch.no_grad()
    def step(self, step: int) -> torch.Tensor:
        """Clip the model's gradients and apply them.

        Returns:
            The gradient norms before clipping, float32 [lanes].
        """
        gradients = self.model.gradients
        norms = torch.linalg.vector_norm(gradients, dim=1)
        gradients.mul_((self.limits / (norms + 1e-6)).clamp(max=1.0)[:, None])
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, self.num_steps, self.options[group["lane"]])
        self.optimizer.step()
        self.averages.lerp_(self.model.values, 1 - self.ema_decay)
        return norms
