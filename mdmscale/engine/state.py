"""The layout of a DeepSpeed checkpoint: how its values are distributed over its files."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from mdmscale.system.errors import UserError
from mdmscale.system.files import read_object
from mdmscale.system.run_folder import STATE_FILE


@dataclass(frozen=True)
class EngineLayout:
    """The facts needed to read DeepSpeed's files of a checkpoint."""

    world_size: int
    zero_stage: int
    tensor: int  # parallel.tensor
    dtype: str  # model.dtype
    parameter_groups: list[list[str]]  # the optimizer's groups in order, as parameter names

    def matches(self, other: "EngineLayout") -> bool:
        """Whether DeepSpeed itself can load files of one layout into an engine of the other."""
        names = ("zero_stage", "world_size", "tensor", "dtype")
        return all(getattr(self, name) == getattr(other, name) for name in names)

    @classmethod
    def of(cls, values: dict[str, Any]) -> "EngineLayout":
        """The layout in a checkpoint's state.json: under `engine`, or at the top level in old checkpoints.

        Raises:
            KeyError: if a key is missing.
        """
        own = values.get("engine", values)
        return cls(**{field.name: own[field.name] for field in fields(cls)})


def read_layout(checkpoint: Path) -> EngineLayout:
    """The layout of a checkpoint folder.

    Raises:
        UserError: if state.json is missing, damaged or from another version.
    """
    path = checkpoint / STATE_FILE
    values = read_object(path)
    try:
        return EngineLayout.of(values)
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: written by another version, as it lacks {error}") from None
