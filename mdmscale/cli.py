"""The console script: `mdmscale <command>`."""

import sys
from importlib import import_module

from mdmscale import __version__
from mdmscale.system.errors import run_command

# The module of each command, whose `main` it runs, and what the command does. Only that module is imported.
COMMANDS = {
    "train": (
        "mdmscale.train_command",
        "train or fine-tune; under the deepspeed launcher or torchrun use launchers/train.py",
    ),
    "prepare": (
        "mdmscale.data.preparation.prepare_command",
        "turn text or conversations into token shards, and train a tokenizer",
    ),
    "convert": ("mdmscale.conversion.convert_command", "inspect, import and export model folders"),
    "variance": (
        "mdmscale.analysis.variance.variance_command",
        "measure the sources of a checkpoint's training variance, and what each method removes",
    ),
    "stability": (
        "mdmscale.analysis.study.study_command",
        "train methods under several seeds at equal forward rows, and compare them",
    ),
    "decide": (
        "mdmscale.analysis.decision.decide_command",
        "decide on many seeds of small models which variance reduction changes results",
    ),
    "plan": (
        "mdmscale.analysis.planning.plan_command",
        "estimate memory, step time, communication and cost of a config on a cluster",
    ),
    "bench": (
        "mdmscale.analysis.bench.bench_command",
        "measure time and memory of ways to compute the loss, on this machine",
    ),
    "evaluate": (
        "mdmscale.evaluate_command",
        "measure a model: likelihood, tasks, lm-evaluation-harness; compare two",
    ),
    "generate": ("mdmscale.generation.generate_command", "sample text from a trained model"),
}


def main() -> int:
    """Run the command that the arguments name. Returns the exit status."""
    listing = "\n".join(f"  {name:10} {text}" for name, (_, text) in COMMANDS.items())
    usage = f"usage: mdmscale <command> [--help] ...\n\ncommands:\n{listing}"
    match sys.argv[1:]:
        case ["--version"]:
            print(f"mdmscale {__version__}")
            return 0
        case [name, *rest] if name in COMMANDS:
            command = import_module(COMMANDS[name][0]).main
            return run_command(lambda: command(rest))
        case [] | ["-h" | "--help"]:
            print(usage)
            return 0
        case [name, *_]:
            print(f"error: no command {name!r}\n{usage}", file=sys.stderr)
            return 2
    raise AssertionError(sys.argv)
