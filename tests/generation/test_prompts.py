"""The same prompt gives the same tokens in SFT data and in sampling, whatever the tokenizer."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from models.tiny_folder import EOS_TOKEN, MASK_TOKEN, make_tokenizer
from tokenizers.processors import TemplateProcessing

from mdmscale.data.preparation.jsonl import Record
from mdmscale.data.preparation.sft_record import encode_record
from mdmscale.generation import LoadedModel, encode_infilling, encode_messages, encode_prompt
from mdmscale.models.tokenizer import load_tokenizer

BOS_TOKEN = "<s>"
CHAT_TEMPLATE = (
    "{{ bos_token or '' }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
PROMPTS = (
    "def add(a, b):",
    " 12 + 7 = \n",
    "one</s>two",
    "<s>[INST] hello [/INST]",
    "the token <unk> and the token </s> are special",
    "ends with the token </s>",
)


def byte_level(template: str | None) -> Any:
    """A byte-level BPE that adds to texts what `template` says, with BOS, EOS and mask tokens."""
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"bos_token": BOS_TOKEN})
    if template is not None:
        specials = [(BOS_TOKEN, tokenizer.bos_token_id), (EOS_TOKEN, tokenizer.eos_token_id)]
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(template, None, specials)
    return tokenizer


TOKENIZERS: dict[str, Callable[[Path], Any]] = {
    "the quickstart's": lambda corpus: load_tokenizer(corpus / "tokenizer"),
    "byte-level": lambda _: byte_level(None),
    "with BOS": lambda _: byte_level("<s> $A"),
    "adding EOS": lambda _: byte_level("$A </s>"),
    "with BOS, adding EOS": lambda _: byte_level("<s> $A </s>"),
}


@pytest.fixture(params=TOKENIZERS)
def opened(request: pytest.FixtureRequest, loaded: LoadedModel, corpus: Path, tmp_path: Path) -> LoadedModel:
    """The tiny model with another tokenizer, saved and opened like a user's model."""
    TOKENIZERS[request.param](corpus).save_pretrained(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    tokenizer.chat_template = CHAT_TEMPLATE
    changes = {"mask_token_id": tokenizer.mask_token_id, "vocab_size": len(tokenizer), "max_length": 512}
    return replace(loaded, tokenizer=tokenizer, description=replace(loaded.description, **changes))


def trained(tokenizer: Any, values: dict[str, Any]) -> list[int]:
    """The token ids of the prompt in SFT data."""
    sample = encode_record(Record(values, "x.jsonl:1", 0), tokenizer)
    return list(sample.token_ids[: sample.prompt_length])


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_prompt_is_sampled_as_it_is_trained(opened: LoadedModel, prompt: str) -> None:
    request = encode_prompt(opened, prompt, 3)
    expected = trained(opened.tokenizer, {"prompt": prompt, "response": "r"})
    assert request.token_ids == [*expected, *[opened.description.mask_token_id] * 3]
    assert request.prompt_length == len(expected)


def test_a_conversation_is_sampled_as_it_is_trained(opened: LoadedModel) -> None:
    question = [{"role": "system", "content": "s</s>"}, {"role": "user", "content": "<s>u"}]
    answer = {"role": "assistant", "content": "a"}
    request = encode_messages(opened, question, 3)
    expected = trained(opened.tokenizer, {"messages": [*question, answer]})
    assert request.token_ids[: request.prompt_length] == expected


def test_special_tokens_in_a_prompt_are_plain_text(opened: LoadedModel) -> None:
    request = encode_prompt(opened, "one</s>two", 1)
    assert opened.tokenizer.eos_token_id not in request.token_ids


def test_an_infilling_opens_and_stays_open_as_a_prompt_does(opened: LoadedModel) -> None:
    mask = opened.description.mask_token_id
    prompt = encode_prompt(opened, "def add", 1).token_ids[:-1]
    text = encode_infilling(opened, f"def add{MASK_TOKEN}</s>x{MASK_TOKEN}").token_ids
    assert text[: len(prompt) + 2] == [*prompt, mask, opened.tokenizer.eos_token_id]
    assert text[-1] == mask
