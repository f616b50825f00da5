"""Partial outputs: what they keep and when they may be continued. The complete output appears at once."""

import json
from pathlib import Path

import pytest

from mdmscale.system.errors import UserError
from mdmscale.system.partial_output import PartialOutput

RECIPE = {"seed": 1, "length": 8}


def test_lines_of_all_ranks_are_put_in_order(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    first, second = (PartialOutput(output, RECIPE, rank) for rank in (0, 1))
    first.begin(overwrite=False)
    first.append({(0, 1): {"n": 2}, (1, 0): {"n": 3}})
    second.append({(0, 0): {"n": 1}})
    second.append({(1, 1): {"n": "ä"}})
    assert set(first.finished()) == {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert not output.exists()
    assert first.publish() == 4
    assert [json.loads(line)["n"] for line in output.read_text().splitlines()] == [1, 2, 3, "ä"]
    assert [file.name for file in tmp_path.iterdir()] == ["out.jsonl"]


def test_a_torn_last_line_is_sampled_again(tmp_path: Path) -> None:
    partial = PartialOutput(tmp_path / "out.jsonl", RECIPE)
    partial.append({(0, 0): {"n": 1}, (0, 1): {"n": 2}})
    content = partial.file.read_bytes()
    partial.file.write_bytes(content[:-4])
    partial.begin(overwrite=False)
    assert set(partial.finished()) == {(0, 0)}
    partial.append({(0, 1): {"n": 2}})
    assert partial.finished() == {(0, 0): {"n": 1}, (0, 1): {"n": 2}}
    partial.file.write_bytes(content[:5])  # not even the recipe is whole
    partial.begin(overwrite=False)
    partial.append({(0, 0): {"n": 1}})
    assert set(partial.finished()) == {(0, 0)}


def test_another_recipe_is_refused(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    PartialOutput(output, RECIPE, 1).append({(0, 0): {"n": 1}})
    other = PartialOutput(output, {**RECIPE, "seed": 2})
    with pytest.raises(UserError, match=r"partial-1: was begun with seed = 1, now 2; give the same again"):
        other.begin(overwrite=False)
    other.begin(overwrite=True)
    assert other.finished() == {}


def test_an_existing_output_is_kept(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    output.write_text("kept")
    with pytest.raises(UserError, match="exists already; choose another, or give --overwrite"):
        PartialOutput(output, RECIPE).begin(overwrite=False)
    assert output.read_text() == "kept"
    with pytest.raises(UserError, match=r"there is no folder .*missing; make it first"):
        PartialOutput(tmp_path / "missing" / "out.jsonl", RECIPE).begin(overwrite=False)


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    partial = PartialOutput(tmp_path / "out.jsonl", RECIPE)
    partial.append({(0, 0): {"n": 1}})
    partial.file.write_text(partial.file.read_text() + "not json\n")
    with pytest.raises(UserError, match="partial-0: is damaged"):
        partial.begin(overwrite=False)
