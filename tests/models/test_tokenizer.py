import json

import pytest

from mdmscale.models import tokenizer as tokenizer_module
from mdmscale.models.tokenizer import load_tokenizer, train_tokenizer
from mdmscale.system.errors import UserError

AWKWARD = [
    "\tif x:\n\t\treturn\n",
    "    four\n        eight\n",
    "  \t mixed \n\n\n  ends in spaces   ",
    "a\r\nb\rc\n",
    "naïve 日本語 🎉 \u2581 \u00a0 \ufeff",
    "<0x41> <unk> </s> <|mask|>",
    "\x00\x1f\x7f",
    " ",
    "\n",
]


def test_every_text_comes_back_unchanged(tokenizer, texts):
    for text in texts + AWKWARD:
        ids = tokenizer(text, split_special_tokens=True).input_ids
        assert tokenizer.decode(ids) == text
        assert not {0, tokenizer.eos_token_id, tokenizer.mask_token_id} & set(ids)


def test_the_special_tokens(tokenizer):
    assert len(tokenizer) == 768
    assert tokenizer.mask_token == "<|mask|>"
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    assert tokenizer.bos_token_id is None
    assert tokenizer("x</s>").input_ids[-1] == tokenizer.eos_token_id
    assert tokenizer("x").input_ids == tokenizer("x", add_special_tokens=False).input_ids


def test_indentation_is_few_tokens_digits_and_newlines_are_one_each(tokenizer):
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("        return 127\n\n\tx").input_ids)
    assert tokens[0] in ("        ", "       ")
    assert tokens[-7:] == ["1", "2", "7", "\n", "\n", "\t", "x"]


def test_it_encodes_as_sentencepiece_does(texts, tmp_path):
    processor = tokenizer_module._train_sentencepiece(texts[:4], 512)
    vocab, merges = tokenizer_module._bpe_tables(processor)
    assert len(vocab) == 512 and len(set(merges)) == len(merges)
    train_tokenizer(texts[:4], 512, tmp_path)
    tokenizer = load_tokenizer(str(tmp_path))
    lines = [line for text in texts for line in text.split("\n")]
    same = sum(tokenizer(line).input_ids == processor.encode(line) for line in lines)
    # two splits of one piece may be tried in another order, which very rarely matters
    assert same >= 0.999 * len(lines)


def test_training_twice_gives_the_same_files(texts, tmp_path):
    for name in "ab":
        train_tokenizer(texts[:4], 512, tmp_path / name)
    assert (tmp_path / "a/tokenizer.json").read_bytes() == (tmp_path / "b/tokenizer.json").read_bytes()


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen3"])
def test_it_opens_beside_a_models_config(tokenizer, tmp_path, model_type):
    """transformers rebuilds some tokenizers by the model's type, which would lose spaces."""
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    text = "    x = 1\n"
    again = load_tokenizer(str(tmp_path))
    assert again(text).input_ids == tokenizer(text).input_ids
    assert again.decode(again(text).input_ids) == text


def test_a_vocabulary_that_does_not_suit_the_text(tmp_path):
    with pytest.raises(UserError, match="--train-tokenizer 5000: choose another size or give more text: "):
        train_tokenizer(["a short text"], 5000, tmp_path)


def test_a_missing_tokenizer_is_named(tmp_path):
    with pytest.raises(UserError, match=r"tokenizer '.*nowhere': no tokenizer folder or hub id"):
        load_tokenizer(str(tmp_path / "nowhere"))
