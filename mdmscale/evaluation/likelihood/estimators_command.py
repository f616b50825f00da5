"""`evaluate estimators`: the error of each estimator of the likelihood, against forward rows."""

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from mdmscale.evaluation.likelihood.encoding import Encoder, encode_sources
from mdmscale.evaluation.likelihood.likelihood_command import add_data_options, check_lengths
from mdmscale.evaluation.likelihood.masks import SAMPLERS
from mdmscale.evaluation.likelihood.plan import LikelihoodOptions
from mdmscale.evaluation.likelihood.scoring import Scored, log_likelihoods
from mdmscale.evaluation.likelihood.sources import read_sources
from mdmscale.evaluation.options import add_model_options
from mdmscale.evaluation.results import Results
from mdmscale.models.opening import LoadedModel, ModelDescription, load_quietly
from mdmscale.parallel.work_group import WorkGroup
from mdmscale.system.console import make_console, plain_table
from mdmscale.system.errors import UserError
from mdmscale.system.files import write_file

EXAMPLES = """\
examples:
  python tools/evaluate.py estimators runs/quickstart --corpus data/quickstart --held-out 0.02 --limit 8 \\
      --max-length 128
  python tools/evaluate.py estimators runs/sft --data test.jsonl --limit 16 --rows 8 16
"""

LLADA = "independent"


@dataclass(frozen=True)
class Efficiency:
    """An estimator at a number of rows.

    Attributes:
        standard_error: of a target's likelihood in nats: the root of the mean over targets of the variance
            over seeds.
        gain: how many times as many rows LLaDA's Monte Carlo needs for the same error.
    """

    estimator: str
    rows: int
    standard_error: float
    gain: float


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add_model_options(parser)
    add_data_options(parser)
    add = parser.add_argument_group("what is measured").add_argument
    add("--rows", type=int, nargs="+", default=[8, 16, 32], metavar="N", help="rows (default: 8 16 32)")
    add("--repeats", type=int, default=20, metavar="N", help="seeds of each estimator (default: 20)")


def run(arguments: argparse.Namespace, description: ModelDescription, group: WorkGroup) -> None:
    """Measure on the first window of each text, print a table, and write --output if there is one.

    Raises:
        UserError: where options do not go together, or every target is so short that it is exact.
    """
    if group.world_size > 1:
        raise UserError("estimators: is measured by one process; start it without a launcher")
    if arguments.repeats < 2:
        raise UserError(f"--repeats {arguments.repeats}: must be at least 2, or there is no variance")
    if arguments.output is not None and arguments.output.exists() and not arguments.overwrite:
        raise UserError(f"--output {arguments.output}: exists already; choose another, or give --overwrite")
    check_lengths(arguments, description)
    all_options = [LikelihoodOptions(rows=rows) for rows in sorted(arguments.rows)]
    sources = read_sources(arguments)
    loaded = load_quietly(description, arguments.dtype)
    encoder = Encoder(loaded, arguments.special_tokens, arguments.max_length, arguments.context)
    items = [target.windows[0] for found in encode_sources(encoder, sources) for target in found]
    items = [item for item in items if 2 ** len(item.target_ids) > max(arguments.rows) + 1]
    if not items:
        raise UserError("every text is so short that --rows are all of its masks; give longer ones")
    found = measure_estimators(loaded, items, all_options, arguments.repeats, arguments.batch_size)
    lengths = [len(item.target_ids) for item in items]
    table = plain_table(
        f"{len(items)} targets of {min(lengths)} to {max(lengths)} tokens, {arguments.repeats} seeds",
        ["estimator", "rows", "standard error, nats", "forwards saved"],
    )
    for each in found:
        table.add_row(each.estimator, str(each.rows), f"{each.standard_error:.3f}", f"{each.gain:.1f}x")
    make_console().print(table)
    if arguments.output is not None:
        settings = {"repeats": arguments.repeats, "targets": len(items), "max_length": arguments.max_length}
        results = Results("estimators", arguments.path, settings, [asdict(each) for each in found], [])
        write_file(arguments.output, "".join(results.lines()))


def measure_estimators(
    loaded: LoadedModel,
    items: Sequence[Scored],
    all_options: Sequence[LikelihoodOptions],
    repeats: int,
    batch_size: int,
) -> list[Efficiency]:
    """The efficiency of each estimator at each number of rows; LLaDA's Monte Carlo, the unit, comes first.

    Its rows are independent, so variance times rows is the same for any number, and one number is measured.
    """
    from rich.console import Console
    from rich.progress import track

    work = [(LLADA, all_options[-1])]
    work += [(name, options) for name in SAMPLERS if name != LLADA for options in all_options]
    found: list[Efficiency] = []
    unit = 0.0
    console = Console(stderr=True)
    for name, options in track(work, "measuring", console=console, disable=not console.is_terminal):
        variance = _variance(loaded, items, replace(options, estimator=name), repeats, batch_size)
        if name == LLADA:
            unit = variance * options.rows
            found += [
                Efficiency(name, each.rows, float(np.sqrt(unit / each.rows)), 1.0) for each in all_options
            ]
        else:
            gain = unit / (variance * options.rows) if variance else float("inf")
            found.append(Efficiency(name, options.rows, float(np.sqrt(variance)), gain))
    return found


def _variance(
    loaded: LoadedModel, items: Sequence[Scored], options: LikelihoodOptions, repeats: int, batch_size: int
) -> float:
    """The mean over items of the variance over seeds of the log-likelihood in nats."""
    nats = [
        [each.nats for each in log_likelihoods(loaded, items, replace(options, seed=seed), batch_size)]
        for seed in range(repeats)
    ]
    return float(np.var(nats, axis=0, ddof=1).mean())
