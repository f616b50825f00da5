"""The options of sampling, checked before torch is imported."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from mdmscale.system.errors import UserError

Remasking = Literal["confidence", "margin", "entropy", "random"]
Eos = Literal["stop", "late", "never"]
Padding = Literal["left", "right"]


@dataclass(frozen=True)
class GenerationOptions:
    """What decides the text, besides the model and the prompt.

    Attributes:
        length: number of tokens of a response. An infilling has as many as it has masks.
        block_length: fill in blocks of this many masks, from left to right, each block before the next
            (LLaDA's semi-autoregressive sampling). None makes one block of all masks.
        steps: forward passes for a text, shared evenly among its blocks. None commits one token in each pass.
        threshold: replaces `steps`. Each pass commits every token of at least this confidence, and always the
            best one.
        remasking: which tokens a pass commits first: those with the highest probability (confidence), the
            largest lead over the second likeliest token (margin) or the lowest entropy, or random ones.
        temperature: 0 takes the likeliest token; 1 draws from the model's distribution.
        top_p: draw only from the likeliest tokens that together have this probability.
        guidance: w of classifier-free guidance: logits l_0 + (1 + w)(l - l_0), where l_0 sees no prompt.
        eos: stop: do not compute blocks after an EOS. late: as stop, and commit EOS after all other tokens.
            never: do not sample EOS.
        cache: compute the keys and values of finished blocks once per block instead of in every pass.
        padding: the side on which shorter texts of a batch are padded. It changes no token.
        seed: seed of the random draws.

    Raises:
        UserError: naming each option that is out of bounds or does not go together with another.
    """

    length: int = 128
    block_length: int | None = None
    steps: int | None = None
    threshold: float | None = None
    remasking: Remasking = "confidence"
    temperature: float = 0.0
    top_p: float = 1.0
    guidance: float = 0.0
    eos: Eos = "stop"
    cache: bool = False
    padding: Padding = "left"
    seed: int = 0

    def __post_init__(self) -> None:
        if problems := [*self._bounds(), *self._combinations()]:
            raise UserError(*problems)

    @property
    def draws(self) -> bool:
        """Whether sampling uses random numbers."""
        return self.temperature > 0 or self.remasking == "random"

    def _bounds(self) -> list[str]:
        problems = [
            f"{name} = {value}: must be at least 1"
            for name in ("length", "block_length", "steps")
            if (value := getattr(self, name)) is not None and value < 1
        ]
        for name, choices in (("remasking", Remasking), ("eos", Eos), ("padding", Padding)):
            if getattr(self, name) not in get_args(choices):
                problems.append(
                    f"{name} = {getattr(self, name)!r}: choose one of {', '.join(get_args(choices))}"
                )
        for name in ("temperature", "guidance"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                problems.append(f"{name} = {getattr(self, name)}: must be 0 or a positive number")
        for name in ("top_p", "threshold"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                problems.append(f"{name} = {value}: must be above 0 and at most 1")
        if not 0 <= self.seed < 2**63:
            problems.append(f"seed = {self.seed}: must be between 0 and 2^63 - 1")
        return problems

    def _combinations(self) -> list[str]:
        problems = []
        if self.steps is not None and self.threshold is not None:
            problems.append(
                "steps and threshold are both set, but a threshold decides the number of passes; set only one"
            )
        if self.threshold is not None and self.remasking in ("entropy", "random"):
            problems.append(
                f"threshold = {self.threshold} is a probability, but remasking = {self.remasking} does not "
                "rank by one; use confidence or margin"
            )
        if self.top_p < 1 and self.temperature == 0:
            problems.append(f"top_p = {self.top_p}: changes nothing at temperature 0; set temperature too")
        if self.cache and self.block_length is None:
            problems.append("cache: stores the keys and values of finished blocks; set block_length too")
        if self.cache and self.padding == "right":
            problems.append("cache: the blocks of a batch must lie in the same columns; set padding to left")
        if self.steps is not None and self.steps > self.length >= 1:
            problems.append(
                f"steps = {self.steps}: exceeds length = {self.length}; each step commits at least one token"
            )
        if self.steps is not None and self.block_length is not None and self.block_length >= 1:
            num_blocks = -(-self.length // self.block_length)
            if 1 <= self.steps < num_blocks:
                problems.append(
                    f"steps = {self.steps}: fewer than the {num_blocks} blocks that length = "
                    f"{self.length} and block_length = {self.block_length} make; each takes at least one"
                )
        return problems
