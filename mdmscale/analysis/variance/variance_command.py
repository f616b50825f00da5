"""`variance`: measure the sources of training variance on a checkpoint, and what each method removes."""

import argparse
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from mdmscale.config.loading import load_config
from mdmscale.config.run import RunConfig
from mdmscale.models.opening import find_model_folder
from mdmscale.system.arguments import names
from mdmscale.system.errors import UserError
from mdmscale.system.files import unfinished
from mdmscale.system.folders import published_folder
from mdmscale.system.patterns import pattern_problem
from mdmscale.training.paths import check_data_paths

if TYPE_CHECKING:
    from mdmscale.analysis.variance.collect import Budget
    from mdmscale.analysis.variance.report import Report
    from mdmscale.data.collate import Collator
    from mdmscale.data.source import SampleSource
    from mdmscale.models.mdm import MaskedDiffusionModel
    from mdmscale.parallel.ranks import Ranks

EPILOG = """examples:
  python tools/variance_report.py --config configs/quickstart.yaml --checkpoint runs/quickstart \\
    --output runs/variance --minutes 4
  deepspeed --num_gpus 2 tools/variance_report.py --config configs/quickstart.yaml \\
    --checkpoint runs/quickstart --output runs/variance --samples 240
"""
FILES = {"report.json", "report.md", "ratios.png", "curves.png"}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="variance_report.py",
        description="Measure the sources of training variance on a checkpoint, and by which factor each "
        "method reduces it at equal forward rows.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--config",
        required=True,
        metavar="FILE",
        help="YAML file of a run, for its data, batch, eps, normalization, window and p_pots",
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="values that override those of the file"
    )
    parser.add_argument(
        "--checkpoint",
        required=True,
        type=Path,
        metavar="DIR",
        help="run folder or Hugging Face model folder",
    )
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder to create")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier report in that folder")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--minutes", type=float, metavar="M", help="minutes to measure (default: 5)")
    budget.add_argument("--samples", type=int, metavar="N", help="measure at least N samples")
    parser.add_argument(
        "--parameters",
        metavar="REGEX",
        help="parameters whose gradients are measured (default: all of a small model, norms of a large one)",
    )
    parser.add_argument(
        "--methods",
        type=names,
        metavar="NAMES",
        help="methods to compare with standard, separated by commas (default: all)",
    )
    parser.add_argument(
        "--batch-size", type=int, metavar="B", help="samples in a batch (default: train.global_batch_size)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of t and masks (default: 0)")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the deepspeed launcher passes it
    return parser


def main(argv: list[str] | None = None) -> int:
    """Measure and write the report.

    Raises:
        UserError: for invalid options, data or checkpoint.
    """
    arguments = build_parser().parse_intermixed_args(argv)
    config = load_config(arguments.config, arguments.overrides)
    check_options(arguments)
    if config.diffusion.objective == "ar":
        raise UserError(
            f"{arguments.config}: diffusion.objective = ar has no masks and no t whose variance could be "
            "measured; leave it out"
        )
    find_model_folder(arguments.checkpoint)  # before torch is imported; so are the data
    check_data_paths(config)

    from mdmscale.parallel.ranks import finalise, initialise

    # Ranks leave the process group together. If one has crashed, the others would wait for it without end.
    ranks = initialise()
    try:
        run_report(arguments, config, ranks)
    except UserError:
        if ranks.is_first:
            shutil.rmtree(encoded_data(arguments.output), ignore_errors=True)
        finalise()
        raise
    finalise()
    return 0


def check_options(arguments: argparse.Namespace) -> None:
    """Refuse numbers out of range, and an output folder with other contents.

    Raises:
        UserError: with all problems found.
    """
    problems = [
        f"--{name.replace('_', '-')} {value}: must be above 0"
        for name in ("minutes", "samples", "batch_size")
        if (value := getattr(arguments, name)) is not None and not value > 0
    ]
    if problem := pattern_problem(arguments.parameters or ""):
        problems.append(f"--parameters {arguments.parameters!r}: no regular expression: {problem}")
    if arguments.seed < 0:
        problems.append(f"--seed {arguments.seed}: must not be negative")
    if arguments.output.exists():
        names = {path.name for path in arguments.output.iterdir()} if arguments.output.is_dir() else set()
        if "report.json" not in names or not names <= FILES:
            problems.append(f"--output {arguments.output}: holds other things than a report; choose another")
        elif not arguments.overwrite:
            problems.append(f"--output {arguments.output}: holds a report; choose another, or --overwrite")
    if problems:
        raise UserError(*problems)


def run_report(arguments: argparse.Namespace, config: RunConfig, ranks: "Ranks") -> None:
    """Collect statistics on this rank. Rank 0 writes and prints the report."""
    from mdmscale.analysis.variance.collect import choose_parameters, collect, measure_metric
    from mdmscale.analysis.variance.draws import Gauge
    from mdmscale.analysis.variance.estimators import Probes, make_estimators
    from mdmscale.analysis.variance.methods import chosen_methods
    from mdmscale.analysis.variance.report import make_report
    from mdmscale.analysis.variance.waves import Measurer
    from mdmscale.parallel.collectives import on_every_rank, on_first_rank

    started, seed = time.monotonic(), arguments.seed
    batch_size = arguments.batch_size or config.train.global_batch_size
    batch_rows = batch_size * config.diffusion.rows_per_sample
    methods = chosen_methods(arguments.methods, batch_rows)
    model, collate, source = open_parts(arguments, config, ranks)
    # Probes come first, because choosing parameters freezes the others.
    probes = Probes(model, source, collate, config.run.seed, ranks)
    estimators = make_estimators(methods, config.diffusion, seed, probes, ranks)
    pattern, parameters = on_every_rank(ranks, lambda: choose_parameters(model, arguments.parameters))
    gauge = Gauge(model, parameters, collate, ranks.device)
    metric = measure_metric(gauge, estimators[0], source, batch_rows, seed, ranks)
    with bar(ranks) as progress:
        measurer = Measurer(gauge, metric, seed)
        collected = collect(measurer, estimators, source, budget(arguments), ranks, progress)
    provenance = {
        "config": str(arguments.config),
        "checkpoint": str(arguments.checkpoint),
        "data": source.description,
        "samples": collected.num_samples,
        "rows": collected.num_rows,
        "ranks": ranks.world_size,
        "seconds": time.monotonic() - started,
        "parameters": pattern,
        "num_parameters": gauge.width - 1,
        "batch_rows": batch_rows,
    }
    report = make_report(provenance, collected)
    on_first_rank(ranks, lambda: publish(report, arguments.output))
    if ranks.is_first:
        show(report, arguments.output)


def show(report: "Report", output: Path) -> None:
    """Print what matters of the report."""
    from mdmscale.analysis.variance.report import decomposition_lines, ratio_table
    from mdmscale.system.console import make_console

    console = make_console()
    for line in decomposition_lines(report):
        console.print(line, soft_wrap=True)
    console.print(ratio_table(report))
    console.print(report.recommendation, markup=False)
    provenance = report.provenance
    console.print(f"{provenance['samples']:,} samples in {provenance['seconds']:.0f} s; {output}/report.md")


def open_parts(
    arguments: argparse.Namespace, config: RunConfig, ranks: "Ranks"
) -> "tuple[MaskedDiffusionModel, Collator, SampleSource]":
    """The checkpoint's model in eval mode, its collator, and the config's data."""
    from transformers.utils import logging as hf_logging

    from mdmscale.data.collate import Collator
    from mdmscale.models.backbone import build_backbone
    from mdmscale.models.mdm import MaskedDiffusionModel
    from mdmscale.parallel.collectives import on_every_rank, on_first_rank
    from mdmscale.training.run_data import open_run_data
    from mdmscale.training.setup import check_length

    hf_logging.disable_progress_bar()
    folder = on_every_rank(ranks, lambda: find_model_folder(arguments.checkpoint))
    options = config.model.model_copy(update={"path": str(folder), "tokenizer": None})
    backbone = on_every_rank(ranks, lambda: build_backbone(options, config.diffusion.eps, seed=0))
    on_every_rank(ranks, lambda: check_length(config, backbone))
    encoded = encoded_data(arguments.output)
    on_first_rank(ranks, lambda: shutil.rmtree(encoded, ignore_errors=True))
    source = open_run_data(config, backbone, encoded, ranks)
    model = MaskedDiffusionModel(backbone.model, config.model.head_chunk_size, config.model.head)
    collate = Collator(backbone.mask_token_id, backbone.logit_shift)
    return model.to(ranks.device).eval(), collate, source


def budget(arguments: argparse.Namespace) -> "Budget":
    """The budget that --samples or --minutes gives."""
    from mdmscale.analysis.variance.collect import Budget

    if arguments.samples is not None:
        return Budget(arguments.samples, None)
    return Budget(None, 60 * (5.0 if arguments.minutes is None else arguments.minutes))


@contextmanager
def bar(ranks: "Ranks") -> Iterator[Callable[[float, int], None]]:
    """A progress bar of the budget on rank 0, or without a terminal a line for each tenth."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    shown = ranks.is_first and console.is_terminal
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not shown) as progress:
        task = progress.add_task("measuring", total=1.0)
        told = 0

        def tell(share: float, num_samples: int) -> None:
            nonlocal told
            progress.update(task, completed=min(share, 1.0), description=f"{num_samples:,} samples measured")
            if ranks.is_first and not shown and int(share * 10) > told:
                told = int(share * 10)
                print(f"{num_samples:,} samples measured, {min(share, 1.0):.0%} of the budget", flush=True)

        yield tell


def encoded_data(output: Path) -> Path:
    """Where SFT data are encoded for the time of the measurement; every rank reads them there."""
    return unfinished(output.with_name(f"{output.name}-data"))


def publish(report: "Report", output: Path) -> None:
    """Write the report; it replaces an earlier one, as check_options saw, when it is whole."""
    from mdmscale.analysis.variance import report as reporting

    with published_folder(output) as folder:
        reporting.write(report, folder)
    shutil.rmtree(encoded_data(output), ignore_errors=True)
