"""The mask token of an imported model: how it is chosen, added to the tokenizer, and embedded."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conversion.folders import (
    DREAM,
    Weights,
    assert_same_bytes,
    dream_shapes,
    make_arm,
    make_tokenizer,
    random_weights,
    read_weights,
    write_folder,
)
from transformers import AutoModelForCausalLM, AutoTokenizer

from mdmscale.conversion.exporting import ExportOptions, export_folder
from mdmscale.conversion.importing import ImportOptions, import_folder
from mdmscale.system.errors import UserError

RESERVED = ("<|begin_of_text|>", "<|reserved_special_token_0|>", "<|reserved_special_token_1|>")
ROWS = ("model.embed_tokens.weight", "lm_head.weight")


def imported(source: Path, **options: Any) -> tuple[int, Any, Weights]:
    """The imported model's mask token id, tokenizer and weights."""
    target = source.with_name("ours")
    import_folder(source, target, ImportOptions(**options))
    mask = json.loads((target / "config.json").read_text())["mdm"]["mask_token_id"]
    return mask, AutoTokenizer.from_pretrained(target), read_weights(target)


def test_an_added_token_has_the_mean_row_among_padded_ones(tmp_path: Path) -> None:
    source = make_arm(tmp_path / "arm", "llama")
    before = read_weights(source)
    mask, tokenizer, after = imported(source)
    assert mask == 100 == tokenizer.mask_token_id
    assert tokenizer.encode("word5 <|mask|>") == [5, 100]
    for name in ROWS:
        assert after[name].shape == (128, 32)
        torch.testing.assert_close(after[name][100:], before[name].mean(0).expand(28, -1))
        assert torch.equal(after[name][:100], before[name])
    assert_same_bytes(
        {name: tensor for name, tensor in after.items() if name not in ROWS},
        {name: tensor for name, tensor in before.items() if name not in ROWS},
    )


def test_a_reserved_token_is_preferred(tmp_path: Path) -> None:
    source = make_arm(tmp_path / "arm", "llama")
    make_tokenizer(source, reserved=RESERVED)
    config = json.loads((source / "tokenizer_config.json").read_text())
    (source / "tokenizer_config.json").write_text(
        json.dumps({**config, "chat_template": "<|reserved_special_token_0|>{{ messages }}"})
    )
    before = read_weights(source)
    mask, tokenizer, after = imported(source)
    assert mask == 99 == tokenizer.mask_token_id, "the first one is in use in the chat template"
    for name in ROWS:
        torch.testing.assert_close(after[name][99], before[name].mean(0))
        assert torch.equal(after[name][:99], before[name][:99])
    export_folder(tmp_path / "ours", tmp_path / "back", ExportOptions(to="arm"))
    assert AutoTokenizer.from_pretrained(tmp_path / "back").get_vocab() == tokenizer.get_vocab()


def test_rows_to_spare_take_the_new_token(tmp_path: Path) -> None:
    """Qwen has more embeddings than tokens, so nothing is resized and only the mask token's row is set."""
    source = make_arm(tmp_path / "arm", "qwen2", vocab_size=192)
    before = read_weights(source)
    mask, tokenizer, after = imported(source)
    assert mask == 100 == tokenizer.mask_token_id
    for name in ROWS:
        torch.testing.assert_close(after[name][100], before[name][:100].mean(0))
        assert torch.equal(after[name][101:], before[name][101:])


@pytest.mark.parametrize("asked", ["7", "word7"])
def test_a_trained_token_keeps_its_row(tmp_path: Path, asked: str) -> None:
    source = make_arm(tmp_path / "arm", "llama")
    mask, tokenizer, after = imported(source, mask_token=asked)
    assert mask == 7 == tokenizer.mask_token_id
    assert_same_bytes(after, read_weights(source))


def test_a_text_that_no_token_has_is_added(tmp_path: Path) -> None:
    mask, tokenizer, _ = imported(make_arm(tmp_path / "arm", "llama"), mask_token="[MASK]")
    assert (mask, tokenizer.mask_token) == (100, "[MASK]")


def test_dream_tokenizers_need_no_code(tmp_path: Path) -> None:
    """Dream uses Qwen2's tokenizer through a class of its own, whose code is in the folder."""
    source = write_folder(tmp_path / "dream", DREAM, random_weights(dream_shapes(DREAM)))
    vocab = {chr(0x100 + number): number for number in range(97)}
    (source / "vocab.json").write_text(json.dumps(vocab))
    (source / "merges.txt").write_text("#version: 0.2\n")
    special = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    added = {"97": {"content": "<|endoftext|>", **special}, "98": {"content": "<|mask|>", **special}}
    config = {
        "tokenizer_class": "DreamTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]},
        "added_tokens_decoder": added,
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
    }
    (source / "tokenizer_config.json").write_text(json.dumps(config))
    (source / "tokenization_dream.py").write_text("raise RuntimeError('was run')\n")
    mask, tokenizer, _ = imported(source)
    assert mask == 98 == tokenizer.convert_tokens_to_ids("<|mask|>")
    assert not list((tmp_path / "ours").glob("*.py"))
    (source / "vocab.json").write_text(json.dumps({"a": 0}))
    with pytest.raises(UserError, match="has the id 97, but 1 in the opened tokenizer"):
        import_folder(source, tmp_path / "again", ImportOptions())


def test_mistakes_are_named(tmp_path: Path) -> None:
    source = make_arm(tmp_path / "arm", "llama")
    with pytest.raises(
        UserError, match="mask token 100: the model has only 100 embeddings; see --mask-token"
    ):
        import_folder(source, tmp_path / "ours", ImportOptions(mask_token="100"))
    (source / "tokenizer.json").unlink()
    for asked in (None, "word7"):
        with pytest.raises(UserError, match=r"--mask-token.*give an id, as the folder has no tokenizer"):
            import_folder(source, tmp_path / "ours", ImportOptions(mask_token=asked))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["arm"]


def test_the_first_loss_of_an_imported_arm_is_sane(tmp_path: Path) -> None:
    """With the mean row the loss is near that without masks; with a random row it is far off."""
    source = make_arm(tmp_path / "arm", "llama")
    mask, _, _ = imported(source)
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval()
    loss = first_loss(model, mask)
    unmasked = first_loss(model, mask, mask_rate=0.0)
    assert abs(loss - unmasked) < 1.5, (loss, unmasked)
    with torch.no_grad():
        for embedding in (model.get_input_embeddings(), model.get_output_embeddings()):
            embedding.weight[mask] = torch.randn(32, generator=torch.Generator().manual_seed(0)) * 5
    assert first_loss(model, mask) > unmasked + 5


def first_loss(model: Any, mask: int, mask_rate: float = 0.7) -> float:
    """The mean next-token cross-entropy when a share of the inputs is masked."""
    ids = torch.randint(2, 99, (8, 16), generator=torch.Generator().manual_seed(0))
    masked = torch.rand(ids.shape, generator=torch.Generator().manual_seed(1)) < mask_rate
    with torch.no_grad():
        logits = model(torch.where(masked, mask, ids)).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).item()
