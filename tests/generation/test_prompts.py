"""The same prompt gives the same tokens in SFT data and in sampling, whatever the tokenizer."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from models.chat_tokenizers import llama3, sentencepiece, smollm2
from models.tiny_folder import EOS_TOKEN, MASK_TOKEN, make_tokenizer
from tokenizers.processors import TemplateProcessing

from mdmscale.data.preparation.documents import Document
from mdmscale.data.preparation.encode import encode_documents
from mdmscale.data.preparation.jsonl import Record
from mdmscale.data.preparation.sft_record import encode_record
from mdmscale.generation import LoadedModel, encode_infilling, encode_messages, encode_prompt
from mdmscale.generation.prompts import decode_response, shorten
from mdmscale.models.prompts import opening_ids
from mdmscale.models.special_tokens import find_special
from mdmscale.models.tokenizer import load_tokenizer
from mdmscale.system.errors import UserError

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
    "SentencePiece's": lambda _: sentencepiece("first", (MASK_TOKEN,)),
    "Llama 2's": lambda _: sentencepiece("normalizer", (MASK_TOKEN,)),
}


@pytest.fixture(params=TOKENIZERS)
def opened(request: pytest.FixtureRequest, loaded: LoadedModel, corpus: Path, tmp_path: Path) -> LoadedModel:
    """The tiny model with another tokenizer, saved and opened like a user's model."""
    TOKENIZERS[request.param](corpus).save_pretrained(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    tokenizer.chat_template = CHAT_TEMPLATE
    changes = {"mask_token_id": tokenizer.mask_token_id, "vocab_size": len(tokenizer), "max_length": 512}
    return replace(loaded, tokenizer=tokenizer, description=replace(loaded.description, **changes))


def trained(tokenizer: Any, values: dict[str, Any], special_tokens: Any = "refuse") -> list[int]:
    """The token ids of the prompt in SFT data."""
    sample = encode_record(Record(values, "x.jsonl:1", 0), tokenizer, special_tokens=special_tokens)
    return list(sample.token_ids[: sample.prompt_length])


@pytest.mark.parametrize("special_tokens", ["text", "read"])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_prompt_is_sampled_as_it_is_trained(opened: LoadedModel, prompt: str, special_tokens: Any) -> None:
    request = encode_prompt(opened, prompt, 3, special_tokens)
    expected = trained(opened.tokenizer, {"prompt": prompt, "response": "r"}, special_tokens)
    assert request.token_ids == [*expected, *[opened.description.mask_token_id] * 3]
    assert request.prompt_length == len(expected)


@pytest.mark.parametrize("prompt", PROMPTS[2:])
def test_special_tokens_in_a_prompt_are_refused_until_it_is_said_what_they_mean(
    opened: LoadedModel, prompt: str
) -> None:
    words = "has '<?/?[a-z]+>' written in it, a special token .* data.special_tokens .* --special-tokens"
    if find_special(opened.tokenizer, prompt) is None:
        pytest.skip("this tokenizer has no such special token")
    name = re.escape(repr(shorten(prompt)))
    with pytest.raises(UserError, match=rf"^prompt {name}: the prompt {words}"):
        encode_prompt(opened, prompt, 3)
    for values in ({"prompt": prompt, "response": "r"}, {"prompt": "p", "response": f"{prompt}!"}):
        with pytest.raises(UserError, match=rf"^x\.jsonl:1: the (prompt|response) {words}"):
            trained(opened.tokenizer, values)
    with pytest.raises(UserError, match=rf"^x\.jsonl:1: the response {words}"):
        trained(opened.tokenizer, {"text": f"{prompt}!"})


def test_special_tokens_that_are_read_are_the_tokens(opened: LoadedModel) -> None:
    eos = opened.tokenizer.eos_token_id
    ids = {name: encode_prompt(opened, "one</s>two</s>", 1, name).token_ids for name in ("read", "text")}
    assert (ids["read"].count(eos), ids["text"].count(eos)) == (2, 0)
    assert ids["read"][-2] == eos


def test_a_mask_token_that_is_a_word_is_not_refused_as_a_special_token(loaded: LoadedModel) -> None:
    """DiffuLLaMA's is: it is a part of ordinary words, and the tokenizer calls it special."""
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"mask_token": "step"})
    mask_token_id = tokenizer.convert_tokens_to_ids("step")
    description = replace(loaded.description, mask_token_id=mask_token_id)
    opened = replace(loaded, tokenizer=tokenizer, description=description)
    assert find_special(tokenizer, "a step</s>") == "</s>"
    assert mask_token_id in tokenizer("step", split_special_tokens=True).input_ids
    ids = encode_prompt(opened, "range(steps", 1).token_ids[:-1]
    assert ids == tokenizer("range(steps", split_special_tokens=True).input_ids and mask_token_id not in ids
    with pytest.raises(UserError, match=r"x\.jsonl:1: holds the mask token"):
        trained(tokenizer, {"prompt": "p", "response": "step"})


def test_bos_that_is_written_is_not_doubled(opened: LoadedModel) -> None:
    tokenizer = opened.tokenizer
    if tokenizer.bos_token is None:
        pytest.skip("this tokenizer has no BOS")
    for ids in (
        encode_prompt(opened, "<s>hello", 1, "read").token_ids,
        encode_infilling(opened, f"<s>hello{MASK_TOKEN}").token_ids,
        encode_messages(opened, [{"role": "user", "content": "hello"}], 1).token_ids,
        trained(
            tokenizer, {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
        ),
    ):
        assert ids[0] == tokenizer.bos_token_id and ids.count(tokenizer.bos_token_id) == 1


def test_documents_open_as_prompts_do(opened: LoadedModel, tmp_path: Path) -> None:
    (batch,) = encode_documents([Document("hello", 5, "a.txt")], str(tmp_path), 1)
    document = batch.token_ids.tolist()
    assert document == [*encode_prompt(opened, "hello", 1).token_ids[:-1], opened.tokenizer.eos_token_id]
    assert encode_prompt(opened, None, 2).token_ids[:-2] == opening_ids(opened.tokenizer)
    assert document[: len(opening_ids(opened.tokenizer))] == opening_ids(opened.tokenizer)


PAIRS = (
    ("3+4=", "7"),
    ("3 + 4 = ", "7"),
    ("3+4=", " 7"),
    ("Q: hi\nA:\n", "yo\n\nyo "),
    ("Q: hi\n", "\nyo"),
    ("hello", "hello"),
    ("", "yo"),
    ("\u00fc", "\u00ef\u2192\U0001f642"),
)


@pytest.mark.parametrize(("prompt", "response"), PAIRS)
def test_a_trained_response_is_decoded_as_it_was_written(
    opened: LoadedModel, prompt: str, response: str
) -> None:
    """SentencePiece puts a space in front of each text, which a response that continues one must not have."""
    values = {"prompt": prompt, "response": response}
    sample = encode_record(Record(values, "x.jsonl:1", 0), opened.tokenizer)
    request = encode_prompt(opened, prompt, 1) if prompt else encode_prompt(opened, None, 1)
    assert request.token_ids[:-1] == sample.token_ids[: sample.prompt_length].tolist()
    assert decode_response(opened, request, sample.token_ids.tolist()) == response


def test_a_response_has_the_tokens_of_the_joined_text(opened: LoadedModel) -> None:
    """Where no token of the joined text crosses the border."""
    prompt, response = "What is the capital of France?", " The capital of France is Paris."
    sample = encode_record(Record({"prompt": prompt, "response": response}, "x", 0), opened.tokenizer)
    joined = opened.tokenizer(prompt + response, add_special_tokens=False).input_ids
    opening = opening_ids(opened.tokenizer)
    assert sample.token_ids.tolist() == [*opening, *joined, opened.tokenizer.eos_token_id]


@pytest.mark.parametrize("make", [smollm2, llama3])
def test_a_prompt_that_was_rendered_beforehand_is_the_conversation(make: Callable[[], Any]) -> None:
    tokenizer = make()
    if bos := tokenizer.bos_token:
        opening = TemplateProcessing(f"{bos} $A", None, [(bos, tokenizer.bos_token_id)])
        tokenizer.backend_tokenizer.post_processor = opening
    question, answer = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}
    prompt = tokenizer.apply_chat_template([question], tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template([question, answer], tokenize=False)
    conversation = encode_record(Record({"messages": [question, answer]}, "x", 0), tokenizer)
    pair = {"prompt": prompt, "response": whole.removeprefix(prompt)}
    rendered = encode_record(Record(pair, "x", 0), tokenizer, special_tokens="read")
    assert rendered.token_ids.tolist() == conversation.token_ids.tolist()
    assert rendered.trained.tolist() == conversation.trained.tolist()
    with pytest.raises(UserError, match=r"the prompt has '<\|(im_start|begin_of_text)\|>' written in it"):
        encode_record(Record(pair, "x", 0), tokenizer)


def test_a_conversation_is_sampled_as_it_is_trained(opened: LoadedModel) -> None:
    question = [{"role": "system", "content": "s</s>"}, {"role": "user", "content": "<s>u"}]
    answer = {"role": "assistant", "content": "a"}
    request = encode_messages(opened, question, 3)
    expected = trained(opened.tokenizer, {"messages": [*question, answer]})
    assert request.token_ids[: request.prompt_length] == expected


def test_an_infilling_opens_and_stays_open_as_a_prompt_does(opened: LoadedModel) -> None:
    mask = opened.description.mask_token_id
    prompt = encode_prompt(opened, "def add", 1).token_ids[:-1]
    text = encode_infilling(opened, f"def add{MASK_TOKEN}</s>x{MASK_TOKEN}").token_ids
    assert text[: len(prompt) + 2] == [*prompt, mask, opened.tokenizer.eos_token_id]
    assert text[-1] == mask
