"""Losses of masked tokens: rows of several texts share a forward, logits only where a loss is wanted.

Legend: rows = forward rows; length = padded tokens; wanted = positions with a loss; vocab = logit columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mdmscale.models.opening import LoadedModel
from mdmscale.models.shape import head_chunk


@dataclass(frozen=True, eq=False)
class Row:
    """token_ids: int64 [length], with masks in place of hidden tokens. positions, targets: int64 [wanted]."""

    token_ids: np.ndarray
    positions: np.ndarray
    targets: np.ndarray


@dataclass(frozen=True, eq=False)
class RowScore:
    """losses: float64 [wanted], cross-entropies in nats. is_greedy: whether each target is the likeliest."""

    losses: np.ndarray
    is_greedy: bool


def score_rows(loaded: LoadedModel, rows: Sequence[Row], batch_size: int) -> list[RowScore]:
    """Score rows in forwards of `batch_size`, sorted by length so that little is padded."""
    scores: dict[int, RowScore] = {}
    order = sorted(range(len(rows)), key=lambda number: -len(rows[number].token_ids))
    for first in range(0, len(rows), batch_size):
        numbers = order[first : first + batch_size]
        losses, is_best = _losses(loaded, [rows[number] for number in numbers])
        edges = np.cumsum([len(rows[number].positions) for number in numbers])[:-1]
        parts = zip(numbers, np.split(losses, edges), np.split(is_best, edges), strict=True)
        scores.update({number: RowScore(loss, bool(best.all())) for number, loss, best in parts})
    return [scores[number] for number in range(len(rows))]


@torch.no_grad()
def _losses(loaded: LoadedModel, rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray]:
    """(cross-entropies, whether the target is the likeliest token) of the wanted positions, row by row."""
    device, length = loaded.device, max(len(row.token_ids) for row in rows)
    tokens = torch.zeros(len(rows), length, dtype=torch.int64)
    is_real = torch.zeros(len(rows), length, dtype=torch.bool)
    wanted = []
    for number, row in enumerate(rows):
        tokens[number, : len(row.token_ids)] = torch.from_numpy(row.token_ids)
        is_real[number, : len(row.token_ids)] = True
        wanted.append(number * length + _read_from(loaded, row.positions))
    # The decoder and the head apart, as the head must not project every position.
    decoder = loaded.model.base_model
    output = decoder(
        input_ids=tokens.to(device),
        attention_mask=None if bool(is_real.all()) else is_real.long().to(device),
        use_cache=False,
    )
    positions = torch.from_numpy(np.concatenate(wanted)).to(device)
    hidden = output.last_hidden_state.flatten(0, 1)[positions]  # [wanted, hidden]
    targets = torch.from_numpy(np.concatenate([row.targets for row in rows])).to(device)
    return _cross_entropy(loaded, hidden, targets)


def _read_from(loaded: LoadedModel, positions: np.ndarray) -> np.ndarray:
    """Where the logits of these positions are. A shifted model reads position 0 at 0, as Dream does."""
    return np.maximum(positions - 1, 0) if loaded.description.logit_shift or is_causal(loaded) else positions


def _cross_entropy(
    loaded: LoadedModel, hidden: torch.Tensor, targets: torch.Tensor
) -> tuple[np.ndarray, np.ndarray]:
    """The losses of hidden [wanted, hidden] in fp32, in chunks: never all their logits at once."""
    head = loaded.model.get_output_embeddings()
    size = head_chunk(loaded.description.vocab_size)
    losses, is_best = [], []
    for start in range(0, len(targets), size):
        logits = head(hidden[start : start + size]).float()  # [chunk, vocab]
        wanted = targets[start : start + size, None]
        of_target = logits.gather(1, wanted).squeeze(1)
        losses.append((logits.logsumexp(1) - of_target).double().cpu().numpy())
        is_best.append((of_target >= logits.amax(1)).cpu().numpy())
    return np.concatenate(losses), np.concatenate(is_best)


def is_causal(loaded: LoadedModel) -> bool:
    """Whether the model is autoregressive: each token is predicted from those before it."""
    return loaded.description.objective == "ar"
