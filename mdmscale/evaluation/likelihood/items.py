"""Items of results.json: what was measured of a text, a response or a question."""

import math
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import numpy as np

from mdmscale.evaluation.likelihood.encoding import Target
from mdmscale.evaluation.likelihood.scoring import LogLikelihood
from mdmscale.evaluation.likelihood.sources import Source

Item = dict[str, Any]

# How the choices of a question are compared: by all nats, or by those a token or a byte.
NORMALISERS = ("sum", "token", "byte")


def make_item(
    number: int, source: Source, targets: Sequence[Target], found: list[list[LogLikelihood]]
) -> Item:
    """An item from the log-likelihoods of its targets' windows.

    A text or response has {"id", "kind", "nats", "standard_error", "tokens", "bytes", "forwards"}, where
    `nats` is the log-likelihood. A question has the same as lists with an entry for each choice, and
    "answer", "chosen" and "correct" (by sum, and by token and byte).
    """
    kind = "text" if source.kind == "document" else source.kind
    head = {"id": f"{number}-{_digest(source)}", "kind": kind}
    parts = [_of_target(target, windows) for target, windows in zip(targets, found, strict=True)]
    if source.kind != "choices":
        return {**head, **parts[0]}
    item = {**head, **{name: [part[name] for part in parts] for name in parts[0]}}
    item["forwards"] = sum(item["forwards"])
    return {**item, **_choice(item, source.values["answer"])}


def _of_target(target: Target, windows: list[LogLikelihood]) -> Item:
    values: Item = {
        "nats": sum(window.nats for window in windows),
        "standard_error": math.sqrt(sum(window.standard_error**2 for window in windows)),
        "tokens": sum(window.num_tokens for window in windows),
        "bytes": target.num_bytes,
        "forwards": sum(window.num_forwards for window in windows),
    }
    if all(window.is_greedy is not None for window in windows):
        values["greedy"] = all(window.is_greedy for window in windows)
    return values


def _choice(item: Item, answer: int) -> Item:
    """Which choice is the likeliest, and whether it is the answer, by each normaliser."""
    nats = np.array(item["nats"])
    divisors = {"sum": 1, "token": np.array(item["tokens"]), "byte": np.array(item["bytes"])}
    chosen = {name: int((nats / divisors[name]).argmax()) for name in NORMALISERS}
    correct = {f"correct_by_{name}": chosen[name] == answer for name in NORMALISERS[1:]}
    return {"answer": answer, "chosen": chosen["sum"], "correct": chosen["sum"] == answer, **correct}


def _digest(source: Source) -> str:
    return blake2b(repr(sorted(source.values.items())).encode(), digest_size=4).hexdigest()
