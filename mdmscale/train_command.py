"""The `train` command: checks the config without importing torch, then prints its plan or trains."""

import argparse
import os
import sys
import textwrap
from pathlib import Path

from mdmscale.config.keys import describe_keys
from mdmscale.config.loading import load_config
from mdmscale.config.run import RunConfig
from mdmscale.parallel.batch_layout import make_layout
from mdmscale.system.errors import UserError
from mdmscale.system.launch import check_launch
from mdmscale.training.paths import check_paths

STOPPED = 75  # exit status of a run that stopped on request; in sysexits.h it is a temporary failure

NUM_SHOWN = 3  # samples that --show prints

EPILOG = """examples:
  deepspeed --num_gpus 2 launchers/train.py --config configs/quickstart.yaml
  deepspeed launchers/train.py --config configs/8b_mirror.yaml run.seed=731 optimizer.lr=1e-5
  python launchers/train.py --config configs/8b_mirror.yaml --dry-run --ranks 8
  python launchers/train.py --config configs/tiny_sft.yaml --show

Precedence: defaults < the YAML file < section.key=value. To continue an interrupted run, repeat the same
command (checkpoint.resume: auto). To stop a run, touch <run folder>/stop or send SIGTERM, SIGINT or SIGUSR1
to a rank: the run finishes the current step, saves a checkpoint and exits.

Exit status: 0 all steps are done; 75 stopped on request, after saving a checkpoint; 2 a mistake in the
command or config, or a full disk; 70 ended by the watchdog (run.*_timeout); 1 any other failure.
"""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="train.py",
        description="Train or fine-tune a masked diffusion language model.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file with the run's config")
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="values that override those of the file"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the resolved config, the batch arithmetic and the memory per rank, check that tokenizer, "
        "model and data are there and agree, and exit",
    )
    parser.add_argument(
        "--show",
        action="store_true",
        help="print the run's first samples as text, with what is trained in colour, and exit",
    )
    parser.add_argument("--folder", action="store_true", help="print the run's folder, and exit")
    parser.add_argument(
        "--ranks",
        type=int,
        metavar="N",
        help="with --dry-run: plan for N ranks (default: as many as the launcher starts; without a launcher, "
        "the smallest number that the config's parallel sizes allow)",
    )
    parser.add_argument(
        "--keys",
        action="store_true",
        help="list every config key with its choices or type, its default and its meaning, and exit",
    )
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the deepspeed launcher passes it
    return parser


def main(argv: list[str] | None = None) -> int:
    """Check everything that can be checked without torch, then plan or train. Returns the exit status.

    Raises:
        UserError: for a mistake in the command, the config or the files that it names.
    """
    parser = build_parser()
    arguments = parser.parse_intermixed_args(argv)
    if arguments.keys:
        print_keys()
        return 0
    if arguments.config is None:
        parser.error("--config FILE is required")
    if arguments.ranks is not None and not (arguments.dry_run and arguments.ranks > 0):
        parser.error("--ranks N (at least 1) needs --dry-run; the launcher sets the ranks of a training run")

    config = load_config(arguments.config, arguments.overrides)
    if arguments.folder:
        print(Path(config.run.output_dir) / config.run.name)
        return 0
    if arguments.show:
        return show(config)
    launched = os.environ.get("WORLD_SIZE")
    if arguments.dry_run:
        return dry_run(config, arguments.ranks or (None if launched is None else int(launched)))
    check_launch(os.environ)
    make_layout(config, int(launched or "1"))  # refuses a batch that does not divide
    check_paths(config, writes=is_first_rank())
    return run_training(config)


def dry_run(config: RunConfig, num_ranks: int | None) -> int:
    """Print the plan on rank 0. Every rank refuses a batch that does not divide."""
    from mdmscale.analysis.planning.dry_run import print_dry_run, smallest_num_ranks

    make_layout(config, num_ranks or smallest_num_ranks(config))
    if is_first_rank():
        print_dry_run(config, num_ranks)
    return 0


def show(config: RunConfig) -> int:
    """Print samples of the data on rank 0."""
    from mdmscale.training.show_data import show_data

    check_paths(config, writes=False)
    if is_first_rank():
        show_data(config, NUM_SHOWN)
    return 0


def run_training(config: RunConfig) -> int:
    """Train on this rank. Returns the exit status."""
    from mdmscale.parallel.ranks import finalise
    from mdmscale.training.replicas import ReplicasDiffer
    from mdmscale.training.trainer import train

    # Ranks leave the process group together. After an error they do not wait: a crashed rank never arrives.
    try:
        outcome = train(config)
    except UserError:
        finalise(wait=False)
        raise
    except (FloatingPointError, ReplicasDiffer) as error:
        if is_first_rank():
            print(f"error: {error}", file=sys.stderr)
        finalise(wait=False)
        return 1
    finalise()
    return STOPPED if outcome.stopped else 0


def is_first_rank() -> bool:
    return os.environ.get("RANK", "0") == "0"


def print_keys() -> None:
    """Print every config key with its choices or type, its default and its meaning."""
    for key in describe_keys():
        default = "required" if key.default is None else f"default: {key.default}"
        print(f"{key.name}: {key.values} ({default})")
        print(textwrap.indent(textwrap.fill(key.meaning, 100), "    "))
