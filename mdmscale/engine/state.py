"""How the values of a DeepSpeed checkpoint are laid out over its files."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from mdmscale.system.errors import UserError
from mdmscale.system.files import read_object
from mdmscale.system.run_folder import STATE_FILE


@dataclass(frozen=True)
class EngineLayout:
    """What must be known to read DeepSpeed's files of a checkpoint."""

    world_size: int
    zero_stage: int
    tensor: int  # parallel.tensor
    dtype: str  # model.dtype
    parameter_groups: list[list[str]]  # the optimizer's, by the names of their parameters, in its order

    def matches(self, other: "EngineLayout") -> bool:
        """Whether DeepSpeed can load the files of one by itself into an engine of the other."""
        names = ("zero_stage", "world_size", "tensor", "dtype")
        return all(getattr(self, name) == getattr(other, name) for name in names)

    @classmethod
    def of(cls, values: dict[str, Any]) -> "EngineLayout":
        """The layout that a checkpoint's state.json describes: under `engine`, at its top in old ones.

        Raises:
            KeyError: where it lacks something.
        """
        own = values.get("engine", values)
        return cls(**{field.name: own[field.name] for field in fields(cls)})


def read_layout(checkpoint: Path) -> EngineLayout:
    """The layout of a checkpoint folder.

    Raises:
        UserError: where state.json is missing, damaged, or another version's.
    """
    path = checkpoint / STATE_FILE
    values = read_object(path)
    try:
        return EngineLayout.of(values)
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: written by another version, as it lacks {error}") from None
