"""`decide`: a study of small models with many seeds, large enough to tell what changes results."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mdmscale.analysis.decision.arms import FINE_TUNING, FROM_SCRATCH, GATE, Arm, choose_arms
from mdmscale.analysis.decision.options import build_parser, check_options
from mdmscale.system.errors import UserError
from mdmscale.system.files import read_object, write_file

if TYPE_CHECKING:
    from mdmscale.analysis.decision.report import Tuning
    from mdmscale.analysis.decision.sizes import Sizes
    from mdmscale.analysis.decision.stages import Gate

KNOWN = {"fine_tuning": FINE_TUNING, "from_scratch": FROM_SCRATCH}
STUDY_FILE = "study.json"
Arms = dict[str, list[Arm]]
"""The arms of each part."""


def main(argv: list[str] | None = None) -> int:
    """Run or continue the study.

    Raises:
        UserError: for invalid options, and for an output folder of another study.
    """
    arguments = build_parser().parse_args(argv)
    check_options(arguments)
    arms = {name: chosen(arguments, name) for name in arguments.parts}
    from mdmscale.analysis.decision.sizes import sizes_of

    sizes = sizes_of(arguments.quick, arguments.seeds)
    if not arguments.dry_run:
        claim(arguments.output, identity_of(sizes, arms))
    show_estimate(sizes, arms, arguments)
    if not arguments.dry_run:
        run(sizes, arms, arguments)
    return 0


def chosen(arguments: argparse.Namespace, part: str) -> list[Arm]:
    """The arms of a part, always with those of the gate. `--arms` may name arms that only the other part has.

    Raises:
        UserError: for names that are no arm of either.
    """
    if arguments.arms is None:
        return choose_arms(KNOWN[part], None)
    everywhere = {arm.name for arms in KNOWN.values() for arm in arms}
    own = {arm.name for arm in KNOWN[part]}
    wanted = [name for name in arguments.arms if name in own or name not in everywhere]
    return choose_arms(KNOWN[part], [*wanted, *(GATE if part == "fine_tuning" else ())])


def identity_of(sizes: "Sizes", arms: Arms) -> dict[str, Any]:
    """What the results of each part depend on."""
    settings: dict[str, Any] = {"fine_tuning": sizes.fine_tuning, "from_scratch": sizes.from_scratch}
    return {
        name: {"settings": asdict(settings[name]), "arms": {arm.name: asdict(arm) for arm in of_part}}
        for name, of_part in arms.items()
    }


def run(sizes: "Sizes", arms: Arms, arguments: argparse.Namespace) -> None:
    """Run the parts and write the report after each."""
    from mdmscale.analysis.decision.fine_tuning import FineTuning
    from mdmscale.analysis.decision.from_scratch import FromScratch
    from mdmscale.analysis.decision.report import write_report
    from mdmscale.analysis.decision.running import run_fine_tuning, run_from_scratch

    gates: list[Gate] = []
    tuning: dict[str, Tuning] = {}
    final: dict[str, Tuning] = {}
    for name, of_part in arms.items():
        folder, jobs = arguments.output / name, arguments.jobs
        if name == "fine_tuning":
            gates, tuning[name], final[name] = run_fine_tuning(
                FineTuning(sizes.fine_tuning),
                of_part,
                sizes.fine_tuning_seeds,
                folder,
                jobs,
                arguments.past_gate,
            )
        else:
            tuning[name], final[name] = run_from_scratch(
                FromScratch(sizes.from_scratch), of_part, sizes.from_scratch_seeds, folder, jobs
            )
        text = write_report(arguments.output, identity_of(sizes, arms), gates, tuning, final)
    print(text)
    print(f"written to {arguments.output}")


def show_estimate(sizes: "Sizes", arms: Arms, arguments: argparse.Namespace) -> None:
    """Print how long what is missing takes, if the gate is open."""
    from mdmscale.analysis.decision.estimate import seconds_of
    from mdmscale.analysis.decision.fine_tuning import FineTuning
    from mdmscale.analysis.decision.from_scratch import FromScratch
    from mdmscale.analysis.decision.running import fine_tuning_conditions, from_scratch_conditions

    for name, of_part in arms.items():
        folder = arguments.output / name
        if name == "fine_tuning":
            conditions, seeds = fine_tuning_conditions(of_part), sizes.fine_tuning_seeds
            seconds = seconds_of(FineTuning(sizes.fine_tuning), conditions, seeds, folder)
        else:
            conditions, seeds = from_scratch_conditions(of_part), sizes.from_scratch_seeds
            seconds = seconds_of(FromScratch(sizes.from_scratch), conditions, seeds, folder)
        print(
            f"{name}: about {seconds / 60:.0f} minutes of a core are left, "
            f"{seconds / 60 / arguments.jobs:.0f} minutes with {arguments.jobs} jobs",
            flush=True,
        )


def claim(folder: Path, identity: dict[str, Any]) -> None:
    """Mark the output folder as this study's. Parts and arms that it had before stay.

    Raises:
        UserError: if its results are of other sizes, or of an arm of the same name with other options.
    """
    path = folder / STUDY_FILE
    before = read_object(path) if path.exists() else {}
    problems = []
    for name, part in json.loads(json.dumps(identity)).items():
        known = before.setdefault(name, part)
        if known["settings"] != part["settings"]:
            problems.append(f"--output {folder}: holds a study of {name} with other sizes; choose another")
        problems += [
            f"--output {folder}: has results of the arm {arm} of {name} with other options; choose another"
            for arm, options in part["arms"].items()
            if known["arms"].setdefault(arm, options) != options
        ]
    if problems:
        raise UserError(*problems)
    write_file(path, json.dumps(before, indent=1) + "\n")
