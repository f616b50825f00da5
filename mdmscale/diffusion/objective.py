"""The MDM objective, as a weight for the cross-entropy of each masked position.

For clean tokens x, eligible positions E with n = |E|, mask rate r = r(t) and mask m, the loss of a sample is

    l(x, t, m) = (1 / n) sum_{i in E} m_i CE_i / r(t)                     (LLaDA, arXiv 2502.09992)

in nats per token. The objective is int w(t) E_m l dt, with w = 1 unless `diffusion.loss_weight` says another
(loss_weight.py). With t ~ p, w(t) l / p(t) is an unbiased estimator of it. If a sample has several rows, the
estimator is the mean over its rows.
"""

from typing import Literal

Normalization = Literal["sample", "token"]
Objective = Literal["full", "ar", "paper_scripts"]
"""full: the MDM objective above. ar: cross-entropy of the next token, for comparison with that.
paper_scripts: what the authors' published scripts train, see paper_scripts.py."""

ModelKind = Literal["full", "ar"]
"""What a model is, as its config.json says: a masked diffusion model, or an autoregressive one."""


def model_kind(objective: Objective) -> ModelKind:
    """What a run with this objective trains: paper_scripts, too, trains a masked diffusion model."""
    return "ar" if objective == "ar" else "full"


def token_share(num_eligible: int, normalization: Normalization) -> float:
    """The weight of one eligible token in its sample's loss.

    `sample` divides by the sample's number of eligible tokens, so all samples have the same weight. `token`
    does not divide here. Instead the training step divides the batch's loss by the mean number of eligible
    tokens per sample of the global batch, so all eligible tokens have the same weight.
    """
    return 1 / max(1, num_eligible) if normalization == "sample" else 1.0
