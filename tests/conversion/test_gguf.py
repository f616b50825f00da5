"""GGUF files become the model that they were made from, or are refused by name."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import sentencepiece
import torch
from conversion.gguf_files import (
    SPECIALS,
    TEMPLATE,
    TEXT,
    byte_level_fields,
    byte_level_tokenizer,
    make_model,
    split_digits,
    write_gguf,
)
from gguf import TokenType
from safetensors.torch import load_file
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from mdmscale.conversion.convert_command import main
from mdmscale.models.tokenizer import load_tokenizer
from mdmscale.system.errors import UserError

PROBES = [
    "Line 7:\n\n12. the  cat",
    " leading, and  3  spaces\n  34",
    "don't DON'T é 漢字 🙂\t\tend\n",
    "e\u0301 12345 x",
    "a<|start|>user\nb<|end|>",
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return byte_level_tokenizer(split_digits())


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> PreTrainedModel:
    return make_model("llama", tokenizer.get_vocab_size(), tie_word_embeddings=True)


@pytest.fixture(scope="module")
def good(tokenizer: Tokenizer, model: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "good.gguf"
    return write_gguf(path, model, byte_level_fields(tokenizer, "smollm"))


def imported(source: Path, folder: Path, *options: str) -> Path:
    assert main(["import", str(source), str(folder), *options]) == 0
    return folder


def causal_logits(model: PreTrainedModel, token_ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=token_ids).logits


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("llama", {"tie_word_embeddings": True}),
        ("llama", {"tie_word_embeddings": False, "rope_parameters": {**LLAMA3}}),
        ("qwen2", {"tie_word_embeddings": False}),
        ("qwen3", {"tie_word_embeddings": True}),
    ],
)
def test_the_import_computes_what_the_original_does(
    tokenizer: Tokenizer, tmp_path: Path, model_type: str, changes: dict[str, Any]
) -> None:
    original = make_model(model_type, tokenizer.get_vocab_size(), **changes)
    tensors = {}
    if "rope_parameters" in changes:
        rotary = original.model.rotary_emb
        plain = 500000.0 ** (-torch.arange(4) / 4)
        tensors["rope_freqs.weight"] = (plain / rotary.inv_freq).numpy()  # 1 up to 8
        assert tensors["rope_freqs.weight"].max() == pytest.approx(8)
    path = write_gguf(tmp_path / "m.gguf", original, byte_level_fields(tokenizer, "smollm"), tensors=tensors)
    ours = imported(path, tmp_path / "ours")
    exported = tmp_path / "arm"
    assert main(["export", str(ours), str(exported), "--to", "arm"]) == 0
    token_ids = torch.arange(60)[None] * 5 % tokenizer.get_vocab_size()
    for folder in (ours, exported):
        opened = AutoModelForCausalLM.from_pretrained(folder, is_causal=True)
        found = causal_logits(opened, token_ids)[..., : tokenizer.get_vocab_size()]
        torch.testing.assert_close(found, causal_logits(original, token_ids), rtol=1e-4, atol=1e-4)
    config = json.loads((ours / "config.json").read_text())
    assert config["is_causal"] is False and config["mdm"]["logit_shift"] is True
    assert config["rope_parameters"] == original.config.rope_parameters
    assert config["tie_word_embeddings"] is changes["tie_word_embeddings"]


@pytest.mark.parametrize("dtype", ["keep", "bf16"])
def test_quantised_weights_keep_every_value(
    tokenizer: Tokenizer,
    model: PreTrainedModel,
    tmp_path: Path,
    dtype: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = write_gguf(tmp_path / "q.gguf", model, byte_level_fields(tokenizer, "smollm"), quantised=True)
    weights = load_file(imported(path, tmp_path / "ours", "--dtype", dtype) / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    kind = gguf.GGMLQuantizationType.Q8_0
    plain = gguf.dequantize(gguf.quantize(model.get_parameter(name).detach().numpy(), kind), kind)
    expected = torch.from_numpy(plain).to({"keep": torch.float32, "bf16": torch.bfloat16}[dtype])
    assert weights[name].dtype == expected.dtype and torch.equal(weights[name], expected)
    assert "Q8_0" in capsys.readouterr().out


def test_inspecting_a_file_and_its_folder(
    good: Path, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    found = []
    for path in (good, good.parent):
        assert main(["inspect", str(path), "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert found[0] == found[1]
    assert (found[0]["family"], found[0]["architecture"], found[0]["tied"]) == ("arm", "llama", True)
    assert (found[0]["num_layers"], found[0]["vocab_size"]) == (2, tokenizer.get_vocab_size())


def split(pattern: str) -> Any:
    words = pre_tokenizers.Split(Regex(pattern), "isolated")
    return pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


# From the tokenizer.json that Llama 3 and Qwen2 are published with.
LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
RULES = {
    "gpt-2": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": split_digits,
    "llama-bpe": lambda: split(LLAMA3_WORDS),
    "qwen2": lambda: split(LLAMA3_WORDS.replace("{1,3}", "")),
}


@pytest.mark.parametrize("name", RULES)
def test_text_becomes_the_tokens_of_the_original_tokenizer(name: str, tmp_path: Path) -> None:
    original = byte_level_tokenizer(RULES[name]())
    if name == "qwen2":
        original.normalizer = normalizers.NFC()
    num_tokens = original.get_vocab_size()
    whole_word = original.decode([num_tokens - 1])
    if name == "llama-bpe":  # a token that no merges lead to, as Llama 3 has
        content = json.loads(original.to_str())
        content["model"]["merges"].pop()
        content["model"]["ignore_merges"] = True
        original = Tokenizer.from_str(json.dumps(content))
        assert original.encode(whole_word).ids == [num_tokens - 1]
    model = make_model("llama", num_tokens + 3, tie_word_embeddings=True)
    path = write_gguf(tmp_path / "m.gguf", model, byte_level_fields(original, name, num_unused=3))
    opened = load_tokenizer(imported(path, tmp_path / "ours"))
    for text in (*PROBES, whole_word):
        found = opened.encode(text, add_special_tokens=False)
        assert found == original.encode(text).ids, text
    assert [opened.encode(text) for text in SPECIALS] == [[0], [1], [2]]
    named = (opened.unk_token_id, opened.bos_token_id, opened.eos_token_id, opened.pad_token_id)
    assert named == (0, 1, 2, 0)
    # The names of spare rows are no tokens, so the mask token takes the first of these rows.
    assert (len(opened), opened.mask_token_id) == (num_tokens + 1, num_tokens)
    messages = [{"role": "user", "content": "the cat"}]
    rendered = opened.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert rendered == "<|start|>user\nthe cat<|end|>\n<|start|>assistant\n"
    assert opened.chat_template == TEMPLATE


@pytest.mark.parametrize("adds_space", [True, False])
def test_text_becomes_the_tokens_of_sentencepiece(tmp_path: Path, adds_space: bool) -> None:
    (tmp_path / "text").write_text("".join(TEXT))
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text"),
        model_prefix=str(tmp_path / "sp"),
        vocab_size=340,
        model_type="bpe",
        byte_fallback=True,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        add_dummy_prefix=adds_space,
        control_symbols=["<|end|>"],
        minloglevel=2,
    )
    original = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "sp.model"))
    size = original.get_piece_size()
    kinds = {0: TokenType.UNKNOWN, 1: TokenType.CONTROL, 2: TokenType.CONTROL, 3: TokenType.CONTROL}
    bytes_kind = {number: TokenType.BYTE for number in range(size) if original.is_byte(number)}
    fields = {
        "model": "llama",
        "tokens": [original.id_to_piece(number) for number in range(size)],
        "scores": [original.get_score(number) for number in range(size)],
        "token_type": [int({**kinds, **bytes_kind}.get(number, TokenType.NORMAL)) for number in range(size)],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
        "add_space_prefix": adds_space,
    }
    path = write_gguf(tmp_path / "m.gguf", make_model("llama", size), fields)
    opened = load_tokenizer(imported(path, tmp_path / "ours"))
    for text in PROBES[:-1]:
        assert opened.encode(text, add_special_tokens=False) == original.encode(text), text
        assert opened.decode(original.encode(text)) == text
    assert opened.encode("the cat") == [1, *original.encode("the cat")], "llama.cpp's default is a BOS"
    assert opened.encode("<|end|>", add_special_tokens=False) == [3]


def test_files_beside_the_gguf_are_not_mixed_in(good: Path, tmp_path: Path) -> None:
    source = tmp_path / "downloads"
    source.mkdir()
    shutil.copy(good, source)
    (source / "tokenizer_config.json").write_text('{"eos_token": "<|start|>", "chat_template": "none"}')
    (source / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (source / "config.json").write_text('{"model_type": "qwen2", "hidden_size": 7}')
    opened = load_tokenizer(imported(source, tmp_path / "ours"))
    assert (opened.eos_token, opened.chat_template) == ("<|end|>", TEMPLATE)


def test_a_tokenizer_without_rules_can_be_given_beside_the_file(
    tokenizer: Tokenizer, model: PreTrainedModel, tmp_path: Path
) -> None:
    source = tmp_path / "downloads"
    source.mkdir()
    path = write_gguf(source / "m.gguf", model, byte_level_fields(tokenizer, "nobody-knows"))
    with pytest.raises(UserError, match=r"m\.gguf: tokenizer\.ggml\.pre = 'nobody-knows'.*tokenizer\.json"):
        main(["import", str(path), str(tmp_path / "ours")])
    assert not (tmp_path / "ours").exists()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>").save_pretrained(source)
    opened = load_tokenizer(imported(source, tmp_path / "ours"))
    assert opened.encode(PROBES[0]) == tokenizer.encode(PROBES[0]).ids


@pytest.mark.parametrize(
    ("more", "tensors", "message"),
    [
        ({"general.architecture": "gemma3"}, {}, r"general\.architecture = 'gemma3' is not supported"),
        ({"llama.rope.scaling.factor": 4.0}, {}, r"llama\.rope\.scaling\.factor = 4\.0 would be lost"),
        ({"llama.expert_count": 8}, {}, r"llama\.expert_count = 8 would be lost"),
        ({"llama.block_count": 3}, {}, r"lacks 9 tensors of the model, such as blk\.2\."),
        ({"llama.feed_forward_length": 96}, {}, r"blk\.0\.ffn_\w+\.weight has the shape .*64.*needs .*96"),
        ({"split.count": 2}, {}, r"is one of 2 parts"),
        ({}, {"blk.0.attn_q.bias": 32}, r"no place for 1 tensors of this file, such as blk\.0\.attn_q\.bias"),
        ({}, {"rope_freqs.weight": 4}, r"rope_freqs\.weight stretches RoPE in an unknown way"),
        ({"tokenizer.ggml.pre": None}, {}, r"tokenizer\.ggml\.pre = None"),
        ({"tokenizer.ggml.model": "bert"}, {}, "its tokenizer cannot be read"),
        ({"tokenizer.ggml.tokens": None}, {}, "has no tokenizer"),
    ],
)
def test_what_would_be_lost_is_refused(
    tokenizer: Tokenizer,
    model: PreTrainedModel,
    tmp_path: Path,
    more: dict[str, Any],
    tensors: dict[str, int],
    message: str,
) -> None:
    further = {name: np.linspace(1, 5, size, dtype=np.float32) for name, size in tensors.items()}
    path = write_gguf(
        tmp_path / "bad.gguf", model, byte_level_fields(tokenizer, "smollm"), more=more, tensors=further
    )
    with pytest.raises(UserError, match=rf"bad\.gguf: .*{message}") as caught:
        main(["import", str(path), str(tmp_path / "ours")])
    assert "\n" not in str(caught.value)
    assert [each.name for each in tmp_path.iterdir()] == ["bad.gguf"]


def test_words_that_say_that_a_feature_is_absent_are_no_reason_to_refuse(
    tokenizer: Tokenizer, model: PreTrainedModel, tmp_path: Path
) -> None:
    more = {"llama.rope.scaling.type": "none", "llama.expert_count": 0, "general.name": "Tiny"}
    fields = byte_level_fields(tokenizer, "smollm")
    imported(write_gguf(tmp_path / "m.gguf", model, fields, more=more), tmp_path / "ours")


def test_a_truncated_file_is_refused_wherever_it_ends(good: Path, tmp_path: Path) -> None:
    whole = good.read_bytes()
    path = tmp_path / "cut.gguf"
    for size in (2, 4, 20, 100, 3000, len(whole) // 3, len(whole) - 100):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"cut\.gguf: is (damaged, truncated or|no GGUF file)") as caught:
            main(["inspect", str(path)])
        assert "\n" not in str(caught.value)


def test_other_files_are_refused(good: Path, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"PK\x03\x04 not a model" * 9)
    (tmp_path / "model.bin").write_bytes(b"GGUF")
    two = tmp_path / "two"
    two.mkdir()
    for name in ("a.gguf", "b.gguf"):
        shutil.copy(good, two / name)
    for source, message in [
        (tmp_path / "model.gguf", r"model\.gguf: is no GGUF file"),
        (tmp_path / "model.bin", r"model\.bin: is a file but no \.gguf"),
        (two, r"two: holds a\.gguf, b\.gguf; give one"),
        (tmp_path / "absent.gguf", r"absent\.gguf: no such file$"),
    ]:
        for command in (["inspect", str(source)], ["import", str(source), str(tmp_path / "ours")]):
            with pytest.raises(UserError, match=message):
                main(command)


def test_the_missing_package_is_named(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match=r"good\.gguf: .*pip install 'mdmscale\[gguf\]'"):
        main(["import", str(good), str(tmp_path / "ours")])
