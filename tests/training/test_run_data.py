"""A run encodes its SFT lines as data.train_on and data.special_tokens say, once for each."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from models.chat_tokenizers import smollm2

from mdmscale.config.data import DataSection
from mdmscale.parallel.ranks import Ranks
from mdmscale.system.errors import UserError
from mdmscale.training.run_data import open_run_data

TURNS = [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "yo"},
    {"role": "user", "content": "2*3?"},
    {"role": "assistant", "content": "6"},
]


@pytest.fixture
def open_data(ranks: Ranks, tmp_path: Path) -> Any:
    """Open the lines as a run in tmp_path / "run" does."""
    tokenizer = smollm2()
    model = SimpleNamespace(config=SimpleNamespace(vocab_size=len(tokenizer)))
    backbone: Any = SimpleNamespace(model=model, tokenizer=tokenizer, mask_token_id=tokenizer.mask_token_id)
    lines = [{"messages": TURNS}] * 3 + [{"prompt": "<|im_start|>", "response": "a"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def open_(num_lines: int, **options: Any) -> list[str]:
        """The trained texts of the samples, in brackets, each once."""
        path = tmp_path / f"{num_lines}.jsonl"
        path.write_text("".join((tmp_path / "a.jsonl").read_text().splitlines(keepends=True)[-num_lines:]))
        data = DataSection(kind="sft", path=str(path), sequence_length=64, held_out=0.0, **options)
        config: Any = SimpleNamespace(data=data, run=SimpleNamespace(seed=0))
        source = open_run_data(config, backbone, tmp_path / "run", ranks)
        samples = [source.train_sample(index) for index in range(source.num_train)]
        return sorted({tokenizer.decode(sample.token_ids[sample.eligible]) for sample in samples})

    return open_


def test_the_turns_that_are_trained_are_those_of_the_config(open_data: Any, tmp_path: Path) -> None:
    rendered = {"last": "6<|im_end|>", "all": "yo<|im_end|>6<|im_end|>"}
    for train_on, text in rendered.items():
        assert open_data(4, train_on=train_on, special_tokens="text") == sorted([text, "a<|im_end|>"])
    assert len(list((tmp_path / "run").rglob("*.idx"))) == 2
    (marks,) = (tmp_path / "run").rglob("*.trained")
    assert marks.stat().st_size


def test_special_tokens_mean_what_the_config_says(open_data: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"1\.jsonl:1: the prompt has '<\|im_start\|>' written in it"):
        open_data(1)
    assert not list((tmp_path / "run").rglob("*.idx"))
    for meaning in ("read", "text"):
        assert open_data(1, special_tokens=meaning) == ["a<|im_end|>"]
    assert len(list((tmp_path / "run").rglob("*.idx"))) == 2
