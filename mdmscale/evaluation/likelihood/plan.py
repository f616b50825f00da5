"""The rows that measure a target's likelihood, and the estimate that their losses give.

Methods, of -log p(target | prompt):

- `any-order`: the bound of masks.py over all tokens of the target.
- `block`: blocks from left to right. Each is bounded by masks.py given the prompt and the clean blocks before
  it; the blocks after it are masked. It is the likelihood of decoding in blocks.
- `left-to-right`: blocks of one token, for which the bound is exact: the chain rule.

Legend: n = tokens of the target; rows = forward rows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from mdmscale.diffusion.uniforms import Stream, generator
from mdmscale.evaluation.likelihood.masks import SAMPLERS, MaskRows, enumerated
from mdmscale.system.errors import UserError

METHODS = ("any-order", "left-to-right", "block")
# A replicate is a group of coupled rows. Several of them, independent of each other, show the error.
NUM_REPLICATES = 2


@dataclass(frozen=True)
class LikelihoodOptions:
    """How a likelihood is measured. The same options and seed give every model the same masks.

    Attributes:
        method: one of METHODS.
        estimator: one of masks.SAMPLERS.
        rows: masks for each target, or for each block of it. Where there are no more, all are taken.
        block_length: tokens of a block, for the method block.
        seed: of the masks.
    """

    method: str = "any-order"
    estimator: str = "stratified"
    rows: int = 32
    block_length: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        problems = []
        if self.method not in METHODS:
            problems.append(f"method = {self.method!r}: choose one of {', '.join(METHODS)}")
        if self.estimator not in SAMPLERS:
            problems.append(f"estimator = {self.estimator!r}: choose one of {', '.join(SAMPLERS)}")
        if self.rows < 4 or self.rows % 4:
            problems.append(f"rows = {self.rows}: must be a positive multiple of 4, as rows come in groups")
        if self.method == "block" and (self.block_length is None or self.block_length < 1):
            problems.append(f"block_length = {self.block_length}: method block needs one of at least 1")
        if self.method != "block" and self.block_length is not None:
            problems.append(f"block_length = {self.block_length}: goes with method = block")
        if not 0 <= self.seed < 2**64:
            problems.append(f"seed = {self.seed}: must be in 0 .. 2^64 - 1")
        if problems:
            raise UserError(*problems)


@dataclass(frozen=True, eq=False)
class BlockRows:
    """The rows of one block of a target. The tokens before it are clean, those after it masked.

    first: where the block begins. masks: bool [rows, size], its masked tokens. weights: float64 [rows].
    replicates: int64 [rows], 0, 1, ...; is_exact: whether all masks are there. has_controls: see `estimate`.
    """

    first: int
    masks: np.ndarray
    weights: np.ndarray
    replicates: np.ndarray
    is_exact: bool
    has_controls: bool

    def estimate(self, losses: np.ndarray) -> tuple[float, float]:
        """(the bound in nats, the variance of its Monte Carlo error).

        With controls, a row does not count which tokens it happens to mask: hard ones or easy ones. A token's
        difficulty is its mean loss in the *other* replicates, which this row's mask cannot know. So its mean
        over the row's mask, less that over the block, has expectation 0, and is subtracted.

        Args:
            losses: float64 [rows, size], 0 where not masked.
        """
        values = losses.sum(1)  # [rows]
        if self.has_controls and not self.is_exact:
            values = values - self._controls(losses)
        totals = np.bincount(self.replicates, self.weights * values)  # [replicates]
        variance = 0.0 if self.is_exact else float(totals.var(ddof=1)) / len(totals)
        return float(totals.mean()), variance

    def _controls(self, losses: np.ndarray) -> np.ndarray:
        """What each row sums up too much because its tokens are harder than the block's. float64 [rows]."""
        controls = np.empty(len(losses))
        for replicate in range(self.replicates.max() + 1):
            own = self.replicates == replicate
            sums, counts = losses[~own].sum(0), self.masks[~own].sum(0)  # [size]
            difficulty = (sums + sums.sum() / counts.sum()) / (
                counts + 1
            )  # drawn to the mean, as if seen once
            controls[own] = self.masks[own] @ (difficulty - difficulty.mean())
        return controls


def plan_rows(
    prompt_ids: Sequence[int], target_ids: Sequence[int], options: LikelihoodOptions
) -> Iterator[BlockRows]:
    """The rows of a target, block by block. Their masks are a function of the tokens and the seed."""
    n = len(target_ids)
    key = _noise_key(prompt_ids, target_ids)
    size = {"any-order": n, "left-to-right": 1, "block": options.block_length or n}[options.method]
    for number, first in enumerate(range(0, n, size)):
        rows, replicates, is_exact = _masks(min(size, n - first), options, key, number)
        has_controls = options.estimator == "stratified"
        yield BlockRows(first, rows.masks, rows.weights, replicates, is_exact, has_controls)


def num_rows(n: int, options: LikelihoodOptions) -> int:
    """How many forward rows a target of `n` tokens takes."""
    size = {"any-order": n, "left-to-right": 1, "block": options.block_length or n}[options.method]
    full, rest = divmod(n, size)
    return full * min(2**size - 1, options.rows) + (min(2**rest - 1, options.rows) if rest else 0)


def _masks(n: int, options: LikelihoodOptions, key: int, block: int) -> tuple[MaskRows, np.ndarray, bool]:
    """(the masks of a block of n tokens, each row's replicate, whether they are all that there are)."""
    if 2**n - 1 <= options.rows:
        masks = enumerated(n)
        return masks, np.zeros(len(masks.weights), dtype=np.int64), True
    num_replicates = options.rows if options.estimator == "independent" else NUM_REPLICATES
    num_uniforms = {"independent": 1, "pairs": options.rows // num_replicates // 2}.get(
        options.estimator, options.rows // num_replicates
    )
    parts = []
    for replicate in range(num_replicates):
        random = generator(options.seed, Stream.LIKELIHOOD, key, block * options.rows + replicate)
        uniforms, permutation = random.random(num_uniforms), random.permutation(n)
        parts.append(SAMPLERS[options.estimator](n, uniforms, permutation))
    joined = MaskRows(
        np.concatenate([part.masks for part in parts]), np.concatenate([part.weights for part in parts])
    )
    return joined, np.repeat(np.arange(num_replicates), [len(part.weights) for part in parts]), False


def _noise_key(prompt_ids: Sequence[int], target_ids: Sequence[int]) -> int:
    """64 bits that key a target's masks: a hash of its tokens, so that no other text can change them."""
    text = f"{','.join(map(str, prompt_ids))}|{','.join(map(str, target_ids))}"
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")
