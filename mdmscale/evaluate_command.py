"""`evaluate`: likelihood, tasks and lm-evaluation-harness, on a run, a checkpoint, a folder or a hub id."""

import argparse
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory

from mdmscale.models.hub import local_folder
from mdmscale.models.opening import ModelDescription, describe_model, find_model_folder
from mdmscale.parallel.work_group import WorkGroup
from mdmscale.system.errors import UserError
from mdmscale.system.run_folder import RunFolder, kind_if_any

# What can be measured: its module, whether it opens a model, and what it does. A module has EXAMPLES,
# `add_options(parser)`, and `run(arguments, description, group)`; without a model, `run(arguments)`.
MEASURES = {
    "likelihood": (
        "mdmscale.evaluation.likelihood.likelihood_command",
        True,
        "nats a token, bits a byte and perplexity of texts, responses or choices",
    ),
    "tasks": (
        "mdmscale.evaluation.tasks.tasks_command",
        True,
        "answer the questions of tasks such as gsm8k, and score the answers",
    ),
    "lm-eval": (
        "mdmscale.evaluation.lm_eval.lm_eval_command",
        True,
        "run tasks of lm-evaluation-harness",
    ),
    "estimators": (
        "mdmscale.evaluation.likelihood.estimators_command",
        True,
        "how many forwards each estimator of the likelihood needs, on a model and texts",
    ),
    "compare": (
        "mdmscale.evaluation.compare_command",
        False,
        "paired differences between the results of two models, with intervals",
    ),
    "records": (
        "mdmscale.evaluation.tasks.records_command",
        False,
        "write a task's training records, for data.kind: sft",
    ),
}


def build_parser(name: str) -> argparse.ArgumentParser:
    """The options of one measure."""
    module, _, text = MEASURES[name]
    measure = import_module(module)
    parser = argparse.ArgumentParser(
        prog=f"evaluate.py {name}",
        description=text[0].upper() + text[1:] + ".",
        epilog=measure.EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    measure.add_options(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the measure that the first argument names; a launcher runs it on every rank.

    Raises:
        UserError: where an option, the data or the model is wrong.
    """
    words = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(
        prog="evaluate.py",
        usage="evaluate.py MEASURE [--help] ...",
        description="Measure a run, a checkpoint, a Hugging Face folder or a hub id.",
        epilog="\n".join(["measures:", *(f"  {name:11} {text}" for name, (_, _, text) in MEASURES.items())]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("measure", choices=MEASURES, metavar="MEASURE", help="one of those below")
    run_measure(parser.parse_args(words[:1]).measure, words[1:])
    return 0


def run_measure(name: str, argv: list[str]) -> None:
    """Parse the options of a measure, open its model if it has one, and run it."""
    module, has_model, _ = MEASURES[name]
    arguments = build_parser(name).parse_args(argv)
    measure = import_module(module)
    if not has_model:
        measure.run(arguments)
        return
    from mdmscale.evaluation.options import check_model_options

    group = WorkGroup()
    check_model_options(arguments, group.world_size)
    with opened(arguments.path, arguments.output, group, arguments.autoregressive) as description:
        measure.run(arguments, description, group)
    group.leave()


@contextmanager
def opened(
    source: str, output: Path | None, group: WorkGroup, autoregressive: bool = False
) -> Iterator[ModelDescription]:
    """The model of a run, a checkpoint, a folder or a hub id. A checkpoint is exported while it is measured.

    A run that has not ended stands for its newest checkpoint.

    Args:
        output: where the results will be, beside which a checkpoint is exported.
        autoregressive: see `describe_model`.

    Raises:
        UserError: where there is no model, or none that can be opened.
    """
    path = Path(source)
    kind = kind_if_any(path)
    if kind is None and not path.exists():
        folder = group.on_first_rank(lambda: local_folder("PATH", source))
        yield describe_model(folder, autoregressive=autoregressive)
        return
    with ExitStack() as stack:
        if kind == "checkpoint" or (kind == "run" and not RunFolder(path).has_export):
            path = group.on_first_rank(lambda: _export(path, output, stack))
        yield describe_model(find_model_folder(path), autoregressive=autoregressive)
        group.wait()  # before the first rank removes what the others read


def _export(source: Path, output: Path | None, stack: ExitStack) -> Path:
    """Export a checkpoint into a folder that the stack removes: beside the output, where all ranks see it."""
    from mdmscale.conversion.exporting import ExportOptions, export_folder

    parent = None if output is None else output.absolute().parent
    if parent is not None and not parent.is_dir():
        raise UserError(f"--output {output}: there is no folder {parent}; make it first")
    folder = Path(stack.enter_context(TemporaryDirectory(prefix=".evaluated-", dir=parent))) / "model"
    export_folder(source, folder, ExportOptions(to="hf"))
    return folder
