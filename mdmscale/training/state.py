"""state.json of a checkpoint: the position of the run, values that must not change, its config, and component
states.

A component is a part of the run that has a state of its own (system/stateful.py). Its state is stored under
its name. Model and optimizer are in DeepSpeed's files instead.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mdmscale.engine.state import EngineLayout
from mdmscale.system.errors import UserError
from mdmscale.system.files import read_object
from mdmscale.system.run_folder import STATE_FILE
from mdmscale.system.stateful import Stateful

# Format 1 has no format number and keeps all keys in one dictionary. Format 2 has no `model` and no `config`.
# Format 3 has no `scores`.
FORMAT = 4


@dataclass(frozen=True)
class TrainingState:
    """state.json of a checkpoint."""

    step: int  # optimizer steps taken
    consumed_samples: int
    consumed_tokens: int
    seed: int
    global_batch_size: int
    lora: dict[str, Any] | None  # model.lora
    data_fingerprint: str
    data_description: str
    engine: EngineLayout
    components: dict[str, dict[str, Any]]
    model: dict[str, Any] | None = None  # what the model is, see identity.py; None in older formats
    config: dict[str, Any] | None = None  # the run's resolved config; None in older formats
    scores: dict[str, float] = field(
        default_factory=dict
    )  # metrics of the evaluation after this step, if any

    def write(self, folder: Path) -> None:
        """Write state.json into an unfinished checkpoint folder."""
        (folder / STATE_FILE).write_text(json.dumps({"format": FORMAT, **asdict(self)}, indent=1))

    @classmethod
    def read(cls, folder: Path) -> "TrainingState":
        """Read state.json of a checkpoint, in this format or a previous one.

        Raises:
            UserError: if it is missing, damaged or in an unknown format.
        """
        path = folder / STATE_FILE
        values = read_object(path)
        try:
            version = values.pop("format", 1)
            if version not in range(1, FORMAT + 1):
                raise UserError(f"{path}: has format {version}; this version reads up to {FORMAT}; update it")
            return cls._of_format_1(values) if version == 1 else cls._of_values(values)
        except (KeyError, TypeError) as error:
            raise UserError(f"{path}: written by another version: {error}") from None

    @classmethod
    def _of_values(cls, values: dict[str, Any]) -> "TrainingState":
        return cls(**{**values, "engine": EngineLayout.of(values)})

    @classmethod
    def _of_format_1(cls, values: dict[str, Any]) -> "TrainingState":
        """Format 1 has all keys in one dictionary; three of them belong to P-POTS."""
        engine = EngineLayout.of(values)
        p_pots = {
            "density": values.pop("density"),
            "cell_sums": values.pop("cell_sums"),
            "is_on": values.pop("t_sampler") == "p_pots",
        }
        components = {"p_pots": p_pots, "baseline": values.pop("baseline")}
        own = {name: value for name, value in values.items() if name not in asdict(engine)}
        return cls(**own, engine=engine, components=components)

    def load_into(self, components: Mapping[str, Stateful], checkpoint: Path) -> list[str]:
        """Load every component's state. Returns the names of components that the checkpoint has no state for.

        Raises:
            UserError: if the checkpoint has a component that this run does not have, or a component cannot
                load its state.
        """
        if unknown := sorted(self.components.keys() - components.keys()):
            raise UserError(
                f"{checkpoint}: has the state of {unknown[0]!r}, which this version does not have "
                f"({', '.join(components)}); continue with the version that wrote it"
            )
        for name, state in self.components.items():
            try:
                components[name].load_state_dict(state)
            except (KeyError, TypeError, ValueError) as error:
                raise UserError(f"{checkpoint}: the state of {name!r} cannot be loaded: {error!r}") from None
        return sorted(components.keys() - self.components.keys())
