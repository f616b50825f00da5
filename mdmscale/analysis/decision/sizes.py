"""The sizes of a study: as they are meant, and tiny ones that only show that it runs."""

from dataclasses import dataclass, replace

from mdmscale.analysis.decision.fine_tuning import FineTuningSettings
from mdmscale.analysis.decision.from_scratch import FromScratchSettings


@dataclass(frozen=True)
class Sizes:
    """The settings of both parts, and how many final seeds each has."""

    fine_tuning: FineTuningSettings
    from_scratch: FromScratchSettings
    fine_tuning_seeds: int
    from_scratch_seeds: int


def sizes_of(quick: bool, seeds: int | None) -> Sizes:
    """seeds: replaces the number of final seeds of both parts."""
    if quick:
        return Sizes(_quick_fine_tuning(), _quick_from_scratch(), seeds or 3, seeds or 3)
    return Sizes(FineTuningSettings(), FromScratchSettings(), seeds or 24, seeds or 8)


def _quick_fine_tuning() -> FineTuningSettings:
    return replace(
        FineTuningSettings(),
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


def _quick_from_scratch() -> FromScratchSettings:
    return replace(
        FromScratchSettings(),
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
