"""The tasks of reasoning-gym: questions that a seed generates, with the package's own scores.

Item n of a dataset with seed s is drawn with seed s + n. So seeds must lie far apart, or the questions of one
seed are those of another, shifted; and training questions begin far behind those of the test.
"""

import math
from typing import Any

from mdmscale.evaluation.tasks.task_file import no_such
from mdmscale.system.errors import UserError, first_line

DEFAULT_SIZE = 100
FIRST_SEEDS = {"test": 0, "train": 1_000_000_000}
INSTALL = "install the extra: pip install 'mdmscale[tasks]'"


def generated_names() -> list[str]:
    """The tasks that reasoning-gym has; none where it is not installed."""
    try:
        from reasoning_gym.factory import DATASETS
    except ImportError:
        return []
    return sorted(DATASETS)


class Generated:
    """A dataset of reasoning-gym.

    Raises:
        UserError: where the package, the task or an option is missing or wrong.
    """

    def __init__(self, name: str, options: dict[str, Any], size: int | None, split: str) -> None:
        try:
            import reasoning_gym
        except ImportError:
            raise UserError(f"task reasoning-gym:{name}: reasoning-gym is not installed; {INSTALL}") from None
        if name not in generated_names():
            raise UserError(no_such("task", f"reasoning-gym:{name}", ["reasoning-gym:NAME"], prefixed()))
        self.size = DEFAULT_SIZE if size is None else size
        arguments = {"seed": FIRST_SEEDS[split], **options, "size": self.size}
        try:
            self._dataset = reasoning_gym.create_dataset(name, **arguments)
        except (TypeError, ValueError, AssertionError) as error:
            raise UserError(
                f"task reasoning-gym:{name}: options {options}: {first_line(error)}; a task file "
                "sets them in data.options"
            ) from None

    def entries(self) -> list[dict[str, Any]]:
        """The questions: {"question", "answer", "metadata"} each."""
        return [self._dataset[number] for number in range(self.size)]

    def score(self, answer: str, entry: dict[str, Any]) -> float:
        """What an answer is worth, in [0, 1].

        The scorers parse answers, and some raise on what they cannot parse: that is a wrong answer.
        """
        try:
            points = float(self._dataset.score_answer(answer, entry))
        except Exception:  # a hundred scorers, each with its own ways to fail
            return 0.0
        return min(1.0, max(0.0, points)) if math.isfinite(points) else 0.0


def prefixed() -> list[str]:
    """The names under which --task knows them."""
    return [f"reasoning-gym:{name}" for name in generated_names()]
