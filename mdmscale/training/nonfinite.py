"""Runs that end because values are not finite, and how far back the next start goes.

All that a run saves is finite, and yet the steps after a checkpoint may end in NaN every time. A run that has
ended so twice or more without passing the step of the first end therefore starts from ever older checkpoints.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from mdmscale.system.errors import UserError
from mdmscale.system.files import read_object, write_file
from mdmscale.system.run_folder import RunFolder

RESUME_LOWER = "resume from the last checkpoint, for example with a lower optimizer.lr"


@dataclass(frozen=True)
class Ends:
    """A run's last starts, as far as values that are not finite have ended them at one step or before."""

    step: int  # steps taken at the first of these ends
    times: int

    @property
    def steps_back(self) -> int:
        """How many checkpoints before the newest the next start goes back."""
        return self.times - 1

    def warnings(self, whole: Sequence[Path]) -> list[str]:
        """What to say of a start from the last of `whole`, the run's undamaged checkpoints, newest first."""
        if not self.steps_back:
            return []
        if len(whole) > 1:
            start = f"goes back from {whole[0]} to {whole[-1]}"
        else:
            start = f"continues from {whole[0]}, as there is no older checkpoint; lower optimizer.lr"
        return [
            f"the run has ended {self.times} times by values that are not finite, at step {self.step} or "
            f"before; it {start}"
        ]


@contextmanager
def counted_ends(folder: RunFolder, steps_taken: Callable[[], int], enabled: bool) -> Iterator[None]:
    """Count the end of a run by a FloatingPointError in the block, on the rank where this is `enabled`."""
    try:
        yield
    except FloatingPointError:
        if enabled:
            step, before = steps_taken(), read_ends(folder)
            ends = Ends(before.step, before.times + 1) if before and step <= before.step else Ends(step, 1)
            write_file(folder.ends, json.dumps(asdict(ends)) + "\n")
        raise


def read_ends(folder: RunFolder) -> Ends | None:
    """How a run's last starts have ended; None where they have not ended so."""
    if not folder.ends.exists():
        return None
    try:
        values = read_object(folder.ends)
        return Ends(int(values["step"]), int(values["times"]))
    except (UserError, KeyError, TypeError, ValueError):  # damaged
        return None


def forget_ends(folder: RunFolder, step: int) -> None:
    """Forget how a run has ended once it has passed that step."""
    ends = read_ends(folder)
    if ends is not None and ends.step < step:
        folder.ends.unlink()
