"""`evaluate compare`: paired differences between the results of two models on the same items."""

import argparse
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mdmscale.evaluation.results import Results, read_results
from mdmscale.evaluation.statistics import Estimate, bootstrap, difference, mcnemar, ratio_difference
from mdmscale.system.console import make_console, plain_table
from mdmscale.system.errors import UserError

EXAMPLES = """\
examples:
  python tools/evaluate.py likelihood runs/a --data test.jsonl --output a.json
  python tools/evaluate.py likelihood runs/b --data test.jsonl --output b.json
  python tools/evaluate.py compare a.json b.json
"""

MAX_SHOWN = 5
MAY_DIFFER = ("dtype", "decoding")  # settings that belong to a model rather than to the question
HEADINGS = ["", "items", "first", "second", "difference", "95% interval", "p"]


@dataclass(frozen=True)
class Comparison:
    """One measure of both models. The difference is the second's value less the first's."""

    name: str
    num_items: int
    first: float
    second: float
    interval: tuple[float, float]
    p_value: float
    is_share: bool = False

    @property
    def difference(self) -> float:
        return self.second - self.first

    def cells(self) -> list[str]:
        """The row of a table."""
        form = ".1%" if self.is_share else ".4f"
        low, high = self.interval
        shown = "-" if math.isnan(low) else f"{low:+{form}} .. {high:+{form}}"
        p_value = "-" if math.isnan(self.p_value) else f"{self.p_value:.2g}"
        values = [f"{self.first:{form}}", f"{self.second:{form}}", f"{self.difference:+{form}}"]
        return [self.name, f"{self.num_items:,}", *values, shown, p_value]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("first", type=Path, metavar="A.json", help="the results of one model")
    parser.add_argument("second", type=Path, metavar="B.json", help="the results of another one")


def run(arguments: argparse.Namespace) -> None:
    """Print the differences.

    Raises:
        UserError: where the two results are not of the same items and settings.
    """
    first, second = read_results(arguments.first), read_results(arguments.second)
    check_comparable(first, second, f"{arguments.first} and {arguments.second}")
    table = plain_table(f"first: {first.model}\nsecond: {second.model}", HEADINGS)
    for comparison in compare(first, second):
        table.add_row(*comparison.cells())
    make_console().print(table)
    for note in decoding_differences(first, second):
        print(note)


def check_comparable(first: Results, second: Results, names: str) -> None:
    """Refuse results that differ in more than the model.

    Raises:
        UserError: naming what differs.
    """
    if first.command != second.command:
        raise UserError(f"{names}: are of {first.command!r} and {second.command!r}; compare the same command")
    missing = object()
    settings = sorted(first.settings.keys() | second.settings.keys())
    problems = [
        f"{names}: differ in {name}: {first.settings.get(name)!r} and {second.settings.get(name)!r}; "
        "measure both alike"
        for name in settings
        if name not in MAY_DIFFER and first.settings.get(name, missing) != second.settings.get(name, missing)
    ]
    left, right = [[_key(item) for item in results.items] for results in (first, second)]
    if strangers := sorted(set(left) ^ set(right)):
        shown = ", ".join("/".join(filter(None, key)) for key in strangers[:MAX_SHOWN])
        problems.append(f"{names}: {len(strangers)} items are in only one of them, such as {shown}")
    if not left:
        problems.append(f"{names}: have no items")
    if problems:
        raise UserError(*problems)


def decoding_differences(first: Results, second: Results) -> list[str]:
    """In words, how the two sampled their answers differently."""
    sides = (results.settings.get("decoding", []) for results in (first, second))
    differing: dict[str, None] = {}  # in order, each once
    for left, right in zip(*sides, strict=False):
        for name in left:
            if left[name] != right.get(name):
                differing[f"{name} {left[name]} and {right.get(name)}"] = None
    return [f"decoding differs: {', '.join(differing)}"] if differing else []


def compare(first: Results, second: Results) -> list[Comparison]:
    """Every measure that the items of both have: of likelihoods by kind, of answers by task and setting."""
    others = {_key(item): item for item in second.items}
    groups: dict[str, list[tuple[dict[str, Any], dict[str, Any]]]] = {}
    for item in first.items:
        groups.setdefault(_group(item), []).append((item, others[_key(item)]))
    found = []
    for name, pairs in groups.items():
        if "correct" in pairs[0][0]:
            found.append(_accuracy(name, pairs))
        elif "nats" in pairs[0][0]:
            found += _likelihoods(name, pairs)
    if not found:
        raise UserError("the items have neither 'nats' nor 'correct', so there is nothing to compare")
    return found


def _likelihoods(name: str, pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> list[Comparison]:
    """Nats a token and bits a byte: lower is better."""
    found = []
    for unit, below, scale in (("nats a token", "tokens", 1.0), ("bits a byte", "bytes", math.log(2))):
        sides = [
            (
                np.array([-pair[side]["nats"] / scale for pair in pairs]),
                np.array([pair[side][below] for pair in pairs], dtype=np.float64),
            )
            for side in (0, 1)
        ]
        if all(denominators.sum() for _, denominators in sides):
            estimate = ratio_difference(*sides)
            values = [float(above.sum() / denominators.sum()) for above, denominators in sides]
            found.append(_comparison(f"{name}, {unit}", len(pairs), values, estimate))
    return found


def _comparison(name: str, num_items: int, values: list[float], estimate: Estimate) -> Comparison:
    return Comparison(name, num_items, values[0], values[1], estimate.interval(), estimate.p_value())


def _accuracy(name: str, pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> Comparison:
    """The share that is right: a paired bootstrap's interval, and the exact p-value of McNemar's test."""
    left, right = (np.array([bool(pair[side]["correct"]) for pair in pairs], dtype=float) for side in (0, 1))
    changes = right - left
    p_value = mcnemar(int((changes < 0).sum()), int((changes > 0).sum()))
    interval = bootstrap(lambda drawn: float(changes[drawn].mean()), len(pairs))
    if len(pairs) == 1:
        interval = difference(left, right).interval()
    return Comparison(
        f"{name}, accuracy", len(pairs), float(left.mean()), float(right.mean()), interval, p_value, True
    )


def _group(item: dict[str, Any]) -> str:
    """What an item is averaged with: its task and setting, or its kind."""
    parts = [item.get(name) for name in ("task", "setting", "kind")]
    return ", ".join(str(part) for part in parts if part not in (None, "")) or "all"


def _key(item: dict[str, Any]) -> tuple[str, str, str]:
    """What pairs an item of one model with that of the other."""
    return (str(item.get("task", "")), str(item.get("setting", "")), str(item.get("id")))
