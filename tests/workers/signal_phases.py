"""Train each config of a JSON list with a SIGTERM in one phase of step 8, then train it again to its end.

argv[1] names the list of [phase, config file]. Prints a JSON list with both exit statuses of each config.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any
from unittest import mock

from mdmscale.engine.engine import Engine
from mdmscale.models.mdm import MaskedDiffusionModel
from mdmscale.parallel import ranks as distributed
from mdmscale.train_command import main as train_main
from mdmscale.training import checkpoint, trainer

PHASES: dict[str, tuple[Any, str]] = {
    "forward": (MaskedDiffusionModel, "forward"),
    "backward": (Engine, "accumulate"),
    "save": (checkpoint, "save"),
    "evaluation": (trainer, "run_evaluation"),
}


def signalled(original: Any, call: int) -> Any:
    """Wrap `original`: in call number `call` the process gets a SIGTERM before the original runs."""
    calls = iter(range(1, 10**9))

    def function(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == call:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*args, **kwargs)

    return function


if __name__ == "__main__":
    distributed.finalise = lambda wait=True: None  # one group for all runs: DeepSpeed cannot join a second
    statuses = []
    for phase, config in json.loads(Path(sys.argv[1]).read_text()):
        owner, name = PHASES[phase]
        call = 1 if phase in ("save", "evaluation") else 8
        with mock.patch.object(owner, name, signalled(getattr(owner, name), call)):
            first = train_main(["--config", config])
        statuses.append([first, train_main(["--config", config])])
    print(json.dumps(statuses))
