"""Results as tables and as JSON."""

from collections.abc import Iterable
from statistics import median
from typing import Any

from rich.console import Console

from mdmscale.analysis.bench.parts import StepTimes
from mdmscale.analysis.bench.path_bench import PathResult
from mdmscale.analysis.bench.paths import COMPARISONS
from mdmscale.models.flops import FlopCount
from mdmscale.system.console import plain_table

MIB, GIGA = 2**20, 1e9


def comparisons(results: Iterable[PathResult]) -> list[tuple[str, float]]:
    """Each question whose two paths were measured, and the median over rounds of the ratio of their times."""
    by_name = {result.path.name: result for result in results}
    found = []
    for slower, faster, question in COMPARISONS:
        if slower in by_name and faster in by_name:
            rounds = zip(by_name[slower].seconds, by_name[faster].seconds, strict=True)
            found.append((question, median(one / other for one, other in rounds)))
    return found


def flops_per_second(result: PathResult, flops: FlopCount) -> float:
    """Necessary operations a second: matrix products on real tokens and at masked positions."""
    needed = flops.of(result.num_row_tokens, result.num_position_pairs, result.num_masked)
    return needed / median(result.seconds)


def print_paths(results: list[PathResult], flops: FlopCount, peak: float | None, console: Console) -> None:
    """One line for each path, then the comparisons."""
    headings = ["path", "s a step", "clean tokens/s", "above the model, MiB", "GFLOP/s", "MFU", "loss"]
    table = plain_table("forward and backward, medians", headings)
    table.columns[0].justify = "left"
    for result in results:
        rate = flops_per_second(result, flops)
        table.add_row(
            result.path.name,
            f"{median(result.seconds):.3f}",
            f"{result.tokens_per_second:,.0f}",
            "-" if result.memory is None else f"{result.memory / MIB:,.0f}",
            f"{rate / GIGA:,.0f}",
            "-" if peak is None else f"{rate / peak:.1%}",
            f"{result.loss:.6f}",
        )
    console.print(table)
    for result in results:
        owner = "mdmscale: " if result.path.ours else ""
        console.print(f"  {result.path.name:14} {owner}{result.path.description}")
    found = comparisons(results)
    if found:
        ratios = plain_table("\nmedian ratios of a round", ["", "times"])
        ratios.columns[0].justify = "left"
        for question, ratio in found:
            ratios.add_row(question, f"{ratio:.2f}")
        console.print(ratios)


def print_parts(parts: StepTimes, console: Console) -> None:
    """The parts of a step of `masked`, with their floors."""
    table = plain_table("\na training step by part", ["part", "ms", "floor, ms", "floor / time"])
    table.columns[0].justify = "left"
    for part in (*parts.parts, *parts.steps):
        table.add_row(
            part.name,
            f"{1000 * part.seconds:,.1f}",
            f"{1000 * part.floor:,.1f}" if part.floor is not None else "-",
            f"{part.share:.0%}" if part.share is not None else "-",
        )
    console.print(table)
    console.print(
        f"  floors: matrix products at {parts.product_rate / GIGA:,.0f} GFLOP/s, "
        f"memory at {parts.memory_rate / GIGA:,.1f} GB/s; medians of the rates measured around each part"
    )


def to_json(results: list[PathResult], flops: FlopCount, parts: StepTimes | None) -> dict[str, Any]:
    """All measurements, in seconds and bytes."""
    return {
        "paths": {
            result.path.name: {
                "seconds": result.seconds,
                "median_seconds": median(result.seconds),
                "clean_tokens_per_second": result.tokens_per_second,
                "memory_above_model": result.memory,
                "flops_per_second": flops_per_second(result, flops),
                "masked": result.num_masked,
                "loss": result.loss,
            }
            for result in results
        },
        "ratios": dict(comparisons(results)),
        "parts": None
        if parts is None
        else {
            "seconds": {part.name: part.rounds for part in parts.parts},
            "floors": {part.name: part.floors for part in parts.parts},
            "product_flops_per_second": parts.product_rate,
            "moved_bytes_per_second": parts.memory_rate,
        },
    }
