"""The layout of a checkpoint's DeepSpeed files, read from current and old state files."""

import json
from pathlib import Path

import pytest

from mdmscale.engine.state import EngineLayout, read_layout
from mdmscale.system.errors import UserError

LAYOUT = {
    "world_size": 4,
    "zero_stage": 3,
    "tensor": 2,
    "dtype": "bf16",
    "parameter_groups": [["a.weight"], ["norm.weight"]],
}


@pytest.mark.parametrize(
    "state",
    [{"step": 3, "seed": 0, **LAYOUT}, {"step": 3, "engine": LAYOUT}],
    ids=["flat", "section"],
)
def test_layouts_of_old_and_new_files_are_read(tmp_path: Path, state: dict[str, object]) -> None:
    (tmp_path / "state.json").write_text(json.dumps(state))
    assert read_layout(tmp_path) == EngineLayout(4, 3, 2, "bf16", [["a.weight"], ["norm.weight"]])


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"state\.json: cannot be read: No such file"):
        read_layout(tmp_path)
    (tmp_path / "state.json").write_text("{")
    with pytest.raises(UserError, match=r"state\.json: is damaged"):
        read_layout(tmp_path)
    for state in ({"step": 3}, {"engine": {}}, {"engine": 3}):
        (tmp_path / "state.json").write_text(json.dumps(state))
        with pytest.raises(UserError, match=r"state\.json: written by another version, as it lacks"):
            read_layout(tmp_path)
