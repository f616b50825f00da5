"""`bench`: measure the cost of a step, by the way its loss is computed and by its parts."""

import argparse
import json
import platform
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

from mdmscale.analysis.bench import report
from mdmscale.analysis.bench.growth import Growth, growth_table, parse_sweep, write_growth_figure
from mdmscale.analysis.bench.options import build_parser, check_files, check_sizes, paths_of, sizes_of
from mdmscale.analysis.bench.parts import StepTimes, measure_parts
from mdmscale.analysis.bench.path_bench import FreedMemory, PathBench, PathResult
from mdmscale.analysis.bench.paths import LossPath
from mdmscale.analysis.bench.profile import write_profile
from mdmscale.analysis.bench.work import Sizes, make_model
from mdmscale.models.compiling import can_compile
from mdmscale.models.flops import count_flops, peak_flops
from mdmscale.system.allocator import keep_freed_memory
from mdmscale.system.console import make_console
from mdmscale.system.files import write_file


def main(argv: list[str] | None = None) -> int:
    """Measure, then print and write the results. Returns the exit status.

    Raises:
        UserError: for invalid options.
    """
    arguments = build_parser().parse_args(argv)
    sizes, paths = sizes_of(arguments), paths_of(arguments)
    sweep = None if arguments.sweep is None else parse_sweep(arguments.sweep, sizes)
    check_files(arguments)
    for each in sweep[1].values() if sweep else ():
        check_sizes(each)
    console = make_console()
    console.print(machine(sizes))
    if arguments.profile is not None:
        for bench in benches_of(sizes, paths):
            console.print(write_profile(bench, arguments.profile))
        return 0
    if sweep is not None:
        values = run_sweep(*sweep, paths, arguments, console)
    else:
        values = run_once(sizes, paths, arguments, console)
    if arguments.json is not None:
        heads = {"heads": sizes.num_heads, "key_heads": sizes.num_key_heads}
        described = {"machine": machine(sizes), "sizes": vars(sizes) | heads | {"device": str(sizes.device)}}
        write_file(arguments.json, json.dumps({**described, **values}, indent=1) + "\n")
    return 0


def run_once(
    sizes: Sizes, paths: list[LossPath], arguments: argparse.Namespace, console: Console
) -> dict[str, Any]:
    """Measure and print the paths at one size, and with --parts a step's parts. Returns the numbers."""
    console.print(
        f"{sizes.shape.num_parameters:,} parameters, {sizes.dtype}, {sizes.batch} x {sizes.length} "
        f"tokens, vocabulary {sizes.vocab:,}\n"
    )
    results = time_in_turns(benches_of(sizes, paths), arguments.rounds, arguments.freed_memory, console)
    flops = count_flops(sizes.shape)
    report.print_paths(results, flops, peak_flops(sizes.device), console)
    parts: StepTimes | None = None
    if arguments.parts:
        compiled = make_model(sizes, compiles=True) if can_compile(sizes.device) else None
        keep_freed_memory()  # as training does on the CPU
        parts = measure_parts(make_model(sizes), compiled, sizes, arguments.rounds)
        report.print_parts(parts, console)
    return report.to_json(results, flops, parts)


def run_sweep(
    name: str, along: dict[int, Sizes], paths: list[LossPath], arguments: argparse.Namespace, console: Console
) -> dict[str, Any]:
    """Measure the paths at several values of one size, print and draw them. Returns the numbers."""
    growth: Growth = {
        value: time_in_turns(benches_of(sizes, paths), arguments.rounds, arguments.freed_memory, console)
        for value, sizes in along.items()
    }
    console.print(growth_table(name, growth))
    if arguments.figure is not None:
        write_growth_figure(name, growth, arguments.figure)
        console.print(f"drawn in {arguments.figure}")
    by_value = {
        str(value): report.to_json(growth[value], count_flops(sizes.shape), None)
        for value, sizes in along.items()
    }
    return {name: by_value}


def benches_of(sizes: Sizes, paths: list[LossPath]) -> list[PathBench]:
    """The paths on one model. Paths that compile parts get models of their own with the same weights."""
    kinds = {(path.compiles, path.head) for path in paths}
    models = {kind: make_model(sizes, *kind) for kind in kinds}
    return [PathBench(models[path.compiles, path.head], path, sizes) for path in paths]


def time_in_turns(
    benches: list[PathBench], rounds: int, freed_memory: FreedMemory, console: Console
) -> list[PathResult]:
    """Warm up each path and measure its memory, then time the paths in turn, round by round."""
    for bench in track(benches, "first steps", console=console, transient=True):
        bench.warm_up()
    for _ in track(range(rounds), "rounds", console=console, transient=True):
        for bench in benches:
            bench.time(freed_memory)
    return [bench.result for bench in benches]


def machine(sizes: Sizes) -> str:
    """One line that names the machine and versions."""
    if sizes.device.type == "cuda":
        device = torch.cuda.get_device_name(sizes.device)
    else:
        device = f"{platform.processor() or platform.machine()} CPU, {torch.get_num_threads()} threads"
    return f"{device}, torch {torch.__version__}, Python {platform.python_version()}"
