#!/usr/bin/env python
"""Measure how many tokens equal those of LLaDA's, Fast-dLLM's and Dream's decoding at temperature 0.

    python tools/measure_agreement.py

The published formulas are written out as plain loops in tests/generation/reference_llada.py and
reference_dream.py. Tiny random models, whose heads are scaled from flat to confident, are decoded by these
loops and by this project. A text that differs is left out if two probabilities were equal in float64, as
nothing then says which token comes first. The last column rounds LLaDA's probabilities to 5 decimals, as this
project did once. The figures of docs/generation.md come from this script.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

LAST = ("left out", "confident, rounded")

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    from generation import agreement  # tests/generation

    with tempfile.TemporaryDirectory() as folder:
        models = agreement.make_models(Path(folder))
    table = Table(title="tokens that equal the published decoding's, %")
    for heading in ("way", *models, *LAST):
        table.add_column(heading, justify="left" if heading == "way" else "right")
    console = Console(width=100)
    for way in agreement.WAYS:
        with console.status(way):
            table.add_row(way, *shares(agreement, models, way))
    console.print(table)


def shares(agreement: Any, models: dict[str, Any], way: str) -> list[str]:
    """The cells of a row: with the exact ranking, then with the rounded one."""
    found = [agreement.compare(model, way) for model in models.values()]
    cells = [f"{100 * each.share:.1f}" for each in found] + [str(sum(each.num_tied for each in found))]
    if way in agreement.LLADA:
        cells.append(f"{100 * agreement.compare(models['confident'], way, decimals=5).share:.1f}")
    return cells


if __name__ == "__main__":
    main()
