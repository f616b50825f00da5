"""The `diffusion` section: how t and masks are drawn, and which positions may be masked."""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from mdmscale.config.section import Section, key
from mdmscale.diffusion.corruption import Corruption
from mdmscale.diffusion.loss_weight import LossWeight
from mdmscale.diffusion.maskings import CORRUPTIONS, corruption_of
from mdmscale.diffusion.objective import Objective
from mdmscale.diffusion.paper_scripts import T_RANGE as PAPER_RANGE
from mdmscale.system.patterns import pattern_problem


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
        if problem := pattern_problem(pattern or ""):
            raise ValueError(f"not a regular expression: {problem}")
        return pattern

    @model_validator(mode="after")
    def _names_something(self) -> Self:
        if not self.tokens and self.pattern is None and not self.extra:
            raise ValueError("no prompt tokens to mask; give tokens, pattern or extra")
        return self


class BellSection(Section):
    mean: float = key(0.5, "t of the largest weight", ge=0, le=1)
    std: float = key(0.2, "standard deviation over t of the normal density that the weight is", ge=0.05)


# The keys of the section that an autoregressive run has no use for, and why.
WITHOUT_NOISE = {
    "loss_weight": "no t is drawn",
    "window": "no t is drawn",
    "t_sampler": "no t is drawn",
    "strata": "no t is drawn",
    "masking": "nothing is masked",
    "rows": "nothing is masked",
    "weights": "nothing is masked",
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
        "attention, for comparison; paper_scripts: what the scripts of arXiv 2511.18159 train (biased)",
    )
    loss_weight: Literal["elbo", "uniform", "window", "bell", "learned"] = key(
        "elbo",
        "w(t), what the objective weighs. elbo: the likelihood bound; the others bound no likelihood. "
        "uniform: simple cross-entropy, every masked token weighs the same; window: only t in `window`; "
        "bell: a normal density over t; learned: inversely to the loss at t, so that each t contributes the "
        "same",
    )
    window: list[Annotated[float, Field(ge=0, le=1)]] | None = key(
        None, "loss_weight window: the range of t; null means [0.3, 0.8]", min_length=2, max_length=2
    )
    bell: BellSection = key(BellSection(), "options of loss_weight: bell")
    t_sampler: Literal["uniform", "stratified", "low_discrepancy", "p_pots"] = key(
        "uniform",
        "p(t), how t is drawn; it changes the variance, never the objective. p_pots: in proportion to the "
        "size of the gradient at t",
    )
    strata: int | None = key(
        None,
        "strata of t over the global batch, which they need not divide; null: one per sample for stratified, "
        "else none",
        ge=1,
    )
    masking: str = key(
        "bernoulli",
        "bernoulli: each token at a rate; independent: `rows` such masks; mirror: an antithetic pair at t; "
        "complement: a pair at t and 1 - t; exact: a drawn number of tokens, in `rows` coupled rows; "
        "exact_pair: the same with two rows",
        choices=CORRUPTIONS,
    )
    rows: int | None = key(
        None, "exact, independent: forward rows a sample; null: 1 for exact, 2 for independent", ge=1, le=64
    )
    weights: Literal["rate", "count"] | None = key(
        None,
        "what weighs a mask. rate: 1 / (r p) at its t; count: the mean of that over all t that may have made "
        "it, with less variance; null: count for bernoulli without isad, independent and exact, else rate",
    )
    pair_forward: Literal["joint", "sequential"] = key(
        "joint",
        "joint: all rows of a sample in one forward; sequential: one forward each, with gradient "
        "accumulation (less activation memory, the same numbers)",
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
        problems = [
            *self._sampler_problems(),
            *self._masking_problems(),
            *(self._script_problems() if self.objective == "paper_scripts" else []),
        ]
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _sampler_problems(self) -> list[str]:
        problems = []
        if self.strata is not None and self.t_sampler in ("uniform", "low_discrepancy"):
            problems.append(
                f"strata is set but t_sampler is {self.t_sampler}; strata need t_sampler stratified or p_pots"
            )
        if self.window is not None and self.loss_weight != "window":
            problems.append(f"window is set but loss_weight is {self.loss_weight}; only window uses it")
        if self.window is not None and self.window[0] >= self.window[1]:
            problems.append(f"window = {self.window} is empty; give [low, high] with low < high")
        if self.bell != BellSection() and self.loss_weight != "bell":
            problems.append(f"bell is set but loss_weight is {self.loss_weight}; only bell uses it")
        if self.loss_weight == "learned" and not self.ema_decay:
            problems.append(
                "loss_weight is learned from the average losses that ema_decay keeps, but ema_decay is 0; "
                "leave it out"
            )
        return problems

    def _masking_problems(self) -> list[str]:
        corruption, problems = self.corruption, []
        if self.pair_forward == "sequential" and corruption.num_rows == 1:
            problems.append(
                f"pair_forward is sequential but masking is {self.masking}, which has one row a sample"
            )
        if self.rows is not None and not corruption.takes_rows:
            problems.append(
                f"rows is set but masking is {self.masking}; choose masking exact (coupled rows) or "
                "independent, or leave rows out"
            )
        if self.isad is not None and not corruption.takes_extra_rates:
            problems.append(f"isad is set but masking is {self.masking}, which has no mask rate per position")
        if self.weights == "count" and self.isad is not None:
            problems.append(
                "weights is count but isad is set: with rates that differ by position, masks of as many "
                "tokens differ in weight; set weights to rate"
            )
        if self.weights == "rate" and corruption.draws_counts:
            problems.append(f"weights is rate but masking is {self.masking}, which has no rate; leave it out")
        if corruption.needs_symmetric_range and abs(sum(self.t_range) - 1) > 1e-9:
            problems.append(
                f"masking is {self.masking} but window = {list(self.t_range)} is not symmetric: 1 - t may be "
                "outside; give [low, 1 - low], or choose masking mirror"
            )
        return problems

    def _script_problems(self) -> list[str]:
        """The scripts' objective fixes most of the section."""
        wanted = {
            "t_sampler": ("p_pots",),
            "masking": ("bernoulli", "mirror"),
            "loss_weight": ("elbo",),
            "weights": (None, "rate"),
            "isad": (None,),
            "pair_forward": ("joint",),
            "normalization": ("sample",),
        }
        problems = [
            f"objective is paper_scripts but {name} = {getattr(self, name)}; the scripts have "
            f"{' or '.join('none' if each is None else each for each in values)}"
            for name, values in wanted.items()
            if getattr(self, name) not in values
        ]
        if self.p_pots.target != "paper" or self.p_pots.fit != "epr":
            problems.append(
                f"objective is paper_scripts but p_pots has target {self.p_pots.target} and fit "
                f"{self.p_pots.fit}; the scripts have target paper and fit epr"
            )
        return problems

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
        return corruption_of(self)

    @property
    def weighs_by_count(self) -> bool:
        """Whether a mask is weighed by its number of tokens: proven never worse for independent rows."""
        corruption = self.corruption
        if self.weights is None and not corruption.draws_counts:
            return corruption.can_weigh_by_count and not corruption.is_coupled and self.isad is None
        return self.weights != "rate"

    @property
    def initial_loss_weight(self) -> LossWeight:
        """w(t). If it is learned, it is that of the bound at first."""
        match self.loss_weight:
            case "uniform":
                return LossWeight.uniform(self.eps)
            case "window":
                return LossWeight.window(*(self.window or (0.3, 0.8)))
            case "bell":
                return LossWeight.bell(self.bell.mean, self.bell.std)
        return LossWeight.elbo()

    @property
    def t_range(self) -> tuple[float, float]:
        """The range of t in which the objective weighs anything."""
        return PAPER_RANGE if self.objective == "paper_scripts" else self.initial_loss_weight.support

    @property
    def drawn_range(self) -> tuple[float, float]:
        """The range in which t is drawn. Exact counts leave out no count, as each has some weight."""
        return (0.0, 1.0) if self.corruption.draws_counts else self.t_range

    @property
    def rows_per_sample(self) -> int:
        """Forward rows per sample: 2 for a pair."""
        return self.corruption.num_rows
