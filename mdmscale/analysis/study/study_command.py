"""`stability`: train every method under several seeds at equal forward rows, and compare their accuracy."""

import argparse
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from mdmscale.analysis.study.methods import METHODS, method_overrides
from mdmscale.analysis.study.runs import StudyRun, train_all
from mdmscale.config.loading import dump_config, load_config
from mdmscale.config.run import RunConfig
from mdmscale.system.errors import UserError
from mdmscale.system.files import write_file
from mdmscale.system.run_folder import RunFolder
from mdmscale.training.paths import check_paths

EPILOG = """The config describes one run with pairs (diffusion.masking: mirror). Methods without pairs get
twice its batch sizes, so that all methods have the same forward rows in a step. To continue an interrupted
study, give the same command again.

example, after `make train`:
  python tools/make_arithmetic.py --num 8000 --operators + --output data/arithmetic_2.jsonl \\
    --num-test 500 --test-output data/arithmetic_2_test.jsonl
  python tools/stability_study.py --config configs/stability.yaml --test data/arithmetic_2_test.jsonl \\
    --output runs/stability
"""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="stability_study.py",
        description="Train each method under several seeds at equal forward rows, and compare accuracies.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="YAML file of one run with pairs")
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="values that override those of the file"
    )
    parser.add_argument(
        "--test", required=True, type=Path, metavar="FILE", help="JSONL with prompt and response"
    )
    parser.add_argument(
        "--output", required=True, type=Path, metavar="DIR", help="folder for runs, report and figure"
    )
    parser.add_argument(
        "--methods",
        type=lambda text: text.split(","),
        default=list(METHODS),
        metavar="M,M",
        help=f"some of {','.join(METHODS)} (default: all)",
    )
    parser.add_argument(
        "--seeds",
        type=whole_numbers,
        default=[42, 731, 20231],
        metavar="N,N",
        help="default: 42,731,20231",
    )
    parser.add_argument(
        "--jobs", type=int, metavar="N", help="runs at a time (default: one for each GPU or core)"
    )
    return parser


def whole_numbers(text: str) -> list[int]:
    """The numbers of a list such as 42,731."""
    try:
        return [int(seed) for seed in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: write whole numbers, such as 42,731") from None


def main(argv: list[str] | None = None) -> int:
    """Start or continue a study.

    Raises:
        UserError: for invalid options or files, and for a run that fails.
    """
    arguments = build_parser().parse_intermixed_args(argv)
    config = load_config(arguments.config, arguments.overrides)
    if config.diffusion.rows_per_sample != 2:
        raise UserError(
            f"{arguments.config}: diffusion.masking = {config.diffusion.masking}; a study's batch sizes "
            "count pairs, so give mirror"
        )
    if unknown := [method for method in arguments.methods if method not in METHODS]:
        raise UserError(f"--methods {unknown[0]}: choose from {', '.join(METHODS)}")
    if any(seed < 0 for seed in arguments.seeds):
        raise UserError(f"--seeds {','.join(map(str, arguments.seeds))}: seeds are not negative")
    if arguments.jobs is not None and arguments.jobs < 1:
        raise UserError(f"--jobs {arguments.jobs}: must be at least 1")
    if arguments.output.exists() and not arguments.output.is_dir():
        raise UserError(f"--output {arguments.output}: is a file; choose a folder")
    check_paths(config, writes=False)
    from transformers.utils import logging as hf_logging

    from mdmscale.analysis.study import results
    from mdmscale.analysis.study.scoring import exact_match, read_tests

    hf_logging.disable_progress_bar()
    tests = read_tests(arguments.test)
    claim(arguments.output, config, arguments.test)
    runs = [
        StudyRun(method, seed, arguments.output / "runs")
        for seed in arguments.seeds
        for method in arguments.methods
    ]
    found = []
    for run in trained(runs, config, arguments):
        score = run.folder / "accuracy.json"
        if not score.exists():
            model = RunFolder(run.folder).export
            write_file(score, json.dumps(exact_match(model, tests, config.data.fill_multiple)))
        found.append(results.result_of_run(run.folder, run.method, run.seed, json.loads(score.read_text())))
    found.sort(key=lambda result: (list(METHODS).index(result.method), arguments.seeds.index(result.seed)))
    results.write(found, arguments.output, arguments.seeds)
    console = Console()
    console.print(results.results_table(found))
    console.print(f"{results.verdict(found)}\nwritten to {arguments.output}", highlight=False)
    return 0


def claim(folder: Path, config: RunConfig, test: Path) -> None:
    """Mark the output folder as this study's.

    Raises:
        UserError: if it holds another study, whose runs would be mistaken for those of this one.
    """
    path = folder / "study.json"
    identity = {"config": dump_config(config), "test": hashlib.sha256(test.read_bytes()).hexdigest()}
    if path.exists() and json.loads(path.read_text()) != identity:
        raise UserError(f"--output {folder}: holds a study of another config or test set; choose another")
    write_file(path, json.dumps(identity, indent=1))


def trained(runs: list[StudyRun], config: RunConfig, arguments: argparse.Namespace) -> Iterator[StudyRun]:
    """Yield each run when it finishes, with a progress bar over all steps."""
    import torch

    num_gpus = torch.cuda.device_count()
    jobs = arguments.jobs or num_gpus or len(os.sched_getaffinity(0))
    console = Console()
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f}%"))
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(f"0 of {len(runs)} runs", total=len(runs) * config.train.steps)

        def watch() -> None:
            bar.update(task, completed=sum(run.steps_done() for run in runs))

        finishing = train_all(
            runs, lambda run: train_arguments(run, config, arguments), jobs, num_gpus, watch
        )
        for finished, run in enumerate(finishing, start=1):
            bar.update(task, description=f"{finished} of {len(runs)} runs")
            if not console.is_terminal:
                print(f"{finished} of {len(runs)} runs: {run.name} is finished", flush=True)
            yield run


def train_arguments(run: StudyRun, config: RunConfig, arguments: argparse.Namespace) -> list[str]:
    """The arguments of `mdmscale train` for a run."""
    own = [f"run.name={run.name}", f"run.output_dir={run.output_dir}", f"run.seed={run.seed}"]
    return ["--config", arguments.config, *arguments.overrides, *method_overrides(config, run.method), *own]
