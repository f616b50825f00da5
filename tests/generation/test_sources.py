"""How the command line and JSONL lines become sources, and how wrong ones are refused."""

import json
from pathlib import Path

import pytest

from mdmscale.generation import LoadedModel
from mdmscale.generation.generate_command import build_parser
from mdmscale.generation.prompts import (
    decode_response,
    encode_ids,
    encode_messages,
    encode_prompt,
    shorten,
)
from mdmscale.generation.sources import Source, encode, read_sources
from mdmscale.system.errors import UserError

CHAT_TEMPLATE = (
    "{% for message in messages %}[{{ message.role }}]{{ message.content }}{% endfor %}"
    "{% if add_generation_prompt %}[a]{% endif %}"
)


def sources(*options: object) -> list[Source]:
    return read_sources(build_parser().parse_args(["model", *map(str, options)]))


def test_prompts_texts_or_nothing(tmp_path: Path) -> None:
    assert sources() == [{}]
    assert sources("--prompt", "a", "--prompt", "b") == [{"prompt": "a"}, {"prompt": "b"}]
    assert sources("--text", "a <|mask|>") == [{"text": "a <|mask|>"}]
    file = tmp_path / "prompts.txt"
    file.write_text("a\n\nb")
    assert sources("--prompt-file", file) == [{"prompt": "a"}, {"prompt": "b"}]


def test_jsonl_lines_keep_their_other_keys(tmp_path: Path) -> None:
    lines = [
        {"prompt": "a", "id": 7},
        {"messages": [{"role": "user", "content": "b"}]},
        {"text": "c <|mask|>", "response": "d"},
        {"input_ids": [3, 4]},
    ]
    file = tmp_path / "in.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    assert sources("--input", file) == lines


@pytest.mark.parametrize(
    "line, message",
    [
        ("{", ":2: not JSON: Expecting"),
        ("[]", ":2: expected an object such as"),
        ("{}", ":2: has none of prompt, messages, text, input_ids; give exactly one"),
        ('{"prompt": "a", "text": "b"}', ":2: has prompt and text of"),
        ('{"prompt": 3}', ":2: prompt = 3 is no text"),
        ('{"prompt": ""}', ":2: prompt = '' is no text, or an empty one"),
        ('{"input_ids": [1, true]}', ":2: input_ids: not all of them are integers"),
        ('{"messages": ["a"]}', ":2: messages: write"),
        ('{"prompt": "a", "generated": "b"}', ":2: already has the key 'generated'"),
    ],
)
def test_names_the_wrong_line(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "in.jsonl"
    file.write_text('{"prompt": "a"}\n' + line + "\n")
    with pytest.raises(UserError) as caught:
        sources("--input", file)
    (problem,) = caught.value.problems
    assert problem.startswith(f"--input {file}:") and message in problem


@pytest.mark.parametrize(
    "options, message",
    [
        (["--prompt", ""], "--prompt '': is empty"),
        (["--text", ""], "--text '': is empty"),
        (["--chat"], "--chat: needs prompts"),
        (["--chat", "--text", "a <|mask|>"], "--chat: needs prompts"),
        (["--prompt-file", "{tmp}/missing.txt"], "missing.txt: cannot be read: No such file or directory$"),
        (["--prompt-file", "{tmp}/binary.txt"], "binary.txt: not UTF-8 at byte 2"),
        (["--input", "{tmp}/missing.jsonl"], "--input .*missing.jsonl: no such file"),
        (["--input", "{tmp}/empty.txt"], "empty.txt: is empty"),
    ],
)
def test_refuses_sources(tmp_path: Path, options: list[str], message: str) -> None:
    (tmp_path / "empty.txt").write_text("\n\n")
    (tmp_path / "binary.txt").write_bytes(b"a\xff")
    with pytest.raises(UserError, match=message):
        sources(*(option.format(tmp=tmp_path) for option in options))


def test_chat_renders_the_template(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaded.tokenizer, "chat_template", CHAT_TEMPLATE)
    request = encode(loaded, {"prompt": "def"}, 2, chat=True)
    assert loaded.tokenizer.decode(request.token_ids[: request.prompt_length]) == "[user]def[a]"
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    request = encode(loaded, {"messages": talk}, 2, chat=False)
    assert loaded.tokenizer.decode(request.token_ids[: request.prompt_length]) == "[user]a[assistant]b[a]"


def test_tools_of_a_line_go_to_the_template(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaded.tokenizer, "chat_template", "{{ tools | tojson if tools }}" + CHAT_TEMPLATE)
    source = {"messages": [{"role": "user", "content": "x"}], "tools": [{"a": 1}]}
    request = encode(loaded, source, 2, chat=False)
    assert loaded.tokenizer.decode(request.token_ids[: request.prompt_length]) == '[{"a": 1}][user]x[a]'
    monkeypatch.setattr(loaded.tokenizer, "chat_template", CHAT_TEMPLATE)
    with pytest.raises(UserError, match=r"^messages 'x': 'tools' are given, but the chat template"):
        encode(loaded, source, 2, chat=False)


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ({"prompt": "a\ud800"}, "prompt .*: character 2 is half a surrogate pair"),
        ({"text": "a\ud800 <|mask|>"}, "text .*: character 2 is half a surrogate pair"),
        (
            {"messages": [{"role": "user", "content": "a\ud800"}]},
            "'content': character 2 is half a surrogate",
        ),
        ({"messages": [{"role": "user", "content": 5}]}, "content = 5 is of type int"),
        ({"messages": [{"content": "a"}]}, "must be an object with 'role'"),
        ({"messages": []}, "needs at least one message"),
        ({"messages": "hi"}, "'messages' is not a list of messages"),
    ],
)
def test_a_malformed_source_is_a_user_error(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch, source: Source, problem: str
) -> None:
    monkeypatch.setattr(loaded.tokenizer, "chat_template", CHAT_TEMPLATE)
    with pytest.raises(UserError, match=problem):
        encode(loaded, source, 2, chat=False)


def test_a_template_that_refuses_is_a_user_error(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="this tokenizer has none"):
        encode_messages(loaded, [{"role": "user", "content": "def"}], 2)
    monkeypatch.setattr(loaded.tokenizer, "chat_template", "{{ raise_exception('needs a system message') }}")
    with pytest.raises(UserError, match="needs a system message"):
        encode_messages(loaded, [{"role": "user", "content": "def"}], 2)


def test_requests_that_do_not_fit_the_model(loaded: LoadedModel) -> None:
    with pytest.raises(UserError, match="contains the mask token"):
        encode_prompt(loaded, "a <|mask|> b", 2)
    with pytest.raises(UserError, match=r"has no <\|mask\|> where tokens are wanted"):
        encode(loaded, {"text": "def"}, 2, chat=False)
    with pytest.raises(UserError, match=r"a prompt of 45 and length = 8: .* = 48; set length to 3 or less"):
        encode_ids(loaded, [3] * 45, 8)
    with pytest.raises(
        UserError, match=r"the prompt \('print.* alone has \d+ tokens, and the model's .* = 48"
    ):
        encode_prompt(loaded, "print(step) " * 20, 8)
    with pytest.raises(UserError, match=r"60 tokens \('60 token ids'\): exceeds .* = 48; shorten the text"):
        encode_ids(loaded, [loaded.description.mask_token_id] * 60, 8)
    with pytest.raises(UserError, match=r"token id 400 \('1 token ids'\) is not below .* 320"):
        encode(loaded, {"input_ids": [400]}, 2, chat=False)


def test_text_ends_before_the_first_eos_unless_raw(loaded: LoadedModel) -> None:
    tokenizer = loaded.tokenizer
    eos = tokenizer.eos_token_id
    request = encode_prompt(loaded, "x", 8)
    token_ids = [*tokenizer.encode("x"), *tokenizer.encode(" a"), eos, *tokenizer.encode(" b"), eos]
    assert decode_response(loaded, request, token_ids) == " a"
    assert decode_response(loaded, request, token_ids, raw=True) == " a</s> b</s>"


def test_eos_in_the_prompt_does_not_cut_the_response(loaded: LoadedModel) -> None:
    prompt = [*loaded.tokenizer.encode("x"), loaded.tokenizer.eos_token_id]
    request = encode_ids(loaded, prompt, 1)
    token_ids = [*request.token_ids[:-1], *loaded.tokenizer.encode(" a")]
    assert decode_response(loaded, request, token_ids) == " a"


def test_long_prompts_are_shortened_in_titles() -> None:
    assert shorten("a\n  b") == "a b"
    assert shorten("x" * 60) == "x" * 47 + "..."
