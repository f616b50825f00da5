"""A run opens only data that were made with its tokenizer."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mdmscale.config.run import RunConfig
from mdmscale.data.tokenizer_record import record_tokenizer
from mdmscale.models.tokenizer import load_tokenizer
from mdmscale.parallel.ranks import Ranks
from mdmscale.system.errors import UserError
from mdmscale.training.setup import set_up


def test_data_of_another_tokenizer_are_refused_before_anything_is_written(
    tiny: dict[str, Any], corpus: Path, tmp_path: Path, ranks: Ranks
) -> None:
    shutil.copytree(corpus, tmp_path / "data")
    tiny["data"]["path"] = str(tmp_path / "data")
    recorded = {"tokenizer": "theirs"} | record_tokenizer(load_tokenizer(corpus / "tokenizer"))
    path = tmp_path / "data" / "dataset.json"
    path.write_text(json.dumps(recorded))
    set_up(RunConfig.model_validate(tiny), ranks)
    shutil.rmtree(tmp_path / "runs")

    recorded["tokenizer_identity"]["token_ids"] = "0" * 16
    path.write_text(json.dumps(recorded))
    with pytest.raises(UserError) as refused:
        set_up(RunConfig.model_validate(tiny), ranks)
    (problem,) = refused.value.problems
    for part in (str(path), "'theirs'", f"'{corpus / 'tokenizer'}', has other token ids", "--tokenizer"):
        assert part in problem
    assert not (tmp_path / "runs").exists()
