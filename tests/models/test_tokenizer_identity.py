"""The identity of a tokenizer: what changes ids changes it, and how the tokenizer is stored does not."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from models.tiny_folder import EOS_TOKEN, make_tokenizer
from transformers import PreTrainedTokenizerFast

from mdmscale.models.tokenizer import load_tokenizer
from mdmscale.models.tokenizer_identity import identity_differences, tokenizer_identity

Json = dict[str, Any]
CONFIG = "tokenizer_config.json"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer folder without a mask token, with a special and an ordinary added token."""
    backend = make_tokenizer().backend_tokenizer
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=EOS_TOKEN)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|reserved_0|>"]})
    tokenizer.add_tokens(["<tool>"])
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    folder = tmp_path_factory.mktemp("plain")
    tokenizer.save_pretrained(folder)
    return folder


def edited(plain: Path, folder: Path, change: Callable[[Json], Any], name: str = "tokenizer.json") -> Any:
    """The tokenizer of a copy of `plain` in which `change` has edited a file."""
    for file in plain.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    content = json.loads((folder / name).read_text())
    change(content)
    (folder / name).write_text(json.dumps(content, indent=7))
    return load_tokenizer(folder)


def swap_merges(content: Json) -> None:
    merges = content["model"]["merges"]
    merges[0], merges[1] = merges[1], merges[0]


def swap_ids(content: Json) -> None:
    vocab = content["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]


def rename_added(content: Json) -> None:
    content["added_tokens"][-1]["content"] = "<tools>"


def add_space(content: Json) -> None:
    content["pre_tokenizer"]["add_prefix_space"] = True


def lower(content: Json) -> None:
    content["normalizer"] = {"type": "Lowercase"}


@pytest.mark.parametrize("change", [swap_merges, swap_ids, rename_added, add_space, lower])
def test_what_decides_ids_is_told_apart(plain: Path, tmp_path: Path, change: Any) -> None:
    recorded = tokenizer_identity(load_tokenizer(plain))
    other = edited(plain, tmp_path, change)
    assert identity_differences(recorded, other, with_template=True) == ["other token ids"]


def test_eos_tokens_around_a_text_and_the_template_are_told_apart(plain: Path, tmp_path: Path) -> None:
    recorded = tokenizer_identity(load_tokenizer(plain))
    other = edited(plain, tmp_path, lambda config: config.update(eos_token="<tool>"), CONFIG)
    assert identity_differences(recorded, other, True) == [f"EOS {other.eos_token_id} instead of 0"]

    def add_bos(content: Json) -> None:
        piece = {"SpecialToken": {"id": EOS_TOKEN, "type_id": 0}}
        special = {EOS_TOKEN: {"id": EOS_TOKEN, "ids": [0], "tokens": [EOS_TOKEN]}}
        single = [piece, {"Sequence": {"id": "A", "type_id": 0}}]
        pair = [*single, {"Sequence": {"id": "B", "type_id": 1}}]
        content["post_processor"] = {
            "type": "TemplateProcessing",
            "single": single,
            "pair": pair,
            "special_tokens": special,
        }

    other = edited(plain, tmp_path, add_bos)
    assert identity_differences(recorded, other, True) == ["tokens put around a text [0] instead of []"]
    other = load_tokenizer(plain)
    other.chat_template = "{{ messages[0]['content'] }} "
    assert identity_differences(recorded, other, with_template=True) == ["another chat template"]
    assert identity_differences(recorded, other, with_template=False) == []


def test_the_same_tokenizer_stored_in_another_way_is_the_same(plain: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(plain)
    recorded = tokenizer_identity(tokenizer)
    json.dumps(recorded)
    tokenizer.save_pretrained(tmp_path / "saved")
    assert tokenizer_identity(load_tokenizer(tmp_path / "saved")) == recorded

    def as_class(name: str) -> Any:
        return edited(plain, tmp_path, lambda config: config.update(tokenizer_class=name), CONFIG)

    for name in ("PreTrainedTokenizerFast", "TokenizersBackend"):
        assert tokenizer_identity(as_class(name)) == recorded
    # a class that adds a token of its own behind the others
    assert identity_differences(recorded, as_class("GPT2Tokenizer"), with_template=True) == []


def test_a_mask_token_changes_nothing(plain: Path) -> None:
    """Data stay valid, whether they are prepared before or after an import names or adds a mask token."""
    before = load_tokenizer(plain)
    recorded = tokenizer_identity(before)
    for text in ("<|mask|>", "<|reserved_0|>", "<tool>", "p"):
        after = load_tokenizer(plain)
        after.add_special_tokens({"mask_token": text})
        assert after.mask_token == text
        assert identity_differences(recorded, after, with_template=True) == [], text
        assert identity_differences(tokenizer_identity(after), before, with_template=True) == [], text


def test_fewer_tokens_than_the_record_are_another_tokenizer(plain: Path) -> None:
    larger = load_tokenizer(plain)
    larger.add_tokens(["<image>", "<sound>"])
    smaller = load_tokenizer(plain)
    assert identity_differences(tokenizer_identity(larger), smaller, True) == ["other token ids"]
    assert identity_differences(tokenizer_identity(smaller), larger, True) == []
