"""The `diffusion` section: how t and masks are drawn, and which positions may be masked."""

import re
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from mdmscale.config.section import Section, key
from mdmscale.diffusion.corruption import CORRUPTIONS, Corruption, corruption_of
from mdmscale.diffusion.objective import Objective


class PPotsSection(Section):
    target: Literal["paper", "loss", "gradient"] = key(
        "gradient",
        "second moment that p(t) is fitted to: E[g]^2+E[v] (paper), E[l^2] (loss), E||grad||^2 (gradient)",
    )
    fit: Literal["epr", "table"] = key(
        "table", "epr: the paper's parametric family; table: piecewise constant"
    )
    probe_steps: list[Annotated[int, Field(ge=0)]] = key(
        [0], "steps before which a probe measures statistics and p(t) is fitted; until then t is uniform"
    )
    num_x0: int = key(10, "number of samples in a probe", ge=2)
    num_t: int = key(29, "epr: t in a probe, midpoints of equal cells (table has fixed cells)", ge=8)
    num_masks: int = key(10, "masks per sample and t in a probe", ge=2)
    refit_every: int = key(
        0, "steps between refits of p(t) to the losses and gradient norms of training; 0: never", ge=0
    )
    defensive: float = key(
        0.05, "share of the uniform density in p(t), so that no weight exceeds 1/defensive", gt=0, le=1
    )

    @model_validator(mode="after")
    def _training_shows_the_target(self) -> Self:
        if self.refit_every and self.target == "paper":
            raise ValueError(
                "refit_every is set but target is paper: training draws one mask per sample, which does not "
                "separate E[g]^2 from E[v]; set target to loss or gradient, or use probe_steps instead"
            )
        return self


class ISADSection(Section):
    tokens: list[int | str] = key(
        ..., "delimiters: token ids, or texts of which every token counts, such as '####'", min_length=1
    )
    delta: float = key(0.1, "added to the mask rate of delimiters", gt=0, le=1)


class SyRMSection(Section):
    tokens: list[int] = key([], "ids of structural tokens")
    pattern: str | None = key(None, "regular expression that finds structural tokens by their text")
    extra: float = key(0.0, "share of the prompt's other tokens that may also be masked", ge=0, le=1)

    @field_validator("pattern")
    @classmethod
    def _is_a_pattern(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from None
        return pattern

    @model_validator(mode="after")
    def _names_something(self) -> Self:
        if not self.tokens and self.pattern is None and not self.extra:
            raise ValueError("no prompt tokens to mask; give tokens, pattern or extra")
        return self


# The keys of the section that an autoregressive run has no use for, and why.
WITHOUT_NOISE = {
    "t_sampler": "no t is drawn",
    "strata": "no t is drawn",
    "clip": "no t is drawn",
    "masking": "nothing is masked",
    "pair_forward": "there are no pairs",
    "eps": "nothing is masked",
    "ema_decay": "the loss does not depend on t",
    "isad": "nothing is masked",
    "syrm": "nothing is masked",
}


class DiffusionSection(Section):
    objective: Objective = key(
        "full",
        "full: masked diffusion; ar: the same model trained to predict the next token, with causal "
        "attention, for comparison",
    )
    t_sampler: Literal["uniform", "stratified", "low_discrepancy", "clipped", "p_pots"] = key(
        "uniform", "how t is drawn; clipped changes the objective, because it never draws t outside `clip`"
    )
    strata: int | None = key(
        None,
        "strata of t over the global batch, which they need not divide; null: one per sample for stratified, "
        "else none",
        ge=1,
    )
    clip: list[Annotated[float, Field(ge=0, le=1)]] | None = key(
        None, "clipped: the range of t; null means [0.3, 0.8]", min_length=2, max_length=2
    )
    masking: str = key(
        "bernoulli",
        "bernoulli: one mask per sample; mirror: an antithetic pair at t; complement: a pair at t and 1 - t",
        choices=CORRUPTIONS,
    )
    pair_forward: Literal["joint", "sequential"] = key(
        "joint",
        "joint: both rows of a pair in one forward; sequential: one forward each, with gradient accumulation "
        "(half the activation memory, the same numbers)",
    )
    eps: float = key(1e-3, "smallest mask rate: r(t) = (1 - eps) t + eps", gt=0, lt=1)
    normalization: Literal["sample", "token"] = key(
        "sample", "sample: every sample has the same weight; token: every eligible token has the same weight"
    )
    ema_decay: float = key(
        0.99,
        "decay per sample of the EMA baseline; the baseline gives loss_controlled, a less noisy log; 0: none",
        ge=0,
        lt=1,
    )
    p_pots: PPotsSection = key(PPotsSection(), "options of t_sampler: p_pots")
    isad: ISADSection | None = key(
        None, "mask answer delimiters more often, with less weight; changes which contexts are trained on"
    )
    syrm: SyRMSection | None = key(
        None, "sft: also mask structural prompt tokens; changes the objective from LLaDA's"
    )

    @field_validator("masking")
    @classmethod
    def _is_a_corruption(cls, masking: str) -> str:
        if masking not in CORRUPTIONS:
            raise ValueError(f"{masking!r} is unknown; choose one of {', '.join(CORRUPTIONS)}")
        return masking

    @model_validator(mode="after")
    def _options_are_used(self) -> Self:
        if self.objective == "ar":
            self._check_no_noise()
            return self
        corruption = self.corruption
        problems = []
        if self.strata is not None and self.t_sampler in ("uniform", "low_discrepancy"):
            problems.append(
                f"strata is set but t_sampler is {self.t_sampler}; "
                "strata need t_sampler stratified, clipped or p_pots"
            )
        if self.clip is not None and self.t_sampler != "clipped":
            problems.append(f"clip is set but t_sampler is {self.t_sampler}; only clipped uses it")
        if self.clip is not None and self.clip[0] >= self.clip[1]:
            problems.append(f"clip = {self.clip} is empty; give [low, high] with low < high")
        if self.pair_forward == "sequential" and corruption.num_rows == 1:
            problems.append(f"pair_forward is sequential but masking is {self.masking}, which has no pairs")
        if self.isad is not None and not corruption.takes_extra_rates:
            problems.append(f"isad is set but masking is {self.masking}, which has no mask rate per position")
        if corruption.needs_symmetric_range and abs(sum(self.t_range) - 1) > 1e-9:
            problems.append(
                f"masking is {self.masking} but clip = {list(self.t_range)} is not symmetric: 1 - t may be "
                "outside; give [low, 1 - low], or choose masking mirror"
            )
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _check_no_noise(self) -> None:
        defaults = DiffusionSection.model_fields
        unused = ("ema_decay",) if self.ema_decay == 0 else ()
        problems = [
            f"objective is ar, so {reason}, but {name} = {getattr(self, name)}; leave {name} out"
            for name, reason in WITHOUT_NOISE.items()
            if getattr(self, name) != defaults[name].default and name not in unused
        ]
        if problems:
            raise ValueError("\n".join(problems))

    @property
    def corruption(self) -> Corruption:
        """How samples become rows."""
        return corruption_of(self.objective, self.masking)

    @property
    def t_range(self) -> tuple[float, float]:
        """The range of t in training."""
        if self.t_sampler != "clipped":
            return 0.0, 1.0
        low, high = self.clip or (0.3, 0.8)
        return low, high

    @property
    def rows_per_sample(self) -> int:
        """Forward rows per sample: 2 for a pair."""
        return self.corruption.num_rows
