"""state.json: components by name, unknown components are refused, and the formats before are read."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mdmscale.engine.state import EngineLayout, read_layout
from mdmscale.system.errors import UserError
from mdmscale.training.state import TrainingState

LAYOUT = EngineLayout(2, 3, 1, "fp32", [["a.weight"], ["a.bias"]])
STATE = TrainingState(
    step=10,
    consumed_samples=80,
    consumed_tokens=1000,
    seed=3,
    global_batch_size=8,
    lora=None,
    data_fingerprint="f",
    data_description="d",
    engine=LAYOUT,
    components={"p_pots": {"x": 0.1 + 0.2}, "baseline": {"y": [1e-300]}},
    model={"mask_token_id": 1, "config": {"hidden_size": 8}},
    config={"optimizer": {"lr": 0.1}},
    scores={"eval_loss": 2.5},
)
FORMAT_1: dict[str, Any] = {
    "step": 10,
    "consumed_samples": 80,
    "consumed_tokens": 1000,
    "world_size": 2,
    "zero_stage": 3,
    "tensor": 1,
    "dtype": "fp32",
    "seed": 3,
    "global_batch_size": 8,
    "lora": None,
    "data_fingerprint": "f",
    "data_description": "d",
    "t_sampler": "p_pots",
    "density": {"edges": [0.0, 1.0], "density": [1.0]},
    "baseline": {"num_steps": 7},
    "cell_sums": [[1.0]],
    "parameter_groups": [["a.weight"], ["a.bias"]],
}


FORMAT_2: dict[str, Any] = {
    "format": 2,
    **{
        name: value
        for name, value in vars(STATE).items()
        if name not in ("engine", "model", "config", "scores")
    },
    "engine": vars(LAYOUT),
}


class Part:
    """A component that stores any state that it loads."""

    def __init__(self) -> None:
        self.state: dict[str, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        return self.state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if "broken" in state:
            raise KeyError("broken")
        self.state = state


def test_it_survives_the_disk_bit_for_bit(tmp_path: Path) -> None:
    STATE.write(tmp_path)
    assert TrainingState.read(tmp_path) == STATE
    assert read_layout(tmp_path) == LAYOUT


def test_the_second_format_is_read(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text(json.dumps(FORMAT_2))
    assert TrainingState.read(tmp_path) == replace(STATE, model=None, config=None, scores={})


def test_the_first_format_is_read(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text(json.dumps(FORMAT_1))
    state = TrainingState.read(tmp_path)
    assert (state.step, state.consumed_tokens, state.engine) == (10, 1000, LAYOUT)
    assert state.components["baseline"] == FORMAT_1["baseline"]
    expected = {"density": FORMAT_1["density"], "cell_sums": FORMAT_1["cell_sums"], "is_on": True}
    assert state.components["p_pots"] == expected
    assert read_layout(tmp_path) == LAYOUT


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is damaged"),
        (json.dumps({**FORMAT_1, "unheard_of": 1}), "another version.*unheard_of"),
        (
            json.dumps({key: FORMAT_1[key] for key in FORMAT_1 if key != "density"}),
            "another version.*density",
        ),
        (json.dumps({"format": 9}), "has format 9; this version reads up to 4"),
        ("[]", "holds no JSON object"),
    ],
)
def test_what_is_no_state_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "state.json").write_text(content)
    with pytest.raises(UserError, match=message):
        TrainingState.read(tmp_path)


def test_every_component_gets_its_own_state_and_new_ones_are_named() -> None:
    parts = {name: Part() for name in ("p_pots", "baseline", "weight_ema")}
    assert STATE.load_into(parts, Path("checkpoint")) == ["weight_ema"]
    assert parts["p_pots"].state == STATE.components["p_pots"]
    assert parts["baseline"].state == STATE.components["baseline"]


def test_a_component_that_cannot_be_placed_is_refused() -> None:
    with pytest.raises(UserError, match="'baseline', which this version does not have"):
        STATE.load_into({"p_pots": Part()}, Path("checkpoint"))


def test_a_component_that_does_not_fit_is_refused_by_name() -> None:
    broken = TrainingState(**{**vars(STATE), "components": {"p_pots": {"broken": 1}}})
    with pytest.raises(UserError, match="the state of 'p_pots' cannot be loaded"):
        broken.load_into({"p_pots": Part()}, Path("checkpoint"))
