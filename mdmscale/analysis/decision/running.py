"""Runs the parts of the study from their first file to their results."""

from collections.abc import Sequence
from pathlib import Path

from mdmscale.analysis.decision import stages
from mdmscale.analysis.decision.arms import GATE, UNCLIPPED, Arm
from mdmscale.analysis.decision.fine_tuning import FineTuning, base_of, base_path, pretrain
from mdmscale.analysis.decision.from_scratch import FromScratch, prepare_text, text_path
from mdmscale.analysis.decision.jobs import Job, run_jobs
from mdmscale.analysis.decision.part import Condition, Schedule, load_arrays
from mdmscale.analysis.decision.report import Tuning
from mdmscale.analysis.decision.stages import Gate

SCHEDULES: tuple[Schedule, ...] = ("constant", "linear")
CLIPPING = 1.0


def fine_tuning_conditions(arms: Sequence[Arm]) -> list[Condition]:
    """Every arm under every schedule with clipping, and some at a constant learning rate without."""
    clipped = [Condition(arm, schedule, CLIPPING) for schedule in SCHEDULES for arm in arms]
    return clipped + [Condition(arm, "constant", 0.0) for arm in arms if arm.name in UNCLIPPED]


def from_scratch_conditions(arms: Sequence[Arm]) -> list[Condition]:
    return [Condition(arm, "cosine", CLIPPING) for arm in arms]


def run_fine_tuning(
    part: FineTuning, arms: Sequence[Arm], num_seeds: int, folder: Path, num_processes: int, past_gate: bool
) -> tuple[list[Gate], Tuning, Tuning]:
    """(the gates of the schedules, the tuning results, the final results).

    There are no final results if no gate is open, unless `past_gate` is set.
    """
    make_bases(part, arms, folder, num_processes)
    first = [each for each in fine_tuning_conditions(arms) if each.clipping and each.arm.name in GATE]
    tuning = stages.tuned(part, first, folder, num_processes)
    gates = [stages.ask_gate(tuning, schedule) for schedule in SCHEDULES]
    for gate in gates:
        print(gate.sentence(), flush=True)
    if not any(gate.is_open for gate in gates) and not past_gate:
        return gates, tuning, {}
    tuning = stages.tuned(part, fine_tuning_conditions(arms), folder, num_processes)
    rates = stages.fixed_rates(tuning, folder)
    return gates, tuning, stages.final_results(part, rates, num_seeds, folder, num_processes)


def make_bases(part: FineTuning, arms: Sequence[Arm], folder: Path, num_processes: int) -> None:
    """Pretrain the bases that the arms begin at, and tell how competent they are."""
    bases = list(dict.fromkeys(base_of(arm) for arm in arms))
    jobs = [
        Job(base_path(folder, base), f"base of objective {base}", 1.0, pretrain, (part, base, folder))
        for base in bases
    ]
    run_jobs(jobs, num_processes, "fine_tuning, pretraining")
    for base in bases:
        accuracy = load_arrays(base_path(folder, base))["accuracy"]
        print(f"base of objective {base}: {accuracy:.1%} right on its own tables", flush=True)


def run_from_scratch(
    part: FromScratch, arms: Sequence[Arm], num_seeds: int, folder: Path, num_processes: int
) -> tuple[Tuning, Tuning]:
    """(the tuning results, the final results)."""
    text = Job(text_path(folder), "the text", 1.0, prepare_text, (part, folder))
    run_jobs([text], 1, "from_scratch, text")
    tuning = stages.tuned(part, from_scratch_conditions(arms), folder, num_processes)
    rates = stages.fixed_rates(tuning, folder)
    return tuning, stages.final_results(part, rates, num_seeds, folder, num_processes)
