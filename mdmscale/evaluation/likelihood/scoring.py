"""Likelihoods of many targets under a model, in order, with the rows of several targets in one forward."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mdmscale.evaluation.likelihood.forward import Row, is_causal, score_rows
from mdmscale.evaluation.likelihood.plan import BlockRows, LikelihoodOptions, num_rows, plan_rows
from mdmscale.models.opening import LoadedModel
from mdmscale.system.errors import UserError

FORWARDS_AHEAD = 16  # targets are gathered until they fill as many forwards, and then sorted by length


@dataclass(frozen=True)
class Scored:
    """A target, and the given tokens before it, of which nothing is scored."""

    prompt_ids: list[int]
    target_ids: list[int]


@dataclass(frozen=True)
class LogLikelihood:
    """The log-likelihood of a target, or its lower bound.

    Attributes:
        nats: the sum over the target's tokens, at most 0 but for the estimator's error.
        standard_error: of `nats`, from the Monte Carlo draws; 0 where there are none.
        num_tokens: how many tokens are scored.
        num_forwards: rows of the model.
        is_greedy: whether each token is the likeliest given those before it. None by methods that do not see
            them one by one.
    """

    nats: float
    standard_error: float
    num_tokens: int
    num_forwards: int
    is_greedy: bool | None = None


def log_likelihoods(
    loaded: LoadedModel, items: Sequence[Scored], options: LikelihoodOptions, batch_size: int
) -> Iterator[LogLikelihood]:
    """The log-likelihood of every item, in order. Items of similar length next to each other pad less.

    An autoregressive model scores an item exactly in one row, whatever the options. Where nothing is before
    the target, it then begins with EOS, as documents follow each other in training.

    Args:
        batch_size: rows of a forward.

    Raises:
        UserError: where an item is empty, does not fit the model or holds its mask token.
    """
    for number, item in enumerate(items):
        check_item(loaded, item, f"item {number}")
    pending: list[_Planned] = []
    num_pending = 0
    for item in items:
        pending.append(_plan(loaded, item, options))
        num_pending += pending[-1].num_rows
        if num_pending >= FORWARDS_AHEAD * batch_size:
            yield from _finish(loaded, pending, batch_size)
            pending, num_pending = [], 0
    yield from _finish(loaded, pending, batch_size)


def num_forwards(loaded: LoadedModel, item: Scored, options: LikelihoodOptions) -> int:
    """How many rows of the model an item takes."""
    return 1 if is_causal(loaded) else num_rows(len(item.target_ids), options)


def check_item(loaded: LoadedModel, item: Scored, name: str) -> None:
    """Refuse what the model cannot score.

    Raises:
        UserError: naming the item.
    """
    facts, tokens = loaded.description, [*item.prompt_ids, *item.target_ids]
    if not item.target_ids:
        raise UserError(f"{name}: has no token to score; leave it out")
    if len(tokens) > facts.max_length:
        raise UserError(
            f"{name}: a prompt of {len(item.prompt_ids)} and {len(item.target_ids)} tokens to score exceed "
            f"the model's max_position_embeddings = {facts.max_length}; shorten it"
        )
    if facts.mask_token_id in tokens:
        raise UserError(f"{name}: holds the mask token (id {facts.mask_token_id}), which no text can mean")
    if wrong := [token for token in tokens if not 0 <= token < facts.vocab_size]:
        raise UserError(
            f"{name}: token id {wrong[0]} is not below the model's vocabulary of {facts.vocab_size}; the "
            f"ids, or the tokenizer in {facts.folder}, belong to another model"
        )


def windows(
    prompt_ids: Sequence[int], target_ids: Sequence[int], max_length: int, context: int = 0
) -> list[Scored]:
    """A long target in windows of at most `max_length` tokens, whose log-likelihoods add up to the whole's.

    Every token is scored once. The first window is given `prompt_ids`, each later one the last `context`
    tokens before it, or `prompt_ids` where `context` is 0.

    Raises:
        UserError: where the given tokens leave no room.
    """
    if max(len(prompt_ids), context) >= max_length:
        given = max(len(prompt_ids), context)
        raise UserError(f"max_length = {max_length}: {given} given tokens leave no room for others")
    found, first = [], 0
    while first < len(target_ids):
        before = list(target_ids[max(0, first - context) : first]) if context and first else list(prompt_ids)
        stop = min(first + max_length - len(before), len(target_ids))
        found.append(Scored(before, list(target_ids[first:stop])))
        first = stop
    return found


@dataclass(frozen=True, eq=False)
class _Planned:
    """An item's rows, block by block; without blocks it is scored exactly by one causal row."""

    item: Scored
    rows: list[Row]
    blocks: list[BlockRows]
    is_token_by_token: bool

    @property
    def num_rows(self) -> int:
        return len(self.rows)


def _plan(loaded: LoadedModel, item: Scored, options: LikelihoodOptions) -> _Planned:
    if is_causal(loaded):
        return _Planned(item, [_causal_row(loaded, item)], [], True)
    blocks = list(plan_rows(item.prompt_ids, item.target_ids, options))
    prompt, target = (np.asarray(ids, dtype=np.int64) for ids in (item.prompt_ids, item.target_ids))
    rows = []
    for block in blocks:
        for mask in block.masks:
            wanted = block.first + np.flatnonzero(mask)
            seen = np.concatenate([prompt, target])
            seen[len(prompt) + wanted] = loaded.description.mask_token_id
            seen[len(prompt) + block.first + len(mask) :] = loaded.description.mask_token_id
            rows.append(Row(seen, len(prompt) + wanted, target[wanted]))
    return _Planned(item, rows, blocks, is_token_by_token=len(blocks) == len(target))


def _causal_row(loaded: LoadedModel, item: Scored) -> Row:
    """All tokens, each predicted from those before it."""
    prompt = item.prompt_ids or [loaded.tokenizer.eos_token_id]
    if prompt[0] is None:
        raise UserError("the tokenizer has neither BOS nor EOS, so nothing is before the first token")
    size = len(prompt)
    return Row(
        np.array([*prompt, *item.target_ids], dtype=np.int64),
        np.arange(size, size + len(item.target_ids)),
        np.array(item.target_ids, dtype=np.int64),
    )


def _finish(loaded: LoadedModel, planned: list[_Planned], batch_size: int) -> Iterator[LogLikelihood]:
    """Score the rows of some items together."""
    scores = score_rows(loaded, [row for each in planned for row in each.rows], batch_size)
    first = 0
    for each in planned:
        at = slice(first, first + each.num_rows)
        first = at.stop
        nats, error = _estimate(each.blocks, [score.losses for score in scores[at]])
        is_greedy = all(score.is_greedy for score in scores[at]) if each.is_token_by_token else None
        yield LogLikelihood(-nats, error, len(each.item.target_ids), each.num_rows, is_greedy)


def _estimate(blocks: list[BlockRows], losses: list[np.ndarray]) -> tuple[float, float]:
    """(the bound in nats, its standard error): blocks add up, and so do the variances of their errors."""
    if not blocks:
        return float(np.concatenate(losses).sum()), 0.0
    bound = variance = 0.0
    first = 0
    for block in blocks:
        table = np.zeros(block.masks.shape)
        for row, found in enumerate(losses[first : first + len(table)]):
            table[row, block.masks[row]] = found
        first += len(table)
        of_block, its_variance = block.estimate(table)
        bound, variance = bound + of_block, variance + its_variance
    return bound, float(np.sqrt(variance))
