"""Which checkpoints of a run stay: the newest, those of every Nth step, and the best one."""

from collections.abc import Sequence
from pathlib import Path

from mdmscale.config.training import HELD_OUT_LOSS, CheckpointSection
from mdmscale.system.errors import UserError
from mdmscale.system.run_folder import step_of
from mdmscale.training.state import TrainingState
from mdmscale.training.task_questions import accuracy_metric


def retired(checkpoints: Sequence[Path], options: CheckpointSection) -> list[Path]:
    """Those of a run's checkpoints, oldest first, that `options` do not keep. The newest one always stays."""
    kept = set(checkpoints[-options.keep :])  # [-0:] is all of them
    if options.keep_every:
        kept |= {each for each in checkpoints if step_of(each) % options.keep_every == 0}
    if options.keep_best is not None and (best := best_checkpoint(checkpoints, options.keep_best)):
        kept.add(best)
    return [each for each in checkpoints if each not in kept]


def best_checkpoint(checkpoints: Sequence[Path], measure: str) -> Path | None:
    """The checkpoint with the lowest held-out loss, or the most right answers to a task.

    Of equal ones it is the newest. A checkpoint of a step without an evaluation has no score. Scores are in
    the checkpoints themselves, so a resumed run chooses as an uninterrupted one does.

    Args:
        measure: a value of checkpoint.keep_best.
    """
    is_loss = measure == HELD_OUT_LOSS
    metric, sign = ("eval_loss", -1) if is_loss else (accuracy_metric(measure), 1)
    scores = {each: _scores(each) for each in checkpoints}
    scored = [each for each in checkpoints if metric in scores[each]]
    return max(reversed(scored), key=lambda each: sign * scores[each][metric], default=None)


def _scores(checkpoint: Path) -> dict[str, float]:
    """The metrics of the evaluation at a checkpoint's step; none where its state cannot be read."""
    try:
        return TrainingState.read(checkpoint).scores
    except UserError:
        return {}
