import json
from pathlib import Path

import numpy as np
import pytest

from mdmscale.data.indexed import IndexedShard
from mdmscale.data.preparation.jsonl import Record
from mdmscale.data.preparation.sft import encode_sft
from mdmscale.data.preparation.sft_record import encode_record
from mdmscale.data.sft_shard import SFTShard
from mdmscale.data.shards import trained_path
from mdmscale.models.tokenizer import load_tokenizer
from mdmscale.system.errors import UserError

CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture
def chat_tokenizer(tokenizer_folder):
    tokenizer = load_tokenizer(str(tokenizer_folder))
    tokenizer.chat_template = CHAT
    return tokenizer


def encode(values: dict[str, object], tokenizer, **options: str) -> tuple[str, str]:
    """The texts of the prompt and the response in one encoded line."""
    sample = encode_record(Record(values, "x.jsonl:1", 0), tokenizer, **options)
    return tokenizer.decode(sample.token_ids[: sample.prompt_length]), tokenizer.decode(
        sample.token_ids[sample.prompt_length :]
    )


def test_prompt_and_response(tokenizer):
    assert encode({"prompt": "12+7=", "response": "19"}, tokenizer) == ("12+7=", "19</s>")
    assert encode({"prompt": "", "response": "19</s>"}, tokenizer) == ("", "19</s>")


def test_special_tokens_in_texts_can_be_plain_text(tokenizer):
    mask, eos = tokenizer.mask_token, tokenizer.eos_token
    values = {"prompt": f"a {mask} b", "response": f"c {eos} d {mask}"}
    sample = encode_record(Record(values, "x.jsonl:1", 0), tokenizer, special_tokens="text")
    assert tokenizer.mask_token_id not in sample.token_ids
    assert sample.token_ids.tolist().count(tokenizer.eos_token_id) == 1
    assert encode(values, tokenizer, special_tokens="text") == (f"a {mask} b", f"c {eos} d {mask}{eos}")


def test_a_mask_token_among_ids_is_refused(tokenizer):
    record = Record({"input_ids": [5, tokenizer.mask_token_id, 7], "prompt_length": 1}, "x.jsonl:4", 0)
    with pytest.raises(UserError, match=r"x\.jsonl:4: holds the mask token"):
        encode_record(record, tokenizer)


def test_half_a_surrogate_pair_is_named(tokenizer):
    record = Record({"prompt": "a", "response": "b\ud800c"}, "x.jsonl:7", 0)
    with pytest.raises(UserError, match=r"x\.jsonl:7: 'response': character 2 is half a surrogate pair"):
        encode_record(record, tokenizer)


def test_text_is_all_response(tokenizer):
    assert encode({"text": "some text"}, tokenizer) == ("", "some text</s>")


def test_input_ids_are_taken_as_they_are(tokenizer):
    eos = tokenizer.eos_token_id
    sample = encode_record(Record({"input_ids": [5, 6, 7], "prompt_length": 2}, "x", 0), tokenizer)
    assert (sample.token_ids.tolist(), sample.prompt_length) == ([5, 6, 7, eos], 2)


def test_completion_is_a_name_of_the_response(tokenizer):
    assert encode({"prompt": "12+7=", "completion": "19"}, tokenizer) == ("12+7=", "19</s>")


@pytest.mark.parametrize(
    ("labels", "token_ids", "trained"),
    [
        ([-100, 6, 7], [5, 6, 7, "eos"], [0, 1, 1, 1]),
        ([5, -100, 7], [5, 6, 7, "eos"], [1, 0, 1, 1]),
        ([-100, 6, -100], [5, 6, "eos"], [0, 1, 1]),  # nothing may follow the last answer
    ],
)
def test_labels_say_which_of_input_ids_are_trained(tokenizer, labels, token_ids, trained):
    values = {"input_ids": [5, 6, 7], "labels": labels, "attention_mask": [1, 1, 1]}
    sample = encode_record(Record(values, "x", 0), tokenizer)
    expected = [tokenizer.eos_token_id if token == "eos" else token for token in token_ids]
    assert sample.token_ids.tolist() == expected
    assert sample.trained.tolist() == [bool(each) for each in trained]


def test_messages_end_with_the_assistants_turn(chat_tokenizer):
    messages = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "v"},
        {"role": "assistant", "content": "b"},
    ]
    expected = "<system>s</s>\n<user>u</s>\n<assistant>a</s>\n<user>v</s>\n<assistant>"
    assert encode({"messages": messages}, chat_tokenizer) == (expected, "b</s>")


def test_the_prompt_opens_with_bos_and_does_not_close(tokenizer_folder):
    from tokenizers.processors import TemplateProcessing

    tokenizer = load_tokenizer(str(tokenizer_folder))
    specials = [("<unk>", 0), ("</s>", tokenizer.eos_token_id)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing("<unk> $A </s>", None, specials)
    assert encode({"prompt": "p", "response": "r"}, tokenizer) == ("<unk>p", "r</s>")
    assert encode({"text": "r"}, tokenizer) == ("<unk>", "r</s>")


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"prompt": "a", "response": " "}, "the response is empty"),
        ({"text": ""}, "the response is empty"),
        ({"input_ids": [5, 6], "prompt_length": 2}, "the response is empty"),
        ({"messages": [{"role": "assistant", "content": ""}]}, "the response is empty"),
        ({"input_ids": [5, 6], "prompt_length": 3}, "prompt_length = 3, but there are 2 input_ids"),
        (
            {"input_ids": [5, 768], "prompt_length": 1},
            "768 in input_ids is not a token of this vocabulary of 768",
        ),
        ({"input_ids": [5, True], "prompt_length": 1}, "True in input_ids"),
        ({"prompt": "a"}, "'response' is missing or not a str"),
        (
            {"prompt": "a", "completion": [{"role": "assistant", "content": "b"}]},
            "'completion' is missing or not",
        ),
        ({"prompt": [], "completion": "a"}, "'completion' is missing or not a list"),
        ({"prompt": 5, "completion": "a"}, "'prompt' is missing or not a str or list"),
        ({"prompt": "a", "response": "b", "completion": "c"}, "has both 'response' and 'completion'"),
        ({"prompt": [{"role": "user", "content": "a"}], "completion": []}, "the response is empty"),
        ({"prompt": [{"content": "a"}], "completion": []}, "each of 'prompt' must be an object with 'role'"),
        ({"text": None}, "'text' is missing or not a str"),
        ({"text": "a\ud800"}, "'text': character 2 is half a surrogate pair"),
        ({"input_ids": [5, 6]}, "'prompt_length' is missing or not a int"),
        (
            {"input_ids": [5, 6], "labels": [5]},
            "labels: expected a list of 2, one for each of input_ids, found 1",
        ),
        ({"input_ids": [5, 6], "labels": 5}, "found int"),
        ({"input_ids": [5, 6], "labels": [6, -100]}, r"labels\[0\] = 6, but input_ids\[0\] = 5"),
        ({"input_ids": [5, 6], "labels": [-100, -100]}, "the response is empty"),
        (
            {"input_ids": [5, 6], "labels": [-100, 6], "attention_mask": [0, 1]},
            "attention_mask has 0 before the last token with a label",
        ),
        ({"question": "a", "answer": "b"}, r"has the keys \['answer', 'question'\]"),
        ({"messages": [{"role": "user", "content": "a"}]}, "must be the assistant's"),
        ({"messages": []}, "must be the assistant's"),
        ({"messages": ["a"]}, "must be an object with 'role'"),
    ],
)
def test_a_bad_line_is_named(chat_tokenizer, values, problem):
    with pytest.raises(UserError, match=f"x.jsonl:1: .*{problem}"):
        encode(values, chat_tokenizer)


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        (None, "this tokenizer has none"),
        ("{{ messages | length }}: {{ messages[-1].content }}", "renders the whole conversation differently"),
        ("{{ raise_exception('no') }}", "the chat template refuses the messages: no"),
    ],
)
def test_a_template_that_does_not_fit(chat_tokenizer, template, problem):
    chat_tokenizer.chat_template = template
    with pytest.raises(UserError, match=problem):
        encode(
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
            chat_tokenizer,
        )


def write_lines(path: Path, *lines: object) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def labelled(*trained: int) -> dict[str, object]:
    """A JSONL line of tokens with labels where `trained` is 1."""
    return {"input_ids": [5] * len(trained), "labels": [5 if each else -100 for each in trained]}


def numbered(prompt_length: int, length: int) -> dict[str, object]:
    """A JSONL line that encodes to `length` tokens, EOS included."""
    return {"input_ids": [5] * (length - 1), "prompt_length": prompt_length}


def test_the_shard_holds_the_samples_in_order(tokenizer, tmp_path):
    files = [
        write_lines(tmp_path / "a.jsonl", numbered(1, 3), numbered(0, 2)),
        write_lines(tmp_path / "b.jsonl", numbered(2, 4)),
    ]
    summary = encode_sft(files, tokenizer, tmp_path / "out/p.v1", sequence_length=4, too_long="error")
    assert (summary.num_samples, summary.num_tokens, summary.num_trained_tokens) == (3, 9, 6)
    shard = IndexedShard(tmp_path / "out/p.v1")
    assert shard.document_starts(np.arange(4)).tolist() == [0, 3, 5, 9]
    samples = SFTShard(shard)
    assert [samples.prompt_length(number) for number in range(3)] == [1, 0, 2]
    assert samples.longest() == 4
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "p.v1.bin",
        "p.v1.idx",
        "p.v1.prompts.npy",
        "p.v1.samples.json",
    ]


@pytest.mark.parametrize(
    ("too_long", "lengths", "truncated", "dropped"), [("truncate", [4, 3, 4], 1, 1), ("drop", [3, 4], 0, 2)]
)
def test_long_samples_are_cut_or_left_out(tokenizer, tmp_path, too_long, lengths, truncated, dropped):
    path = write_lines(tmp_path / "a.jsonl", numbered(1, 6), numbered(1, 3), numbered(4, 6), numbered(1, 4))
    summary = encode_sft([path], tokenizer, tmp_path / "p", sequence_length=4, too_long=too_long)
    starts = IndexedShard(tmp_path / "p").document_starts(np.arange(len(lengths) + 1))
    assert np.diff(starts).tolist() == lengths
    assert (summary.num_truncated, summary.num_dropped) == (truncated, dropped)


def marks_of(prefix: Path) -> list[list[int]]:
    shard = SFTShard(IndexedShard(prefix))
    starts = shard.tokens.document_starts(np.arange(shard.tokens.num_documents + 1))
    return [
        shard.trained(number, length).astype(int).tolist() for number, length in enumerate(np.diff(starts))
    ]


def test_tokens_that_are_not_trained_after_the_first_answer_are_marked(tokenizer, tmp_path):
    """A cut that leaves untrained tokens at the end moves back to the last trained one."""
    lines = numbered(1, 3), labelled(0, 1, 0, 1), numbered(0, 2), labelled(0, 1, 1, 0, 0, 1)
    path = write_lines(tmp_path / "a.jsonl", *lines)
    summary = encode_sft(
        [path], tokenizer, tmp_path / "p", sequence_length=5, too_long="truncate", train_on="all"
    )
    assert (summary.num_trained_tokens, summary.num_truncated) == (2 + 3 + 2 + 2, 1)
    expected = [[0, 1, 1], [0, 1, 0, 1, 1], [1, 1], [0, 1, 1]]
    assert marks_of(tmp_path / "p") == expected
    assert trained_path(tmp_path / "p").stat().st_size == 13
    assert SFTShard(IndexedShard(tmp_path / "p")).train_on() == "all"


def test_marks_of_an_older_shard_do_not_stay(tokenizer, tmp_path):
    for line in (labelled(1, 0, 1), numbered(1, 3)):
        path = write_lines(tmp_path / "a.jsonl", line)
        encode_sft([path], tokenizer, tmp_path / "p", sequence_length=4, too_long="error")
        assert trained_path(tmp_path / "p").exists() == ("labels" in line)


@pytest.mark.parametrize(
    ("line", "too_long", "problem"),
    [
        ("{", "error", r"a\.jsonl:2: not JSON"),
        (json.dumps(numbered(1, 6)), "error", r"a\.jsonl:2: 6 tokens, more than the sequence length of 4"),
        (
            json.dumps(numbered(5, 8)),
            "error",
            r"a\.jsonl:2: the prompt alone has 5 tokens, so no response fits in the sequence length of 4; "
            "raise it, or choose to drop",
        ),
    ],
)
def test_a_failure_leaves_nothing(tokenizer, tmp_path, line, too_long, problem):
    path = write_lines(tmp_path / "a.jsonl", numbered(1, 3))
    path.write_text(path.read_text() + line)
    with pytest.raises(UserError, match=problem):
        encode_sft([path], tokenizer, tmp_path / "out/p", sequence_length=4, too_long=too_long)
    assert not (tmp_path / "out").exists()


def test_a_failure_between_the_files_leaves_nothing(tokenizer, tmp_path, monkeypatch):
    def full_disk(*arguments):
        raise OSError("no space left")

    path = write_lines(tmp_path / "a.jsonl", numbered(1, 3))
    monkeypatch.setattr(np, "save", full_disk)
    with pytest.raises(OSError, match="no space left"):
        encode_sft([path], tokenizer, tmp_path / "out/p", sequence_length=4, too_long="error")
    assert not (tmp_path / "out").exists()


def test_nothing_left(tokenizer, tmp_path):
    path = write_lines(tmp_path / "a.jsonl", numbered(1, 9))
    with pytest.raises(UserError, match=r"a\.jsonl: no sample is left \(1 dropped\): all are longer than"):
        encode_sft([path], tokenizer, tmp_path / "p", sequence_length=4, too_long="drop")
    write_lines(path, numbered(5, 9), numbered(4, 9))
    with pytest.raises(
        UserError, match=r"\(2 dropped\): the prompt of every sample fills the sequence length"
    ):
        encode_sft([path], tokenizer, tmp_path / "p", sequence_length=4, too_long="truncate")
    path.write_text("\n")
    with pytest.raises(UserError, match="is empty; there is no sample to write"):
        encode_sft([path], tokenizer, tmp_path / "p", sequence_length=4, too_long="drop")
    assert [file.name for file in tmp_path.iterdir()] == ["a.jsonl"]


def test_a_tokenizer_without_eos(tokenizer_folder, tmp_path):
    tokenizer = load_tokenizer(str(tokenizer_folder))
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="no EOS token"):
        encode_sft([], tokenizer, tmp_path / "p", sequence_length=4, too_long="drop")
    with pytest.raises(UserError, match=r"^x\.jsonl:1: the tokenizer has no EOS token"):
        encode({"prompt": "a", "response": "b"}, tokenizer)
