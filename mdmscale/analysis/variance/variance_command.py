"""`variance`: measure the sources of training variance on a checkpoint, and what each method removes."""

import argparse
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mdmscale.config.diffusion import DiffusionSection
from mdmscale.config.loading import load_config
from mdmscale.config.run import RunConfig
from mdmscale.models.opening import find_model_folder
from mdmscale.system.errors import UserError
from mdmscale.system.files import unfinished
from mdmscale.system.folders import published_folder
from mdmscale.training.paths import check_data_paths

if TYPE_CHECKING:
    from mdmscale.analysis.variance.collect import Budget
    from mdmscale.analysis.variance.methods import Method
    from mdmscale.analysis.variance.report import Report
    from mdmscale.data.collate import Collator
    from mdmscale.data.source import SampleSource
    from mdmscale.diffusion.density import DensityTable
    from mdmscale.models.mdm import MaskedDiffusionModel
    from mdmscale.parallel.ranks import Ranks

EPILOG = """examples:
  python tools/variance_report.py --config configs/quickstart.yaml --checkpoint runs/quickstart \\
    --output runs/variance --minutes 4
  deepspeed --num_gpus 2 tools/variance_report.py --config configs/quickstart.yaml \\
    --checkpoint runs/quickstart --output runs/variance --samples 240
"""
FILES = {"report.json", "report.md", "ratios.png", "curves.png"}
FIRST_PROBED = 1 << 40  # index of the first probed sample, far from those that are measured


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="variance_report.py",
        description="Measure the sources of training variance on a checkpoint, and by which factor each "
        "method reduces it at equal forward rows.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--config", required=True, metavar="FILE", help="YAML file of a run, for its data, p_pots and clip"
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
    try:
        re.compile(arguments.parameters or "")
    except re.error as error:
        problems.append(f"--parameters {arguments.parameters!r}: no regular expression: {error}")
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
    from rich.console import Console

    from mdmscale.analysis.variance import report as reporting
    from mdmscale.analysis.variance.collect import choose_parameters, collect_statistics
    from mdmscale.analysis.variance.draws import Drawer
    from mdmscale.analysis.variance.methods import coefficients, compared_methods
    from mdmscale.diffusion.p_pots import TABLE_EDGES
    from mdmscale.parallel.collectives import on_every_rank, on_first_rank

    started = time.monotonic()
    model, collate, source = open_parts(arguments, config, ranks)
    options = config.diffusion
    # Densities come first, because collecting gradients freezes parameters.
    densities = probe_densities(model, source, options, collate, config.run.seed, ranks)
    pattern, parameters = on_every_rank(ranks, lambda: choose_parameters(model, arguments.parameters))
    drawer = Drawer(model, parameters, options, TABLE_EDGES, collate, ranks.device)
    with bar(ranks) as progress:
        measured = collect_statistics(drawer, source, arguments.seed, budget(arguments), ranks, progress)

    batch_size = arguments.batch_size or config.train.global_batch_size
    low, high = options.window or (0.3, 0.8)
    chosen = {}
    for method in compared_methods((low, high)):
        density = density_of(method, densities)
        chosen[method.name] = method, coefficients(method, density, TABLE_EDGES, batch_size)
    provenance = {
        "config": str(arguments.config),
        "checkpoint": str(arguments.checkpoint),
        "data": source.description,
        "samples": measured.num_samples,
        "rows": measured.num_rows,
        "ranks": ranks.world_size,
        "seconds": time.monotonic() - started,
        "parameters": pattern,
        "num_parameters": sum(parameter.numel() for parameter in parameters),
        "batch_size": batch_size,
    }
    report = reporting.make_report(provenance, measured, TABLE_EDGES, chosen, densities)
    on_first_rank(ranks, lambda: publish(report, arguments.output))
    if ranks.is_first:
        console = Console()
        console.print(reporting.decomposition_line(report), highlight=False)
        console.print(reporting.ratio_table(report))
        console.print(
            f"{measured.num_samples:,} samples in {report.provenance['seconds']:.0f} s; "
            f"{arguments.output}/report.md",
            highlight=False,
        )


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


def probe_densities(
    model: "MaskedDiffusionModel",
    source: "SampleSource",
    options: DiffusionSection,
    collate: "Collator",
    seed: int,
    ranks: "Ranks",
) -> "dict[str, DensityTable]":
    """p(t) by masking and target, as the probe of a training run would fit it."""
    from mdmscale.analysis.variance.maskings import MASKINGS, noise_of
    from mdmscale.diffusion.density import DensityTable
    from mdmscale.diffusion.loss_weight import ELBO
    from mdmscale.diffusion.p_pots import fit_density, probe_edges
    from mdmscale.parallel.collectives import on_first_rank
    from mdmscale.training.p_pots_probe import measure_p_pots

    densities = {}
    for masking in MASKINGS:
        noise = noise_of(masking, options)
        edges = probe_edges(options.p_pots)
        statistics = measure_p_pots(
            model, source, noise, options.p_pots, edges, collate, FIRST_PROBED, ELBO, seed, ranks
        )
        for target in ("paper", "loss", "gradient"):
            moment = statistics.second_moment(target)
            fit = partial(fit_density, moment, edges, options.p_pots)
            state = on_first_rank(ranks, lambda fit=fit: fit().to_state())  # type: ignore[misc]
            densities[f"{masking}, {target}"] = DensityTable.from_state(state)
    return densities


def density_of(method: "Method", densities: "dict[str, DensityTable]") -> "DensityTable":
    """The density from which a method draws t."""
    from mdmscale.diffusion.density import DensityTable

    if method.target is None:
        return DensityTable.uniform()
    return densities[f"{method.masking}, {method.target}"]


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
