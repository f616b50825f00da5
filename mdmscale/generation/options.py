"""The options of sampling, checked before torch is imported."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from mdmscale.system.errors import UserError

Schedule = Literal["even", "dream", "independent"]
Remasking = Literal["confidence", "margin", "entropy", "random"]
Scores = Literal["model", "sampling"]
Eos = Literal["stop", "keep", "late", "never"]
Cache = Literal["prefix", "dual"]
Padding = Literal["left", "right"]

CHOICES = {
    "schedule": Schedule,
    "remasking": Remasking,
    "scores": Scores,
    "eos": Eos,
    "cache": Cache,
    "padding": Padding,
}


@dataclass(frozen=True)
class GenerationOptions:
    """What decides the text, besides the model and the prompt.

    Attributes:
        length: number of tokens of a response. An infilling has as many as it has masks.
        block_length: fill in blocks of this many masks, from left to right, each block before the next
            (LLaDA's semi-autoregressive sampling). None makes one block of all masks.
        steps: forward passes for a text, shared evenly among its blocks. None takes one for each token.
        schedule: how many tokens each step of a block commits. even: equally many (LLaDA). dream: the share
            of masks that Dream's mask rates give, rounded down. independent: every mask draws the step at
            which it goes, so the number is random (Dream's `origin`, with random remasking).
        threshold: replaces `steps`. Each pass commits every token of at least this confidence, and always the
            best one.
        factor: replaces `steps`. Each pass commits the n best tokens, n being the largest with
            (n + 1)(1 - confidence of the n-th) < factor, and always the best one (arXiv 2505.22618).
        remasking: which tokens a pass commits first: those with the highest probability (confidence), the
            largest lead over the second likeliest token (margin) or the lowest entropy, or random ones.
        scores: the distribution of which these are taken: the model's own (LLaDA), or the one that tokens are
            drawn from, after temperature, top_p and top_k (Dream).
        order_temperature: 0 commits the best first. Above, n tokens are drawn without replacement from
            softmax(score / order_temperature) (Dream's alg_temp).
        temperature: 0 takes the likeliest token; 1 draws from the model's distribution.
        top_p: draw only from the likeliest tokens that together have this probability.
        top_k: draw only from this many of the likeliest tokens. None keeps all.
        guidance: w of classifier-free guidance: logits l_0 + (1 + w)(l - l_0), where l_0 sees no prompt.
        eos: stop: do not compute blocks after an EOS. keep: compute them. late: as stop, and commit EOS after
            all other tokens. never: do not sample EOS.
        cache: what each block computes once instead of in every pass: the keys and values of the tokens
            before it (prefix), or of all tokens outside it (dual). None computes everything in every pass.
        padding: the side on which shorter texts of a batch are padded. It changes no token.
        seed: seed of the random draws.

    Raises:
        UserError: naming each option that is out of bounds or does not go together with another.
    """

    length: int = 128
    block_length: int | None = None
    steps: int | None = None
    schedule: Schedule = "even"
    threshold: float | None = None
    factor: float | None = None
    remasking: Remasking = "confidence"
    scores: Scores = "model"
    order_temperature: float = 0.0
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int | None = None
    guidance: float = 0.0
    eos: Eos = "stop"
    cache: Cache | None = None
    padding: Padding = "left"
    seed: int = 0

    def __post_init__(self) -> None:
        if problems := [*self._bounds(), *self._commits(), *self._draws(), *self._cache()]:
            raise UserError(*problems)

    @property
    def draws(self) -> bool:
        """Whether tokens or their order are drawn at random."""
        return self.temperature > 0 or self.order_temperature > 0 or self.remasking == "random"

    def _bounds(self) -> list[str]:
        problems = [
            f"{name} = {value}: must be at least 1"
            for name in ("length", "block_length", "steps", "top_k")
            if (value := getattr(self, name)) is not None and value < 1
        ]
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            if value not in get_args(choices) and not (name == "cache" and value is None):
                problems.append(f"{name} = {value!r}: choose one of {', '.join(get_args(choices))}")
        for name in ("temperature", "order_temperature", "guidance"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                problems.append(f"{name} = {getattr(self, name)}: must be 0 or a positive number")
        for name in ("top_p", "threshold"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                problems.append(f"{name} = {value}: must be above 0 and at most 1")
        if self.factor is not None and not (math.isfinite(self.factor) and self.factor > 0):
            problems.append(f"factor = {self.factor}: must be a positive number, such as 1")
        if not 0 <= self.seed < 2**63:
            problems.append(f"seed = {self.seed}: must be between 0 and 2^63 - 1")
        return problems

    def _commits(self) -> list[str]:
        """Problems of the options that decide how many tokens a pass commits, and which."""
        problems = []
        deciding = [name for name in ("steps", "threshold", "factor") if getattr(self, name) is not None]
        if len(deciding) > 1:
            problems.append(
                f"{' and '.join(deciding)} are all set, but each alone decides how many tokens a pass "
                "commits; set only one"
            )
        for name in ("threshold", "factor"):
            if (value := getattr(self, name)) is None:
                continue
            if self.remasking in ("entropy", "random"):
                problems.append(
                    f"{name} = {value} compares probabilities, but remasking = {self.remasking} does not "
                    "rank by one; use confidence or margin"
                )
            for other, default in (("schedule", "even"), ("order_temperature", 0)):
                if getattr(self, other) != default:
                    problems.append(
                        f"{other} = {getattr(self, other)}: has no effect with {name}; leave one of them out"
                    )
        if self.order_temperature > 0 and self.remasking == "random":
            problems.append(
                f"order_temperature = {self.order_temperature}: has no effect on random remasking; leave it "
                "out"
            )
        return [*problems, *self._steps()]

    def _steps(self) -> list[str]:
        if self.steps is None or self.steps < 1 or self.schedule != "even":
            return []
        problems = []
        if self.steps > self.length >= 1:
            problems.append(
                f"steps = {self.steps}: exceeds length = {self.length}; each step commits at least one token"
            )
        if self.block_length is not None and self.block_length >= 1:
            num_blocks = -(-self.length // self.block_length)
            if self.steps < num_blocks:
                problems.append(
                    f"steps = {self.steps}: fewer than the {num_blocks} blocks that length = "
                    f"{self.length} and block_length = {self.block_length} make; each takes at least one"
                )
        return problems

    def _draws(self) -> list[str]:
        if self.temperature > 0 or self.scores == "sampling":
            return []
        return [
            f"{name} = {value}: changes nothing at temperature 0; set temperature too"
            for name, value, default in (("top_p", self.top_p, 1), ("top_k", self.top_k, None))
            if value != default
        ]

    def _cache(self) -> list[str]:
        problems = []
        if self.cache and self.block_length is None:
            problems.append("cache: keeps what each block does not compute; set block_length too")
        if self.cache and self.padding == "right":
            problems.append("cache: the blocks of a batch must lie in the same columns; set padding to left")
        return problems
