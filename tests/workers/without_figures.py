"""Runs whose figures are empty files: drawing one takes longer than several steps of a tiny run.

tests/training/test_figures.py draws them, and so do scripts without ranks and the README's commands.
"""

from pathlib import Path
from typing import Any


def draw_nothing() -> None:
    """Let all runs of this process leave their figures empty."""
    from mdmscale.training import trainer

    trainer.save_figure = save_nothing


def save_nothing(_: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
