"""What the items of a task come to: accuracy with its interval, missing answers, tokens a forward, AUP."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from mdmscale.evaluation.statistics import wilson

ALPHA = 3.0
TOLERATED_LOSS = 5.0  # percentage points

Items = Sequence[dict[str, Any]]


def summarise(task: str, setting: str, items: Items) -> dict[str, Any]:
    """The summary of a task under one setting.

    accuracy: the share of items that are right, with its Wilson interval (95%).
    score: the points over those that could be had: for a set, the share of expected elements that were found.
    no_answer: the share of responses in which no answer was found. They count as wrong, too.
    tokens_per_forward: tokens before EOS a forward pass, over all items.
    """
    num_correct = sum(item["correct"] for item in items)
    num_forwards = sum(item["num_forwards"] for item in items)
    low, high = wilson(num_correct, len(items))
    return {
        "task": task,
        "setting": setting,
        "num_items": len(items),
        "accuracy": num_correct / len(items),
        "low": low,
        "high": high,
        "score": sum(item["points"] for item in items) / sum(item["possible"] for item in items),
        "no_answer": sum(item["extracted"] is None for item in items) / len(items),
        "forwards_per_text": num_forwards / len(items),
        "tokens_per_forward": sum(item["num_tokens"] for item in items) / max(1, num_forwards),
        "seconds": round(sum(item["seconds"] for item in items), 3),
    }


def with_aup(summary: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The summary, with a task's `aup` in each of its entries if it was run in several settings."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for entry in summary:
        point = (entry["tokens_per_forward"], 100 * entry["accuracy"])
        curves.setdefault(entry["task"], []).append(point)
    areas = {task: aup(points) for task, points in curves.items() if len(points) > 1}
    return [
        {**entry, **({"aup": areas[task]} if (task := entry["task"]) in areas else {})} for entry in summary
    ]


def aup(points: Sequence[tuple[float, float]], best: float | None = None) -> float:
    r"""Accuracy Under Parallelism: the weighted area under accuracy against tokens a forward.

        AUP = rho_1 y_1 + 1/2 sum_{i=2}^m (rho_i - rho_{i-1}) (y_i W(y_i) + y_{i-1} W(y_{i-1}))
        W(y) = min(exp(-alpha (1 - y / y_max)), 1),   alpha = 3

    The points are in the order of rho. Those with y < y_1 - 5 are left out: there, speed is bought with wrong
    answers. From d3LLM (arXiv 2601.07568; github.com/hao-ai-lab/d3LLM).

    Args:
        points: (rho, y): tokens a forward, and accuracy in percent. A point without a token is left out.
        best: y_max, the best accuracy that any method has on the task; None: of these points.
    """
    kept = sorted(point for point in points if point[0] > 0)
    if not kept:
        return 0.0
    kept = [(rho, y) for rho, y in kept if y >= kept[0][1] - TOLERATED_LOSS]
    most = max(y for _, y in kept) if best is None else best

    def weighted(y: float) -> float:
        return y * min(math.exp(-ALPHA * (1 - y / most)), 1.0) if most > 0 else 0.0

    area = kept[0][0] * kept[0][1]
    for (before, y_before), (rho, y) in pairwise(kept):
        area += (rho - before) * (weighted(y) + weighted(y_before)) / 2
    return area
