"""A mask token that is an ordinary word: its texts are refused, left out, or spelled with other tokens."""

import json
from pathlib import Path

import pytest
from models.tiny_tokenizers import metaspace_tokenizer, ordinary_mask_tokenizer, word_tokenizer

from mdmscale.models.mask_spelling import without_mask
from mdmscale.system.errors import UserError

TEXT = "for step in range: step step"


def encode(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids


@pytest.mark.parametrize("make", [ordinary_mask_tokenizer, metaspace_tokenizer])
def test_other_tokens_spell_the_mask(make) -> None:
    tokenizer = make()
    ids = encode(tokenizer, TEXT)
    assert ids.count(tokenizer.mask_token_id) >= 2  # or this test would show nothing
    (spelled,) = without_mask([ids], tokenizer, "reencode", "x")
    assert tokenizer.mask_token_id not in spelled
    assert tokenizer.decode(spelled) == tokenizer.decode(ids)


def test_each_piece_is_spelled_by_itself() -> None:
    tokenizer = ordinary_mask_tokenizer()
    mask = tokenizer.mask_token_id
    prompt, response = without_mask([[5, mask], [mask, 6]], tokenizer, "reencode", "x")
    assert (prompt[0], response[-1]) == (5, 6)
    assert prompt[1:] == response[:-1] and mask not in prompt


def test_the_rules() -> None:
    tokenizer = ordinary_mask_tokenizer()
    mask = tokenizer.mask_token_id
    problem = rf"a\.jsonl:3: holds the mask token \('.*', id {mask}\) as 2 of its 5 tokens.* --mask-in-text"
    with pytest.raises(UserError, match=problem):
        without_mask([[5, mask], [mask, 6, 7]], tokenizer, "error", "a.jsonl:3")
    assert without_mask([[5, mask]], tokenizer, "drop", "x") is None
    for rule in ("error", "drop", "reencode"):
        assert without_mask([[5], [6]], tokenizer, rule, "x") == [[5], [6]]


def test_a_word_that_nothing_spells_is_left_out() -> None:
    tokenizer = word_tokenizer({"</s>": 0, "a": 1, "b": 2}, mask_token="a")
    assert encode(tokenizer, "a b") == [1, 2]
    assert without_mask([[1, 2]], tokenizer, "reencode", "x") is None


def test_a_spelling_that_decodes_differently_is_not_used() -> None:
    """In a vocabulary of words, "ab" is not "a" and "b": they are decoded with a space between."""
    tokenizer = word_tokenizer({"</s>": 0, "a": 1, "b": 2, "ab": 3}, mask_token="ab")
    assert without_mask([[3]], tokenizer, "reencode", "x") is None


def test_a_special_mask_is_in_no_text(corpus: Path) -> None:
    from mdmscale.models.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(corpus / "tokenizer")
    ids = encode(tokenizer, json.dumps({"text": f"a {tokenizer.mask_token} b"}))
    assert without_mask([ids], tokenizer, "error", "x") == [ids]
