"""What a run's data.path may name, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from mdmscale.config.run import RunConfig
from mdmscale.data.source import SampleSource
from mdmscale.models.backbone import build_backbone
from mdmscale.parallel.ranks import Ranks
from mdmscale.system.errors import UserError
from mdmscale.training.run_data import open_run_data

ROWS = [{"prompt": f"{number}+1=", "response": str(number + 1)} for number in range(8)]


def open_data(values: dict[str, Any], folder: Path, ranks: Ranks) -> SampleSource:
    config = RunConfig.model_validate(values)
    return open_run_data(config, build_backbone(config.model, eps=1e-3, seed=0), folder, ranks)


def as_sft(tiny: dict[str, Any], *paths: Path) -> dict[str, Any]:
    data = {"kind": "sft", "path": [str(path) for path in paths], "sequence_length": 16, "held_out": 0}
    return {**tiny, "data": data}


@pytest.mark.parametrize("name", ["a.jsonl", "a.JSONL", "a.json", "a.csv"])
def test_a_run_encodes_prompts_and_responses_of_every_format(
    tiny: dict[str, Any], tmp_path: Path, ranks: Ranks, name: str
) -> None:
    lines = {
        ".jsonl": "".join(json.dumps(row) + "\n" for row in ROWS),
        ".json": json.dumps(ROWS),
        ".csv": "prompt,response\n" + "".join(f"{row['prompt']},{row['response']}\n" for row in ROWS),
    }
    path = tmp_path / name
    path.write_text(lines[path.suffix.lower()])
    source = open_data(as_sft(tiny, path), tmp_path / "run", ranks)
    assert source.num_train == len(ROWS)
    assert str(path) in source.description


def test_files_and_prepared_shards_are_not_mixed(
    tiny: dict[str, Any], tmp_path: Path, ranks: Ranks, corpus: Path
) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(ROWS[0]))
    with pytest.raises(UserError, match=r"data\.path: .* is no file of records, but others are"):
        open_data(as_sft(tiny, tmp_path / "a.jsonl", corpus), tmp_path / "run", ranks)


def test_a_mask_token_that_the_corpus_holds_is_refused(
    tiny: dict[str, Any], tmp_path: Path, ranks: Ranks
) -> None:
    """Such as DiffuLLaMA's, which is an ordinary word piece, in shards that another program has written."""
    values = {**tiny, "model": {**tiny["model"], "mask_token_id": 300}}
    with pytest.raises(UserError, match=r"holds the model's mask token \(id 300\)"):
        open_data(values, tmp_path / "run", ranks)
