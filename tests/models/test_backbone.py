import json
from pathlib import Path
from typing import Any

import pytest
import torch
from models.tiny_tokenizers import gap_tokenizer, word_tokenizer
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, PreTrainedTokenizerFast

from mdmscale.config.model import ModelSection
from mdmscale.models.backbone import Backbone, build_backbone, scratch_config
from mdmscale.models.mdm import MaskedDiffusionModel
from mdmscale.system.errors import UserError

FAMILIES = ["llama", "mistral", "qwen2", "qwen3"]


def section(corpus: Path, **values: Any) -> ModelSection:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    defaults = {"tokenizer": str(corpus / "tokenizer"), "dtype": "fp32", **sizes}
    return ModelSection(**{**defaults, **values})


def build(corpus: Path, **values: Any) -> Backbone:
    backbone = build_backbone(section(corpus, **values), eps=1e-3, seed=0)
    backbone.model.eval()
    return backbone


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("family", FAMILIES)
def test_first_position_sees_the_last_token(corpus: Path, family: str, padded: bool, attention: str) -> None:
    model = build(corpus, architecture=family, attention=attention).model
    ids = torch.arange(10, 18)[None].repeat(2, 1)
    ids[1, 5] = 99
    attention_mask = None
    if padded:
        attention_mask = torch.ones_like(ids)
        attention_mask[:, 6:] = 0
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=attention_mask).logits
    assert (logits[0, 0] - logits[1, 0]).abs().max() > 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_changes_nothing(corpus: Path, family: str) -> None:
    model = build(corpus, architecture=family).model
    ids = torch.arange(10, 18)[None]
    padded = torch.cat([ids, torch.full((1, 4), 7)], dim=1)
    attention_mask = torch.tensor([[1] * 8 + [0] * 4])
    with torch.no_grad():
        alone = model(input_ids=ids).logits
        beside = model(input_ids=padded, attention_mask=attention_mask).logits[:, :8]
    torch.testing.assert_close(alone, beside, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_export_opens_with_plain_transformers(corpus: Path, tmp_path: Path, family: str, tied: bool) -> None:
    backbone = build(corpus, architecture=family, tie_word_embeddings=tied, logit_shift=True)
    MaskedDiffusionModel(backbone.model, head_chunk_size=4)
    backbone.model.save_pretrained(tmp_path / "hf")
    backbone.tokenizer.save_pretrained(tmp_path / "hf")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    assert again.config.is_causal is False
    assert again.config.mdm == {
        "mask_token_id": backbone.mask_token_id,
        "logit_shift": True,
        "eps": 1e-3,
        "source": "scratch",
        "objective": "full",
    }
    ids = torch.arange(10, 18)[None]
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, backbone.model(ids).logits)
    assert AutoTokenizer.from_pretrained(tmp_path / "hf").mask_token_id == backbone.mask_token_id


def test_weights_follow_from_the_seed_alone(corpus: Path) -> None:
    before = torch.random.get_rng_state()
    first = build(corpus).model.lm_head.weight
    assert torch.equal(torch.random.get_rng_state(), before), "the global generator was touched"
    torch.manual_seed(99)
    assert torch.equal(first, build(corpus).model.lm_head.weight)
    other = build_backbone(section(corpus), eps=1e-3, seed=1).model.lm_head.weight
    assert not torch.equal(first, other)


@pytest.fixture
def causal_folder(corpus: Path, tmp_path: Path) -> Path:
    """An ordinary autoregressive checkpoint of 512 rows, whose tokenizer has 512 tokens and no mask token."""
    config = scratch_config(section(corpus), num_tokens=512)
    config.is_causal = True
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "arm")
    words = {f"word{number}": number for number in range(511)} | {"</s>": 511}
    tokenizer = Tokenizer(WordLevel(words, unk_token="word0"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>").save_pretrained(tmp_path / "arm")
    return tmp_path / "arm"


def test_a_new_mask_token_gets_the_mean_embedding_in_padded_rows(causal_folder: Path) -> None:
    model = ModelSection(path=str(causal_folder), dtype="fp32", logit_shift=True)
    backbone = build_backbone(model, eps=1e-3, seed=0)
    assert backbone.mask_token_id == 512
    assert backbone.tokenizer.mask_token_id == 512
    for embedding in (backbone.model.get_input_embeddings(), backbone.model.get_output_embeddings()):
        assert embedding.weight.shape[0] == 576, "a multiple of 64"
        torch.testing.assert_close(embedding.weight[512], embedding.weight[:512].mean(dim=0))
    assert backbone.model.config.is_causal is False


def test_an_existing_token_may_serve_as_mask(causal_folder: Path) -> None:
    before = AutoModelForCausalLM.from_pretrained(causal_folder).get_input_embeddings().weight[5].detach()
    backbone = build_backbone(
        ModelSection(path=str(causal_folder), dtype="fp32", logit_shift=True, mask_token_id=5),
        eps=1e-3,
        seed=0,
    )
    assert backbone.mask_token_id == backbone.tokenizer.mask_token_id == 5
    torch.testing.assert_close(backbone.model.get_input_embeddings().weight[5], before)


def test_rows_to_spare_keep_their_weights(causal_folder: Path) -> None:
    """Only the new token's row is set. A model may have more rows than its tokenizer has tokens."""
    model = AutoModelForCausalLM.from_pretrained(causal_folder)
    model.resize_token_embeddings(576)
    model.save_pretrained(causal_folder)
    rows = model.get_input_embeddings().weight.detach().clone()
    backbone = build_backbone(
        ModelSection(path=str(causal_folder), dtype="fp32", logit_shift=True), eps=1e-3, seed=0
    )
    after = backbone.model.get_input_embeddings().weight
    assert backbone.mask_token_id == 512
    torch.testing.assert_close(after[512], rows[:512].mean(dim=0))
    torch.testing.assert_close(after[513:], rows[513:])


@pytest.mark.parametrize("family", ["mistral", "qwen2"])
def test_sliding_windows_of_a_folder_are_opened(corpus: Path, tmp_path: Path, family: str) -> None:
    config = scratch_config(section(corpus, architecture=family), num_tokens=512)
    config.sliding_window, config.use_sliding_window = 2, True
    if family == "qwen2":
        config.layer_types = ["sliding_attention"] * config.num_hidden_layers
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "windowed")
    options = section(corpus, path=str(tmp_path / "windowed"), logit_shift=True)
    model = build_backbone(options.model_copy(update={"architecture": family}), eps=1e-3, seed=0).model.eval()
    ids = torch.arange(10, 26)[None].repeat(2, 1)
    ids[1, -1] = 99
    with torch.no_grad():
        first = model.model(ids).last_hidden_state[:, 0]
    assert (first[0] - first[1]).abs().max() > 1e-6


def test_other_families_are_refused_by_name(corpus: Path, tmp_path: Path) -> None:
    GPT2Config(n_layer=1, n_head=2, n_embd=8).save_pretrained(tmp_path)
    options = ModelSection(path=str(tmp_path), tokenizer=str(corpus / "tokenizer"))
    with pytest.raises(UserError, match="is a 'gpt2' model; supported are llama, mistral, qwen2, qwen3"):
        build_backbone(options, eps=1e-3, seed=0)


def test_folder_facts_win_over_defaults(corpus: Path, tmp_path: Path) -> None:
    backbone = build(corpus, logit_shift=True)
    backbone.model.save_pretrained(tmp_path / "hf")
    backbone.tokenizer.save_pretrained(tmp_path / "hf")
    assert build_backbone(ModelSection(path=str(tmp_path / "hf")), eps=1e-3, seed=0).logit_shift is True


@pytest.mark.parametrize("mdm", [None, {"mask_token_id": 5}], ids=["no section", "a section without it"])
def test_a_folder_that_does_not_say_its_shift_is_refused_with_the_mend(
    causal_folder: Path, mdm: dict[str, Any] | None
) -> None:
    path = causal_folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | ({"mdm": mdm} if mdm else {})))
    with pytest.raises(
        UserError, match=r"arm': its config.json.*convert.py import .*model.logit_shift: true"
    ):
        build_backbone(ModelSection(path=str(causal_folder), dtype="fp32"), eps=1e-3, seed=0)
    for shift in (True, False):
        options = ModelSection(path=str(causal_folder), dtype="fp32", logit_shift=shift)
        assert build_backbone(options, eps=1e-3, seed=0).logit_shift is shift


def test_every_dropout_rate_is_removed_and_told(corpus: Path, causal_folder: Path) -> None:
    config = json.loads((causal_folder / "config.json").read_text())
    config |= {"attention_dropout": 0.1, "resid_pdrop": 0.25, "classifier_dropout": None}
    (causal_folder / "config.json").write_text(json.dumps(config))
    options = ModelSection(path=str(causal_folder), dtype="fp32", logit_shift=True)
    backbone = build_backbone(options, eps=1e-3, seed=0)
    assert backbone.removed_dropout == {"attention_dropout": 0.1, "resid_pdrop": 0.25}
    assert backbone.model.config.attention_dropout == backbone.model.config.resid_pdrop == 0
    model, ids = backbone.model.train(), torch.arange(10, 26)[None]
    with torch.no_grad():
        assert torch.equal(model(ids).logits, model(ids).logits)
    assert build(corpus).removed_dropout == {}


def test_user_mistakes_are_named(corpus: Path, causal_folder: Path, tmp_path: Path) -> None:
    def message(**values: Any) -> str:
        with pytest.raises(UserError) as caught:
            build_backbone(ModelSection(**values), eps=1e-3, seed=0)
        return str(caught.value)

    assert "beyond the model's 512 embedding rows" in message(
        path=str(causal_folder), logit_shift=True, mask_token_id=900
    )
    assert "model.hidden_size = 64" in message(path=str(causal_folder), hidden_size=64)
    assert "model.vocab_size = 100 is smaller" in message(**section(corpus, vocab_size=100).model_dump())
    (tmp_path / "empty").mkdir()
    assert "no model config there" in message(
        path=str(tmp_path / "empty"), tokenizer=str(corpus / "tokenizer")
    )
    assert "no tokenizer in this folder" in message(path=str(tmp_path / "empty"))


def test_a_model_from_scratch_has_a_row_for_the_largest_id(tmp_path: Path) -> None:
    """600 tokens, one of them with the id 1500: 600 rows would leave that one out."""
    gap_tokenizer(600, 1500).save_pretrained(tmp_path)
    backbone = build(tmp_path, tokenizer=str(tmp_path))
    assert backbone.model.config.vocab_size >= 1502
    with torch.no_grad():
        assert backbone.model(torch.tensor([[5, 1500, backbone.mask_token_id]])).logits.isfinite().all()
    with pytest.raises(
        UserError, match=r"model\.vocab_size = 1000 is smaller than the tokenizer's 1501 token ids"
    ):
        build(tmp_path, tokenizer=str(tmp_path), vocab_size=1000)


def test_a_mask_token_that_would_take_anothers_id_is_refused(tmp_path: Path) -> None:
    """The tokenizers library gives a new token the number of tokens as its id."""
    word_tokenizer({"</s>": 1, "a": 2, "b": 3, "c": 4}).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"would take the id 4 of 'c', .* model\.mask_token_id"):
        build(tmp_path, tokenizer=str(tmp_path))
    backbone = build(tmp_path, tokenizer=str(tmp_path), mask_token_id=2)
    assert backbone.tokenizer.mask_token == "a"


def test_a_mask_id_in_a_gap_is_taken(tmp_path: Path) -> None:
    gap_tokenizer(600, 1500).save_pretrained(tmp_path)
    assert build(tmp_path, tokenizer=str(tmp_path), mask_token_id=700).mask_token_id == 700
