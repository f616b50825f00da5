"""The command lines: `mdmscale <command>`, and the `main` behind launchers/train.py."""

import argparse
import glob
import os
import sys
from collections.abc import Callable
from pathlib import Path

from mdmscale import __version__
from mdmscale.config.loading import describe_keys, load_config
from mdmscale.config.run import RunConfig
from mdmscale.data.source import path_list
from mdmscale.parallel.batch_layout import make_layout
from mdmscale.system.errors import UserError, run_command

STOPPED = 75  # exit status of a run that stopped on request; sysexits.h calls it a temporary failure

TRAIN_EPILOG = """examples:
  deepspeed --num_gpus 2 launchers/train.py --config configs/quickstart.yaml
  deepspeed launchers/train.py --config configs/8b_mirror.yaml run.seed=731 optimizer.lr=1e-5
  python launchers/train.py --config configs/8b_mirror.yaml --dry-run --ranks 8

Precedence: defaults < the YAML file < section.key=value. The same command continues an interrupted run
(checkpoint.resume: auto). Touch <run folder>/stop, or send a rank SIGTERM, SIGINT or SIGUSR1: the run
finishes its step, saves a checkpoint and exits.

Exit status: 0 all steps done; 75 stopped on request, with a checkpoint; 2 a mistake in the command or config;
70 ended by the watchdog (run.stall_timeout); 1 anything else.
"""


def train_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="train.py",
        description="Train or fine-tune a masked diffusion language model.",
        epilog=TRAIN_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file of the run")
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="values that replace the file's"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the resolved config, batch arithmetic and memory, and exit",
    )
    parser.add_argument("--folder", action="store_true", help="print the run's folder, and exit")
    parser.add_argument("--ranks", type=int, metavar="N", help="with --dry-run: plan for N ranks")
    parser.add_argument(
        "--keys", action="store_true", help="list every config key with its default and meaning"
    )
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the deepspeed launcher passes it
    return parser


def train_main(argv: list[str] | None = None) -> int:
    """Check everything that can be checked without torch, then plan or train. Returns the exit status."""
    parser = train_parser()
    arguments = parser.parse_intermixed_args(argv)
    if arguments.keys:
        print_keys()
        return 0
    if arguments.config is None:
        parser.error("--config FILE is required")
    if arguments.ranks is not None and not (arguments.dry_run and arguments.ranks > 0):
        parser.error("--ranks N (at least 1) goes with --dry-run; a run's ranks come from its launcher")

    config = load_config(arguments.config, arguments.overrides)
    if arguments.folder:
        print(Path(config.run.output_dir) / config.run.name)
        return 0
    world_size = arguments.ranks or int(os.environ.get("WORLD_SIZE", "1"))
    make_layout(config, world_size)  # refuses a batch that does not divide
    if arguments.dry_run:
        if os.environ.get("RANK", "0") == "0":
            from mdmscale.analysis.planning.dry_run import print_dry_run

            print_dry_run(config, world_size)
        return 0
    check_paths(config)

    from mdmscale.parallel.ranks import finalise
    from mdmscale.training.trainer import train

    # The group is left only where all ranks get here: after a crash of one, leaving would wait for ever.
    try:
        outcome = train(config)
    except UserError:
        finalise(wait=False)
        raise
    except FloatingPointError as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"error: {error}", file=sys.stderr)
        finalise(wait=False)
        return 1
    finalise()
    return STOPPED if outcome.stopped else 0


def check_paths(config: RunConfig) -> None:
    """Refuse local paths that are not there, before anything slow begins.

    Raises:
        UserError: with all problems found.
    """
    problems = []
    for path in path_list(config.data):
        if not any((Path(path).exists(), Path(f"{path}.idx").exists(), glob.glob(path))):
            problems.append(
                f"data.path = {path!r}: no such file, folder or shard prefix; tools/prepare_data.py makes one"
            )
    model = config.model.path
    if model is not None and Path(model).is_dir() and not (Path(model) / "config.json").is_file():
        problems.append(
            f"model.path = {model!r}: a folder without config.json; give a Hugging Face model folder"
        )
    if problems:
        raise UserError(*problems)


def print_keys() -> None:
    """Every config key with its default and meaning."""
    for name, default, description in describe_keys():
        print(f"{name} ({default})\n    {description}")


def _prepare(argv: list[str]) -> int:
    from mdmscale.data.preparation.prepare_command import main

    return main(argv)


def _variance(argv: list[str]) -> int:
    from mdmscale.analysis.variance.variance_command import main

    return main(argv)


def _stability(argv: list[str]) -> int:
    from mdmscale.analysis.study.study_command import main

    return main(argv)


def _bench(argv: list[str]) -> int:
    from mdmscale.analysis.bench.bench_command import main

    return main(argv)


def _generate(argv: list[str]) -> int:
    from mdmscale.generation.generate_command import main

    return main(argv)


def _convert(argv: list[str]) -> int:
    from mdmscale.conversion.convert_command import main

    return main(argv)


def _plan(argv: list[str]) -> int:
    from mdmscale.analysis.planning.plan_command import main

    return main(argv)


COMMANDS: dict[str, tuple[Callable[[list[str]], int], str]] = {
    "train": (
        train_main,
        "train or fine-tune; under the deepspeed launcher or torchrun use launchers/train.py",
    ),
    "prepare": (_prepare, "turn text or conversations into token shards, and train a tokenizer"),
    "convert": (_convert, "inspect, import and export model folders"),
    "variance": (_variance, "where a checkpoint's training variance comes from, and what removes it"),
    "stability": (_stability, "train methods under several seeds at equal rows and compare them"),
    "plan": (_plan, "memory, step time, communication and cost of a config on a cluster"),
    "bench": (_bench, "time and memory of ways to compute the loss, on this machine"),
    "generate": (_generate, "sample text from a trained model"),
}


def main() -> int:
    """The console script."""
    listing = "\n".join(f"  {name:10} {text}" for name, (_, text) in COMMANDS.items())
    usage = f"usage: mdmscale <command> [--help] ...\n\ncommands:\n{listing}"
    match sys.argv[1:]:
        case ["--version"]:
            print(f"mdmscale {__version__}")
            return 0
        case [name, *rest] if name in COMMANDS:
            return run_command(lambda: COMMANDS[name][0](rest))
        case [] | ["-h" | "--help"]:
            print(usage)
            return 0
        case [name, *_]:
            print(f"error: no command {name!r}\n{usage}", file=sys.stderr)
            return 2
    raise AssertionError(sys.argv)
