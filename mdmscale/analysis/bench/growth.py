"""How time and memory of the paths grow with one size."""

from dataclasses import replace
from pathlib import Path
from statistics import median

from rich.table import Table

from mdmscale.analysis.bench.path_bench import PathResult
from mdmscale.analysis.bench.report import MIB
from mdmscale.analysis.bench.work import Sizes
from mdmscale.system.console import plain_table
from mdmscale.system.errors import UserError
from mdmscale.training.figures import new_figure, save_figure

SWEPT = ("vocab", "hidden", "layers", "length", "batch")

Growth = dict[int, list[PathResult]]  # the paths' results at each value


def parse_sweep(text: str, sizes: Sizes) -> tuple[str, dict[int, Sizes]]:
    """Parse `vocab=8000,32000` to the name of a size and, for each value in ascending order, the sizes.

    Raises:
        UserError: for another format, an unknown name or values below 1.
    """
    name, _, listed = text.partition("=")
    try:
        values = sorted({int(value) for value in listed.split(",")})
    except ValueError:
        values = []
    if name not in SWEPT or not values or values[0] < 1:
        raise UserError(
            f"--sweep {text}: give NAME=N,N,... with one of {', '.join(SWEPT)}, such as vocab=8000,32000"
        )
    return name, {value: replace(sizes, **{name: value}) for value in values}  # type: ignore[arg-type]


def growth_table(name: str, growth: Growth) -> Table:
    """Seconds and MiB of every path at each value of the size."""
    names = [result.path.name for result in next(iter(growth.values()))]
    headings = [name, *(f"{each}, s" for each in names), *(f"{each}, MiB" for each in names)]
    table = plain_table(f"\nforward and backward by {name}: medians, memory above the model", headings)
    for value, results in growth.items():
        seconds = (f"{median(result.seconds):.3f}" for result in results)
        memory = ("-" if each.memory is None else f"{each.memory / MIB:,.0f}" for each in results)
        table.add_row(f"{value:,}", *seconds, *memory)
    return table


def write_growth_figure(name: str, growth: Growth, file: Path) -> None:
    """Draw time and memory over the size, with logarithmic axes."""
    figure = new_figure(9)
    for axes, what in zip(figure.subplots(1, 2), ("seconds a step", "MiB above the model"), strict=True):
        for place, first in enumerate(next(iter(growth.values()))):
            results = [results[place] for results in growth.values()]
            values = [
                median(each.seconds) if what.startswith("seconds") else (each.memory or 0) / MIB
                for each in results
            ]
            axes.loglog(list(growth), values, marker="o", markersize=3, label=first.path.name)
        axes.set(xlabel=name, ylabel=what)
        axes.grid(alpha=0.3, which="both")
    figure.axes[0].legend(frameon=False)
    save_figure(figure, file)
