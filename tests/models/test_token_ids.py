"""EOS, BOS and padding come from the tokenizer and from what a folder states, never from a config's class."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerFast

from mdmscale.config.model import ModelSection
from mdmscale.generation.prompts import Request, decode_response
from mdmscale.models.backbone import build_backbone
from mdmscale.models.opening import load_model
from mdmscale.models.token_ids import TokenIds, settle_ids, stated_ids
from mdmscale.system.errors import UserError

FAMILIES = ["llama", "mistral", "qwen2", "qwen3"]
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
EOS, PAD, MASK, TURN = 5, 6, 7, 8
NUM_TOKENS = 10


def make_tokenizer(**special: str) -> PreTrainedTokenizerFast:
    """Ten tokens. 1 and 2, LlamaConfig's defaults, are words; 5 to 8 are special, whatever their role."""
    texts = ["w0", "w1", "w2", "w3", "w4", "</s>", "<pad>", "<mask>", "<turn>", "w9"]
    tokenizer = Tokenizer(WordLevel({text: number for number, text in enumerate(texts)}, unk_token="w0"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.add_special_tokens(texts[EOS : TURN + 1])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


SPECIAL = {"eos_token": "</s>", "pad_token": "<pad>", "mask_token": "<mask>"}


def in_folder(folder: Path, **special: str) -> str:
    make_tokenizer(**special).save_pretrained(folder)
    return str(folder)


def written_ids(folder: Path, name: str) -> dict[str, Any]:
    values = json.loads((folder / name).read_text())
    return {kind: values.get(f"{kind}_token_id") for kind in ("eos", "bos", "pad")}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_from_scratch_has_the_tokenizers(tmp_path: Path, family: str) -> None:
    options = ModelSection(
        tokenizer=in_folder(tmp_path / "tokenizer", **SPECIAL), architecture=family, dtype="fp32", **SIZES
    )
    backbone = build_backbone(options, eps=1e-3, seed=0)
    backbone.model.save_pretrained(tmp_path / "hf")
    backbone.tokenizer.save_pretrained(tmp_path / "hf")
    for name in ("config.json", "generation_config.json"):
        assert written_ids(tmp_path / "hf", name) == {"eos": EOS, "bos": None, "pad": PAD}
    again = GenerationConfig.from_pretrained(tmp_path / "hf")
    assert (again.eos_token_id, again.bos_token_id) == (EOS, None), "plain transformers stops there, too"

    loaded = load_model(tmp_path / "hf")
    assert loaded.eos_ids == {EOS}
    answer = decode_response(loaded, Request([3], prompt_length=1), [3, 1, 2, 4, EOS, 9])
    assert answer.split() == ["w1", "w2", "w4"], "an answer ends at EOS, not at id 2"


def test_a_model_from_scratch_has_none_that_the_tokenizer_lacks(tmp_path: Path) -> None:
    tokenizer = in_folder(tmp_path / "tokenizer", bos_token="<turn>", mask_token="<mask>")
    config = build_backbone(ModelSection(tokenizer=tokenizer, **SIZES), eps=1e-3, seed=0).model.config
    assert (config.eos_token_id, config.bos_token_id, config.pad_token_id) == (None, TURN, None)


def write_model(folder: Path, **stated: Any) -> Path:
    """A model of autoregressive llama, whose config.json states exactly these ids."""
    config = AutoConfig.for_model("llama", vocab_size=64, intermediate_size=32, **SIZES)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    (folder / "generation_config.json").unlink()
    values = json.loads((folder / "config.json").read_text())
    kept = {name: value for name, value in values.items() if not name.endswith("_token_id")}
    (folder / "config.json").write_text(json.dumps({**kept, **stated}))
    in_folder(folder, **SPECIAL)
    return folder


def trained_from(folder: Path) -> Any:
    return build_backbone(
        ModelSection(path=str(folder), dtype="fp32", logit_shift=True), eps=1e-3, seed=0
    ).model


def test_training_from_a_folder_without_ids_takes_the_tokenizers(tmp_path: Path) -> None:
    model = trained_from(write_model(tmp_path / "model"))
    assert model.config.eos_token_id == model.generation_config.eos_token_id == EOS
    assert model.config.bos_token_id is model.generation_config.bos_token_id is None


def test_what_a_folder_states_is_kept_and_completed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_model(tmp_path / "model", eos_token_id=TURN, bos_token_id=TURN)
    # transformers loads a top_p without do_sample, but refuses to save it.
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [TURN, PAD], "top_p": 0.5}))
    model = trained_from(folder)
    model.save_pretrained(tmp_path / "again")
    for name in ("config.json", "generation_config.json"):
        assert written_ids(tmp_path / "again", name) == {"eos": [TURN, PAD, EOS], "bos": TURN, "pad": PAD}
    said = capsys.readouterr().err
    assert "the tokenizer's EOS 5 '</s>' is not in the model's eos_token_id" in said
    assert "EOS is 8 '<turn>' and 6 '<pad>' and 5 '</s>'" in said


def test_a_stated_default_that_is_a_word_is_dropped_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = trained_from(write_model(tmp_path / "model", eos_token_id=2, bos_token_id=1))
    assert (model.config.eos_token_id, model.config.bos_token_id) == (EOS, None)
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert len(notes) == 1
    assert "eos_token_id = 2 'w2' is no special token and ends no text; EOS is 5 '</s>'" in notes[0]


def test_sampling_from_an_old_folder_does_not_stop_at_a_word(tmp_path: Path) -> None:
    """Folders that mdmscale wrote before state LlamaConfig's EOS 2, and the quickstart's its mask token."""
    for stated in (2, MASK, [2, MASK]):
        mdm = {"mask_token_id": MASK, "logit_shift": False}
        folder = write_model(
            tmp_path / f"model-{stated}", eos_token_id=stated, bos_token_id=1, is_causal=False, mdm=mdm
        )
        assert load_model(folder).eos_ids == {EOS}


def test_a_generation_config_that_repeats_class_defaults_states_nothing(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    generation = {"_from_model_config": True, "eos_token_id": TURN, "bos_token_id": 1}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    assert stated_ids(folder) == TokenIds()
    del generation["_from_model_config"]
    (folder / "generation_config.json").write_text(json.dumps(generation))
    assert stated_ids(folder) == TokenIds((TURN,), 1)


@pytest.mark.parametrize(
    "stated, special, expected",
    [
        (TokenIds((TURN, EOS)), SPECIAL, TokenIds((TURN, EOS), None, PAD)),  # the order stays
        (TokenIds((EOS,), 3, 4), SPECIAL, TokenIds((EOS,), None, PAD)),  # words are neither BOS nor padding
        (TokenIds((40, 64, -1), 50, -1), {}, TokenIds((40,), 50, None)),  # rows without a token, and no rows
        (TokenIds((MASK,), MASK, MASK), {}, TokenIds()),
        (TokenIds((TURN,), TURN, TURN), {}, TokenIds((TURN,), TURN, TURN)),
    ],
)
def test_which_ids_hold(stated: TokenIds, special: dict[str, str], expected: TokenIds) -> None:
    assert settle_ids(stated, make_tokenizer(**special), 64, MASK)[0] == expected


def test_without_a_tokenizer_what_is_stated_holds() -> None:
    assert settle_ids(TokenIds((2, 3), 1), None, 64, MASK) == (TokenIds((2, 3), 1), [])
    assert settle_ids(TokenIds(), None, 64, MASK) == (TokenIds(), [])


@pytest.mark.parametrize("values", [{"eos_token_id": "x"}, {"eos_token_id": [True]}, {"pad_token_id": [1]}])
def test_what_is_no_id_is_refused(tmp_path: Path, values: dict[str, Any]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(values))
    (name,) = values
    with pytest.raises(UserError, match=rf"config\.json: {name} = .* is n"):
        stated_ids(tmp_path)


def test_the_padding_tokens_embedding_is_trained(tmp_path: Path) -> None:
    """Where EOS is also the padding, torch would give it no gradient as an input."""
    model = trained_from(write_model(tmp_path / "model", eos_token_id=EOS, pad_token_id=EOS))
    model(torch.tensor([[3, EOS, 4]])).logits.square().sum().backward()
    rows = model.get_input_embeddings().weight.grad.abs().sum(dim=1)
    assert rows[EOS] > 0 and rows[3] > 0
