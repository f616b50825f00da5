"""`decide`: a study of small models with many seeds, large enough to tell what changes results."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mdmscale.analysis.decision.arms import FINE_TUNING, FROM_SCRATCH, GATE, UNCLIPPED, Arm, choose_arms
from mdmscale.analysis.decision.options import build_parser, check_options
from mdmscale.analysis.decision.part import Condition, Schedule
from mdmscale.system.errors import UserError
from mdmscale.system.files import read_object, write_file

SCHEDULES: tuple[Schedule, ...] = ("constant", "linear")
CLIPPING = 1.0
STUDY_FILE = "study.json"


@dataclass(frozen=True)
class Sizes:
    """The settings of both parts, and their seeds."""

    fine_tuning: Any
    from_scratch: Any
    fine_tuning_seeds: int
    from_scratch_seeds: int


def main(argv: list[str] | None = None) -> int:
    """Run or continue the study.

    Raises:
        UserError: for invalid options, and for an output folder of another study.
    """
    arguments = build_parser().parse_args(argv)
    check_options(arguments)
    sizes = sizes_of(arguments.quick, arguments.seeds)
    known = {"fine_tuning": FINE_TUNING, "from_scratch": FROM_SCRATCH}
    arms = {name: chosen(known[name], arguments, name) for name in arguments.parts}
    if arguments.dry_run:
        show_estimate(sizes, arms, arguments)
        return 0
    identity = {
        name: {
            "settings": asdict(sizes.fine_tuning if name == "fine_tuning" else sizes.from_scratch),
            "arms": {arm.name: asdict(arm) for arm in of_part},
        }
        for name, of_part in arms.items()
    }
    claim(arguments.output, identity)
    show_estimate(sizes, arms, arguments)
    run(sizes, arms, identity, arguments)
    return 0


def chosen(known: Sequence[Arm], arguments: argparse.Namespace, part: str) -> list[Arm]:
    """The arms of a part. `--arms` may name arms that only the other part has."""
    if arguments.arms is None:
        return choose_arms(known, None)
    everywhere = {arm.name for arm in (*FINE_TUNING, *FROM_SCRATCH)}
    own = {arm.name for arm in known}
    wanted = [name for name in arguments.arms if name in own or name not in everywhere]
    return choose_arms(known, [*wanted, *(GATE if part == "fine_tuning" else ())])


def sizes_of(quick: bool, seeds: int | None) -> Sizes:
    from mdmscale.analysis.decision.fine_tuning import FineTuningSettings
    from mdmscale.analysis.decision.from_scratch import FromScratchSettings

    fine_tuning, from_scratch = FineTuningSettings(), FromScratchSettings()
    if quick:
        fine_tuning = replace(
            fine_tuning,
            base=3,
            hops=2,
            hidden_size=16,
            intermediate_size=16,
            pretraining_steps=20,
            pretraining_batch=8,
            pretraining_questions=64,
            competence=0.0,
            competence_questions=8,
            num_samples=16,
            epochs=1,
            rates=(1e-3, 4e-3),
            tuning_seeds=2,
            tuning_questions=8,
            held_out_questions=8,
            likelihood_rows=4,
            probe_samples=2,
        )
        from_scratch = replace(
            from_scratch,
            vocab_size=400,
            length=16,
            hidden_size=16,
            num_layers=1,
            intermediate_size=16,
            num_steps=10,
            num_sequences=64,
            warmup_steps=2,
            rates=(1e-3, 4e-3),
            tuning_seeds=2,
            num_texts=4,
            likelihood_rows=4,
            probe_samples=2,
        )
    return Sizes(fine_tuning, from_scratch, seeds or (3 if quick else 24), seeds or (3 if quick else 8))


def conditions_of(part: str, arms: Sequence[Arm]) -> list[Condition]:
    """Every arm under every schedule with clipping, and some at a constant learning rate without."""
    if part == "from_scratch":
        return [Condition(arm, "cosine", CLIPPING) for arm in arms]
    clipped = [Condition(arm, schedule, CLIPPING) for schedule in SCHEDULES for arm in arms]
    unclipped = [Condition(arm, "constant", 0.0) for arm in arms if arm.name in UNCLIPPED]
    return clipped + unclipped


def run(
    sizes: Sizes, arms: dict[str, list[Arm]], identity: dict[str, Any], arguments: argparse.Namespace
) -> None:
    """Run the parts and write the report after each."""
    from mdmscale.analysis.decision import report
    from mdmscale.analysis.decision.stages import Gate

    gates: list[Gate] = []
    tuning: dict[str, report.Tuning] = {}
    final: dict[str, report.Tuning] = {}
    for name, of_part in arms.items():
        folder = arguments.output / name
        if name == "fine_tuning":
            gates, tuning[name], final[name] = run_fine_tuning(sizes, of_part, folder, arguments)
            if not final[name]:
                del final[name]
        else:
            tuning[name], final[name] = run_from_scratch(sizes, of_part, folder, arguments.jobs)
        text = report.write_report(arguments.output, identity, gates, tuning, final)
    print(text)
    print(f"written to {arguments.output}")


def run_fine_tuning(
    sizes: Sizes, arms: list[Arm], folder: Path, arguments: argparse.Namespace
) -> tuple[Any, Any, Any]:
    """(the gates, the tuning results, the final results): the last ones empty if no gate is open."""
    from mdmscale.analysis.decision import fine_tuning, stages
    from mdmscale.analysis.decision.jobs import Job, run_jobs

    part, num_processes = fine_tuning.FineTuning(sizes.fine_tuning), arguments.jobs
    bases = list(dict.fromkeys(fine_tuning.base_of(arm) for arm in arms))
    jobs = [
        Job(
            fine_tuning.base_path(folder, base),
            f"base of objective {base}",
            1.0,
            fine_tuning.pretrain,
            (part, base, folder),
        )
        for base in bases
    ]
    run_jobs(jobs, num_processes, "fine_tuning, pretraining")
    for base in bases:
        accuracy = stages.load_arrays(fine_tuning.base_path(folder, base))["accuracy"]
        print(f"base of objective {base}: {accuracy:.1%} right on its own tables", flush=True)
    gate_arms = [arm for arm in arms if arm.name in GATE]
    tuning = stages.tuned(part, conditions_of_gate(gate_arms), folder, num_processes)
    gates = [stages.ask_gate(tuning, schedule) for schedule in SCHEDULES]
    for gate in gates:
        print(gate.sentence(), flush=True)
    if not any(gate.is_open for gate in gates) and not arguments.past_gate:
        return gates, tuning, {}
    conditions = conditions_of("fine_tuning", arms)
    tuning = stages.tuned(part, conditions, folder, num_processes)
    rates = stages.fixed_rates(tuning, folder)
    final = stages.final_results(part, rates, sizes.fine_tuning_seeds, folder, num_processes)
    return gates, tuning, final


def conditions_of_gate(arms: Sequence[Arm]) -> list[Condition]:
    return [Condition(arm, schedule, CLIPPING) for schedule in SCHEDULES for arm in arms]


def run_from_scratch(sizes: Sizes, arms: list[Arm], folder: Path, num_processes: int) -> tuple[Any, Any]:
    """(the tuning results, the final results)."""
    from mdmscale.analysis.decision import from_scratch, stages
    from mdmscale.analysis.decision.jobs import Job, run_jobs

    part = from_scratch.FromScratch(sizes.from_scratch)
    path = from_scratch.text_path(folder)
    run_jobs([Job(path, "the text", 1.0, from_scratch.prepare_text, (part, folder))], 1, "from_scratch, text")
    tuning = stages.tuned(part, conditions_of("from_scratch", arms), folder, num_processes)
    rates = stages.fixed_rates(tuning, folder)
    return tuning, stages.final_results(part, rates, sizes.from_scratch_seeds, folder, num_processes)


def show_estimate(sizes: Sizes, arms: dict[str, list[Arm]], arguments: argparse.Namespace) -> None:
    """Print how long what is missing takes, if the gate is open."""
    import numpy as np

    from mdmscale.analysis.decision.estimate import seconds_a_row, work
    from mdmscale.analysis.decision.fine_tuning import FineTuning
    from mdmscale.analysis.decision.from_scratch import FromScratch
    from mdmscale.diffusion.sample import Sample

    for name, of_part in arms.items():
        folder = arguments.output / name
        if name == "fine_tuning":
            part: Any = FineTuning(sizes.fine_tuning)
            samples, seeds = part.samples(folder), sizes.fine_tuning_seeds
        else:
            part = FromScratch(sizes.from_scratch)
            length = sizes.from_scratch.length
            samples = [Sample(np.zeros(length, dtype=np.int64), np.ones(length, dtype=bool))]
            seeds = sizes.from_scratch_seeds
        rows = work(part, conditions_of(name, of_part), seeds, folder)
        minutes = rows * seconds_a_row(part.shape, samples) / 60
        print(
            f"{name}: about {minutes:.0f} minutes of a core are left, "
            f"{minutes / arguments.jobs:.0f} minutes with {arguments.jobs} jobs",
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
