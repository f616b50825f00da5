"""The summary of likelihoods: means over items with their errors, for results.json and as a table."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console

from mdmscale.evaluation.likelihood.items import NORMALISERS, Item
from mdmscale.evaluation.statistics import ratio, wilson
from mdmscale.system.console import plain_table

LABELS = {"text": "texts", "response": "responses", "choices": "questions"}


def summarise(items: Sequence[Item]) -> list[dict[str, Any]]:
    """An entry for each kind of items."""
    kinds = {kind: [item for item in items if item["kind"] == kind] for kind in LABELS}
    return [
        _questions(members) if kind == "choices" else _texts(kind, members)
        for kind, members in kinds.items()
        if members
    ]


def _texts(kind: str, items: list[Item]) -> dict[str, Any]:
    """Nats a token, bits a byte and perplexity.

    Items are a sample, and both are ratios of sums, see statistics.ratio. `monte_carlo_error` is the part of
    the error of nats a token that more masks would take away.
    """
    nats, tokens, num_bytes, errors = (
        np.array([item[name] for item in items], dtype=np.float64)
        for name in ("nats", "tokens", "bytes", "standard_error")
    )
    per_token, bits = ratio(-nats, tokens), None
    low, high = per_token.interval()
    summary = {
        "kind": kind,
        "items": len(items),
        "tokens": int(tokens.sum()),
        "bytes": int(num_bytes.sum()),
        "forwards": sum(item["forwards"] for item in items),
        "nats_per_token": per_token.value,
        "nats_per_token_error": _or_none(per_token.standard_error),
        "nats_per_token_interval": _interval(low, high),
        "monte_carlo_error": float(np.sqrt(np.square(errors).sum()) / tokens.sum()),
        "perplexity": math.exp(per_token.value),
        "perplexity_interval": _interval(math.exp(low), math.exp(high)),
    }
    if num_bytes.sum():
        bits = ratio(-nats / math.log(2), num_bytes)
        summary |= {
            "bits_per_byte": bits.value,
            "bits_per_byte_error": _or_none(bits.standard_error),
            "bits_per_byte_interval": _interval(*bits.interval()),
        }
    return summary


def _questions(items: list[Item]) -> dict[str, Any]:
    """The share of questions whose answer is the likeliest choice, with Wilson intervals."""
    summary: dict[str, Any] = {
        "kind": "choices",
        "items": len(items),
        "tokens": sum(sum(item["tokens"]) for item in items),
        "bytes": sum(sum(item["bytes"]) for item in items),
        "forwards": sum(item["forwards"] for item in items),
    }
    for name in NORMALISERS:
        correct = sum(item["correct" if name == "sum" else f"correct_by_{name}"] for item in items)
        summary[f"accuracy_by_{name}"] = correct / len(items)
        summary[f"accuracy_by_{name}_interval"] = list(wilson(correct, len(items)))
    return summary


def print_summary(console: Console, summary: Sequence[dict[str, Any]]) -> None:
    """A table for each kind of items."""
    for entry in summary:
        title = (
            f"{entry['items']:,} {LABELS[entry['kind']]}, {entry['tokens']:,} tokens, {entry['bytes']:,} "
            f"bytes, {entry['forwards']:,} forward rows"
        )
        table = plain_table(title, ["", "value", "standard error", "of it Monte Carlo", "95% interval"])
        for row in _question_rows(entry) if entry["kind"] == "choices" else _text_rows(entry):
            table.add_row(*row)
        console.print(table)


def _text_rows(entry: dict[str, Any]) -> list[list[str]]:
    rows = []
    monte_carlo = entry["monte_carlo_error"]
    for name, label in (("nats_per_token", "nats a token"), ("bits_per_byte", "bits a byte")):
        if name in entry:
            scale = entry[name] / entry["nats_per_token"] if entry["nats_per_token"] else 1.0
            error = entry[f"{name}_error"]
            rows.append(
                [
                    label,
                    f"{entry[name]:.4f}",
                    "-" if error is None else f"{error:.4f}",
                    f"{monte_carlo * scale:.4f}",
                    _shown(entry[f"{name}_interval"], ".3f"),
                ]
            )
    rows.append(
        ["perplexity", f"{entry['perplexity']:.2f}", "", "", _shown(entry["perplexity_interval"], ".2f")]
    )
    return rows


def _question_rows(entry: dict[str, Any]) -> list[list[str]]:
    labels = {"sum": "accuracy", "token": "by nats a token", "byte": "by nats a byte"}
    return [
        [
            labels[name],
            f"{entry[f'accuracy_by_{name}']:.1%}",
            "",
            "",
            _shown(entry[f"accuracy_by_{name}_interval"], ".1%"),
        ]
        for name in NORMALISERS
    ]


def _shown(interval: list[float] | None, form: str) -> str:
    return "-" if interval is None else f"{interval[0]:{form}} .. {interval[1]:{form}}"


def _or_none(value: float) -> float | None:
    """None in place of NaN, which JSON does not have: a single item shows no error."""
    return None if math.isnan(value) else value


def _interval(low: float, high: float) -> list[float] | None:
    return None if math.isnan(low) else [low, high]
