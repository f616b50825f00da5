"""How a checkpoint's DeepSpeed files divide the model: what it takes to put parameters together again."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from mdmscale.system.errors import UserError
from mdmscale.system.files import read_object
from mdmscale.system.run_folder import STATE_FILE

SECTION = "engine"  # of the state file


@dataclass(frozen=True)
class EngineLayout:
    """The job that wrote a checkpoint, and the parameter groups of its optimizer."""

    world_size: int
    zero_stage: int
    tensor: int  # ranks that share each matrix, parallel.tensor
    dtype: str  # model.dtype
    parameter_groups: list[list[str]]  # names of the optimizer's parameters, in its order


def read_layout(checkpoint_folder: Path) -> EngineLayout:
    """The layout in a checkpoint's state.json: its section `engine`, or in older files its top level.

    Raises:
        UserError: where the file is missing, damaged, or of another version.
    """
    path = checkpoint_folder / STATE_FILE
    state = read_object(path)
    values: Any = state.get(SECTION, state)
    names = [field.name for field in fields(EngineLayout)]
    if missing := [name for name in names if not isinstance(values, dict) or name not in values]:
        raise UserError(f"{path}: written by another version: it has no {missing[0]}")
    return EngineLayout(**{name: values[name] for name in names})
