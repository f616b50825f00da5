"""`stability`: train methods under several seeds at a common budget, and say which of them are better."""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from mdmscale.analysis.study.budgets import Arm, control_of, make_arms, steps_in_time, with_steps
from mdmscale.analysis.study.methods import (
    BUILT_IN,
    CONTROL,
    Method,
    choose_methods,
    parse_method,
    read_methods,
)
from mdmscale.analysis.study.options import build_parser, check_numbers
from mdmscale.analysis.study.runs import Machine, StudyRun, train_all
from mdmscale.config.loading import dump_config, load_config
from mdmscale.system.errors import UserError
from mdmscale.system.files import read_object, write_file
from mdmscale.system.run_folder import RunFolder
from mdmscale.training.paths import check_paths

if TYPE_CHECKING:
    from mdmscale.analysis.study.results import RunResult
    from mdmscale.analysis.study.scoring import Scorer


def main(argv: list[str] | None = None) -> int:
    """Start or continue a study.

    Raises:
        UserError: for invalid options or files, and for a run that fails.
    """
    arguments = build_parser().parse_intermixed_args(argv)
    config = load_config(arguments.config, arguments.overrides)
    check_numbers(arguments)
    methods = compared_methods(arguments)
    reference = reference_of(arguments, methods)
    arms = make_arms(arguments.config, arguments.overrides, methods, arguments.budget)
    for each in [config, *(arm.config for arm in arms)]:
        check_paths(each, writes=False)
    from mdmscale.analysis.study import report
    from mdmscale.analysis.study.scoring import make_scorer

    scorer = make_scorer(arguments, config.data.fill_multiple)
    identity = {"config": dump_config(config), "scoring": scorer.identity, "budget": arguments.budget}
    check_identity(arguments.output, identity)
    machine = make_machine(arguments)
    arms = planned(arms, reference, machine, arguments)
    claim(arguments.output, {**identity, "methods": {arm.name: list(arm.overrides) for arm in arms}})
    console = Console()
    found = collected(in_order(arms, arguments, reference), scorer, machine, arguments, reference, console)
    order = [arm.name for arm in arms]
    found.sort(key=lambda result: (order.index(result.method), arguments.seeds.index(result.seed)))
    report.write(found, reference, scorer.what, identity, arguments.output)
    report.show(console, found, reference, scorer.what)
    console.print(f"written to {arguments.output}", highlight=False)
    return 0


def compared_methods(arguments: argparse.Namespace) -> list[Method]:
    """The methods that the options ask for."""
    own = [parse_method(text) for text in arguments.method]
    of_file = [] if arguments.methods_file is None else read_methods(arguments.methods_file)
    names = arguments.methods
    if names is None and (own or of_file):
        names = [*([] if of_file else ["standard"]), *(method.name for method in [*of_file, *own])]
    taken = {method.name for method in [*of_file, *own]}
    built_in = [method for method in BUILT_IN if method.name not in taken]
    return choose_methods([*built_in, *of_file, *own], names)


def reference_of(arguments: argparse.Namespace, methods: list[Method]) -> str:
    """The name of the method that the others are compared with."""
    names = [method.name for method in methods]
    if arguments.reference is None:
        return "standard" if "standard" in names else names[0]
    if arguments.reference not in names:
        raise UserError(f"--reference {arguments.reference}: choose from {', '.join(names)}")
    return str(arguments.reference)


def make_machine(arguments: argparse.Namespace) -> Machine:
    """How the runs share this machine."""
    import torch

    return Machine.of(arguments.jobs, arguments.ranks, torch.cuda.device_count())


def planned(arms: list[Arm], reference: str, machine: Machine, arguments: argparse.Namespace) -> list[Arm]:
    """The arms with their steps, and with the control after the reference."""
    file, overrides = arguments.config, arguments.overrides
    base = next(arm for arm in arms if arm.name == reference)
    if arguments.budget == "equal-wall":
        from mdmscale.analysis.study.timing import measure_arms

        print(f"timing {len(arms)} methods in short runs, one after the other", flush=True)
        seconds = measure_arms(arms, train_options(arguments), machine, arguments.output)
        own = base.config.train.steps
        arms = [
            with_steps(file, overrides, arm, steps_in_time(own, seconds[reference], seconds[arm.name]))
            for arm in arms
        ]
        for arm in arms:
            print(f"  {arm.name}: {seconds[arm.name]:.3g} s a step, {arm.config.train.steps:,} steps")
        base = next(arm for arm in arms if arm.name == reference)
    if not arguments.control:
        return arms
    return [base, control_of(file, overrides, base), *(arm for arm in arms if arm is not base)]


def in_order(arms: list[Arm], arguments: argparse.Namespace, reference: str) -> list[StudyRun]:
    """The runs in the order in which they start: those of the reference and the control first."""
    runs = [StudyRun(arm, seed, arguments.output / "runs") for seed in arguments.seeds for arm in arms]
    return sorted(runs, key=lambda run: run.arm.name not in (reference, CONTROL))


def collected(
    runs: list[StudyRun],
    scorer: "Scorer",
    machine: Machine,
    arguments: argparse.Namespace,
    reference: str,
    console: Console,
) -> list["RunResult"]:
    """Train and score the runs. Tells what the control says as soon as it can be told."""
    from mdmscale.analysis.study.verdict import control_answer

    found: list[RunResult] = []
    waiting = {run.name for run in runs if run.arm.name in (reference, CONTROL)}
    for run in trained(runs, machine, arguments):
        found.append(scored(run, scorer))
        if run.name in waiting:
            waiting.remove(run.name)
            if not waiting and (sentence := control_answer(found, reference)):
                console.print(sentence, highlight=False, soft_wrap=True)
    return found


def check_identity(folder: Path, identity: dict[str, Any]) -> None:
    """Refuse an output folder of another study, whose runs would be mistaken for those of this one.

    Raises:
        UserError: saying what differs.
    """
    path = folder / "study.json"
    before = read_object(path) if path.exists() else identity
    if differing := [name for name, value in identity.items() if before.get(name) != value]:
        raise UserError(
            f"--output {folder}: holds a study of another {' and '.join(differing)}; choose another"
        )


def claim(folder: Path, identity: dict[str, Any]) -> None:
    """Mark the output folder as this study's. Methods that it had before stay.

    Raises:
        UserError: if it has runs of a method of the same name with other options.
    """
    path = folder / "study.json"
    before = read_object(path).get("methods", {}) if path.exists() else {}
    for name, overrides in identity["methods"].items():
        if before.get(name, overrides) != overrides:
            raise UserError(
                f"--output {folder}: has runs of the method {name!r} with {' '.join(before[name])}, now "
                f"{' '.join(overrides)}; choose another name or output"
            )
    write_file(path, json.dumps({**identity, "methods": {**before, **identity["methods"]}}, indent=1))


def train_options(arguments: argparse.Namespace) -> list[str]:
    """The arguments of `mdmscale train` that all runs have."""
    return ["--config", arguments.config, *arguments.overrides]


def trained(runs: list[StudyRun], machine: Machine, arguments: argparse.Namespace) -> Iterator[StudyRun]:
    """Yield each run when it finishes, with a progress bar over all steps."""
    console = Console()
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f}%"))
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as bar:
        total = sum(run.arm.config.train.steps for run in runs)
        task = bar.add_task(f"0 of {len(runs)} runs", total=total)

        def watch() -> None:
            bar.update(task, completed=sum(run.steps_done() for run in runs))

        finishing = train_all(runs, train_options(arguments), machine, watch)
        for finished, run in enumerate(finishing, start=1):
            bar.update(task, description=f"{finished} of {len(runs)} runs")
            if not console.is_terminal:
                print(f"{finished} of {len(runs)} runs: {run.name} is finished", flush=True)
            yield run


def scored(run: StudyRun, scorer: "Scorer") -> "RunResult":
    """The result of a finished run. Its scores are kept in its folder."""
    from transformers.utils import logging as hf_logging

    from mdmscale.analysis.study.results import result_of_run

    hf_logging.disable_progress_bar()
    path = run.folder / "scores.json"
    if not path.exists():
        write_file(path, json.dumps({"scores": scorer(RunFolder(run.folder).export)}))
    return result_of_run(run.folder, run.arm.name, run.seed, json.loads(path.read_text())["scores"])
