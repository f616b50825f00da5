"""What is trained of a conversation is what transformers masks as the assistant's, for templates as shipped.

transformers needs {% generation %} tags to tell; mdmscale finds the same tokens without them.
"""

from itertools import groupby
from typing import Any

import pytest
from models.chat_tokenizers import TAGS, llama3, qwen, smollm2

from mdmscale.data.preparation.jsonl import Record
from mdmscale.data.preparation.sft_record import EncodedSample, encode_record
from mdmscale.models.chat import chat_prompt_ids

SYSTEM = {"role": "system", "content": "Answer in one word."}
TURNS = [
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "Paris"},
    {"role": "user", "content": "  And 2*3?\n"},
    {"role": "assistant", "content": "It is 6.\n\nAsk more: ünï→🙂"},
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "hello\nback"},
]
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {}}}},
}


def call(arguments: Any, content: str | None = None) -> dict[str, Any]:
    function = {"name": "weather", "arguments": arguments}
    return {
        "role": "assistant",
        "content": content,
        "tool_calls": [{"type": "function", "function": function}],
    }


TOOL_TURNS = [
    {"role": "user", "content": "Is it sunny in Paris?"},
    call({"city": "Paris"}),
    {"role": "tool", "content": "sunny"},
    {"role": "assistant", "content": "Yes."},
    {"role": "user", "content": "And in 7?"},
    call({"city": "7"}, "I look."),
]

CHATS: dict[str, tuple[list[dict[str, Any]], list[Any] | None]] = {
    "one turn": (TURNS[:2], None),
    "several turns": (TURNS, None),
    "a system turn": ([SYSTEM, *TURNS], None),
    "tools": (TOOL_TURNS[:4], [WEATHER]),
    "a call at the end, and a system turn": ([SYSTEM, *TOOL_TURNS], [WEATHER]),
}
MODELS = {"SmolLM2": smollm2, "Llama 3": llama3, "Qwen 2.5": qwen}
CASES = [(model, chat) for model in MODELS for chat in CHATS if model == "Qwen 2.5" or CHATS[chat][1] is None]


def masked_by_transformers(tokenizer: Any, messages: list[Any], tools: Any) -> tuple[list[int], list[bool]]:
    """The ids of a conversation and transformers' mask, up to the last masked token."""
    encoded = tokenizer.apply_chat_template(
        messages, tools=tools, return_dict=True, return_assistant_tokens_mask=True
    )
    mask = [bool(each) for each in encoded["assistant_masks"]]
    length = len(mask) - mask[::-1].index(True)
    return encoded["input_ids"][:length], mask[:length]


def last_run(mask: list[bool]) -> list[bool]:
    """The mask of the last run of masked tokens alone."""
    (*_, (_, run)) = [(is_on, list(group)) for is_on, group in groupby(mask)]
    return [False] * (len(mask) - len(run)) + run


def encode(tokenizer: Any, messages: Any, tools: Any, train_on: Any) -> EncodedSample:
    values = {"messages": messages, "tools": tools}
    return encode_record(Record(values, "x.jsonl:1", 0), tokenizer, train_on)


@pytest.mark.parametrize(("model", "chat"), CASES)
def test_the_tokens_that_are_trained_are_those_that_transformers_masks(model: str, chat: str) -> None:
    messages, tools = CHATS[chat]
    ids, mask = masked_by_transformers(MODELS[model](TAGS), messages, tools)
    assert 1 < sum(mask) < len(mask) and ids[-1] == MODELS[model]().eos_token_id
    for tokenizer in (MODELS[model](), MODELS[model](TAGS)):
        for train_on, expected in (("all", mask), ("last", last_run(mask))):
            sample = encode(tokenizer, messages, tools, train_on)
            assert sample.token_ids.tolist() == ids
            assert sample.trained.tolist() == expected


@pytest.mark.parametrize(("model", "chat"), CASES)
def test_what_comes_before_the_last_answer_is_the_prompt_of_sampling(model: str, chat: str) -> None:
    tokenizer = MODELS[model]()
    messages, tools = CHATS[chat]
    prompt = chat_prompt_ids(tokenizer, messages[:-1], tools)
    sample = encode(tokenizer, messages, tools, "last")
    assert sample.token_ids[: sample.prompt_length].tolist() == prompt


def test_completion_is_all_that_follows_the_first_user_turn() -> None:
    tokenizer = smollm2()
    sample = encode(tokenizer, [SYSTEM, *TURNS], None, "completion")
    text = tokenizer.decode(sample.token_ids[sample.trained])
    assert sample.trained[sample.prompt_length :].all()
    assert text.startswith("Paris<|im_end|>\n<|im_start|>user\n  And 2*3?") and text.endswith(
        "back<|im_end|>"
    )


def test_a_prompt_and_a_completion_of_messages_are_trls() -> None:
    """The prompt is never trained, be it with an answer in it."""
    tokenizer = smollm2()
    values = {"prompt": TURNS[:3], "completion": TURNS[3:]}
    samples = {
        train_on: encode_record(Record(values, "x.jsonl:1", 0), tokenizer, train_on)
        for train_on in ("last", "all", "completion")
    }
    texts = {name: tokenizer.decode(each.token_ids[each.trained]) for name, each in samples.items()}
    answer = "It is 6.\n\nAsk more: ünï→🙂<|im_end|>"
    assert texts["last"] == "hello\nback<|im_end|>"
    assert texts["all"] == answer + texts["last"]
    assert (
        texts["completion"]
        == f"{answer}\n<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n" + (texts["last"])
    )
    tagged = smollm2(TAGS)
    for train_on, sample in samples.items():
        other = encode_record(Record(values, "x.jsonl:1", 0), tagged, train_on)
        assert other.trained.tolist() == sample.trained.tolist()
    assert len({tuple(sample.token_ids) for sample in samples.values()}) == 1


def test_arguments_that_are_json_text_are_an_object() -> None:
    """OpenAI's interface gives them as text; a template would write it with all quotes escaped."""
    tokenizer = qwen()
    parsed, text = (
        encode(tokenizer, [TOOL_TURNS[0], call(arguments)], [WEATHER], "last")
        for arguments in ({"city": "Paris"}, '{"city": "Paris"}')
    )
    assert parsed.token_ids.tolist() == text.token_ids.tolist()
