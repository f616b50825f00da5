"""Figures: the files that they write, and that matplotlib is imported only when needed."""

import subprocess
import sys
from pathlib import Path

from mdmscale.training.figures import save_figure, training_figure


def test_losses_are_drawn(tmp_path: Path) -> None:
    records = [{"step": step, "loss": 1 / step, "eval_loss": 2 / step} for step in range(1, 9)]
    save_figure(training_figure(records), tmp_path / "figures" / "loss.png")
    assert (tmp_path / "figures" / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_matplotlib_is_imported_only_to_draw() -> None:
    code = (
        "import sys\n"
        "from mdmscale.analysis.planning import report\n"
        "from mdmscale.training import figures\n"
        "before = 'matplotlib' in sys.modules\n"
        "figures.new_figure()\n"
        "print(before, 'matplotlib' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False True\n"
