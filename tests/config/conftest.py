"""A small complete config file, and a check of the problems that loading reports."""

from pathlib import Path

import pytest

from mdmscale.config.loading import load_config
from mdmscale.system.errors import UserError

COMPLETE = """\
run: {name: test}
model: {tokenizer: tok, hidden_size: 64, num_hidden_layers: 2, num_attention_heads: 4}
data: {kind: tokens, path: data/x, sequence_length: 64}
train: {steps: 10, global_batch_size: 8, micro_batch_size: 2}
optimizer: {lr: 1e-4}
"""


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(COMPLETE)
    return path


def problems(path: Path, *overrides: str) -> list[str]:
    """The lines of the error that loading raises, without the file's name and the overrides beside it."""
    with pytest.raises(UserError) as caught:
        load_config(path, list(overrides))
    assert all(problem.startswith((f"{path}", "override ")) for problem in caught.value.problems)
    return [_without_origin(problem, path, overrides) for problem in caught.value.problems]


def _without_origin(problem: str, path: Path, overrides: tuple[str, ...]) -> str:
    if problem.startswith("override "):
        return problem
    problem = problem.removeprefix(str(path)).removeprefix(" with")
    for override in overrides:
        problem = problem.removeprefix(f" {override}")
    return problem.removeprefix(": ")
