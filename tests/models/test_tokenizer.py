"""Tokenizers open as their own files say, whatever the model in the same folder."""

import json
import shutil
from pathlib import Path

import pytest
from models.tiny_tokenizers import gap_tokenizer

from mdmscale.models.tokenizer import load_tokenizer, num_token_ids
from mdmscale.system.errors import UserError


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3"])
def test_a_tokenizer_opens_beside_a_models_config(corpus: Path, tmp_path: Path, model_type: str) -> None:
    """transformers rebuilds some tokenizers according to the model's type, which would lose spaces."""
    folder = tmp_path / "model"
    shutil.copytree(corpus / "tokenizer", folder)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    text = "    x = 1\n"
    expected, tokenizer = load_tokenizer(corpus / "tokenizer"), load_tokenizer(folder)
    assert tokenizer(text).input_ids == expected(text).input_ids
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tokenizer = '.*nowhere': no such folder"):
        load_tokenizer(str(tmp_path / "nowhere"))


def test_ids_may_have_gaps() -> None:
    tokenizer = gap_tokenizer(600, 70_000)
    assert (len(tokenizer), num_token_ids(tokenizer)) == (600, 70_001)
    tokenizer.add_tokens("new")  # which takes an id in the gap
    assert num_token_ids(tokenizer) == 70_001


def test_without_gaps_the_ids_are_as_many_as_the_tokens(corpus: Path) -> None:
    tokenizer = load_tokenizer(corpus / "tokenizer")
    assert num_token_ids(tokenizer) == len(tokenizer)
    tokenizer.add_tokens("new")
    assert num_token_ids(tokenizer) == len(tokenizer)


def test_a_folder_without_a_tokenizer_names_the_one_in_it(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"no tokenizer in this folder .*; give {corpus}/tokenizer$"):
        load_tokenizer(corpus, "model.tokenizer")
    with pytest.raises(UserError, match=r"--tokenizer .*: no tokenizer in this folder"):
        load_tokenizer(tmp_path, "--tokenizer")


def test_a_damaged_tokenizer_is_named(corpus: Path, tmp_path: Path) -> None:
    shutil.copytree(corpus / "tokenizer", tmp_path / "tokenizer")
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="no tokenizer there, or a damaged one: "):
        load_tokenizer(tmp_path / "tokenizer")
