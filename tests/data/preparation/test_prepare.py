import gzip
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from conftest import run_script
from models.tiny_tokenizers import gap_tokenizer, ordinary_mask_tokenizer

from mdmscale.data.indexed import IndexedShard
from mdmscale.data.preparation import encode, prepare_command
from mdmscale.data.preparation.jsonl import Record
from mdmscale.data.preparation.prepare_command import main
from mdmscale.data.preparation.sft_record import encode_record
from mdmscale.data.preparation.shard_set import unigram_entropy
from mdmscale.models.tokenizer import load_tokenizer
from mdmscale.system.errors import UserError


@pytest.fixture(scope="module")
def corpus(texts, tmp_path_factory) -> Path:
    """A JSONL file of texts. One text contains special tokens, one is empty."""
    path = tmp_path_factory.mktemp("corpus") / "c.jsonl"
    lines = [*texts, "", "a mask: <|mask|> and an end: </s>"]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in lines))
    return path


def run(*arguments: object) -> None:
    assert main([str(argument) for argument in arguments]) == 0


def shard_bytes(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.glob("shard-*"))]


def test_the_shards_hold_every_text_with_eos_at_its_end(corpus, texts, tokenizer_folder, tokenizer, tmp_path):
    run(corpus, "--tokenizer", tokenizer_folder, "--output", tmp_path / "out", "--shard-tokens", 50_000)
    shards = [IndexedShard(path.with_suffix("")) for path in sorted((tmp_path / "out").glob("*.idx"))]
    assert len(shards) > 2
    documents = []
    for shard in shards:
        bounds = shard.document_starts(np.arange(shard.num_documents + 1))
        assert shard.num_tokens <= 50_000 or shard.num_documents == 1
        documents += [shard.tokens(start, stop) for start, stop in pairwise(bounds)]
    assert all(ids[-1] == tokenizer.eos_token_id for ids in documents)
    expected = [*texts, "a mask: <|mask|> and an end: </s>"]
    assert [tokenizer.decode(ids[:-1]) for ids in documents] == expected
    assert not any(tokenizer.mask_token_id in ids or tokenizer.eos_token_id in ids[:-1] for ids in documents)

    summary = json.loads((tmp_path / "out/dataset.json").read_text())
    ids = np.concatenate(documents)
    assert summary["num_documents"] == len(expected) and summary["num_tokens"] == len(ids)
    assert summary["num_bytes"] == sum(len(text.encode()) for text in expected)
    assert summary["unigram_entropy"] == pytest.approx(unigram_entropy(np.bincount(ids)))


def test_unigram_entropy():
    assert unigram_entropy(np.asarray([5, 0, 5])) == pytest.approx(np.log(2))


def test_any_number_of_workers_writes_the_same_bytes(corpus, tokenizer_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(encode, "_BATCH_CHARACTERS", 40_000)
    for workers in (1, 2):
        run(
            corpus, "--tokenizer", tokenizer_folder, "--output", tmp_path / str(workers), "--workers", workers
        )
    assert shard_bytes(tmp_path / "1") == shard_bytes(tmp_path / "2")


def test_a_trained_tokenizer_is_saved_beside_the_shards(corpus, tmp_path):
    run(corpus, "--train-tokenizer", 400, "--output", tmp_path / "out")
    assert len(load_tokenizer(str(tmp_path / "out/tokenizer"))) == 400


def test_an_existing_output_is_kept(corpus, tokenizer_folder, tmp_path):
    options = [corpus, "--tokenizer", tokenizer_folder, "--output", tmp_path / "out"]
    run(*options)
    before = shard_bytes(tmp_path / "out")
    with pytest.raises(UserError, match="exists already"):
        run(*options)
    (tmp_path / "bad.jsonl").write_text("{")
    with pytest.raises(UserError, match=r"bad\.jsonl:1: not JSON"):
        run(tmp_path / "bad.jsonl", *options[1:], "--overwrite")
    assert shard_bytes(tmp_path / "out") == before
    run(*options, "--overwrite", "--shard-tokens", 50_000)
    assert len(shard_bytes(tmp_path / "out")) > len(before)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.jsonl", "out"]


def test_a_folder_of_the_users_own_is_never_replaced(corpus, tokenizer_folder, tmp_path):
    (tmp_path / "home").mkdir()
    with pytest.raises(UserError, match="was not made by this command"):
        run(corpus, "--tokenizer", tokenizer_folder, "--output", tmp_path / "home", "--overwrite")


def test_an_interrupt_leaves_nothing(corpus, tokenizer_folder, tmp_path, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare_command, "_write_summary", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(corpus, "--tokenizer", tokenizer_folder, "--output", tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [("e.txt", "", r"e\.txt: is empty \(0 bytes\)"), ("e.jsonl", '{"text": ""}\n', "holds no text")],
)
def test_an_empty_result_is_refused(tokenizer_folder, tmp_path, name, content, problem):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=problem):
        run(tmp_path / name, "--tokenizer", tokenizer_folder, "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_prompts_and_responses(tokenizer_folder, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "1+1=", "response": "2"}\n')
    options = [path, "--kind", "sft", "--tokenizer", tokenizer_folder, "--output", tmp_path / "out"]
    with pytest.raises(UserError, match="needs --sequence-length"):
        run(*options)
    run(*options, "--sequence-length", 16)
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    suffixes = ("bin", "idx", "prompts.npy", "samples.json")
    assert names == ["dataset.json", *(f"shard-00000.{suffix}" for suffix in suffixes)]


SFT_ROWS = [{"prompt": f"{number}+1=", "response": str(number + 1)} for number in range(4)]


@pytest.mark.parametrize("name", ["a.json", "a.csv", "a.parquet", "a.jsonl.gz", "set"])
def test_prompts_and_responses_in_every_format(tokenizer_folder, tmp_path, name):
    from datasets import Dataset, DatasetDict

    plain, path = tmp_path / "plain.jsonl", tmp_path / name
    plain.write_text("".join(json.dumps(row) + "\n" for row in SFT_ROWS))
    table = Dataset.from_list(SFT_ROWS)
    match name:
        case "a.json":
            path.write_text(json.dumps(SFT_ROWS))
        case "a.csv":
            table.to_csv(path)
        case "a.parquet":
            table.to_parquet(path)
        case "a.jsonl.gz":
            path.write_bytes(gzip.compress(plain.read_bytes()))
        case "set":
            DatasetDict(train=table.select([0, 1, 2]), test=table).save_to_disk(path)
    options = ["--kind", "sft", "--sequence-length", 16, "--tokenizer", tokenizer_folder]
    run(plain, *options, "--output", tmp_path / "expected")
    run(path, *options, "--output", tmp_path / "out", *(["--split", "test"] if name == "set" else []))
    assert shard_bytes(tmp_path / "out") == shard_bytes(tmp_path / "expected")


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.txt", "a", r"--kind sft reads \.jsonl .*\.parquet \.arrow files, not .*a\.txt"),
        ("a.csv", "prompt,answer\na,b\n", r"a\.csv:2: 'response' is missing"),
        ("a.jsonl", "\n", r"a\.jsonl: is empty; there is no sample to write"),
    ],
)
def test_what_holds_no_prompts_is_refused(tokenizer_folder, tmp_path, name, content, problem):
    (tmp_path / name).write_text(content)
    options = ["--kind", "sft", "--sequence-length", 16, "--tokenizer", tokenizer_folder]
    with pytest.raises(UserError, match=problem):
        run(tmp_path / name, *options, "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("largest", [600, 70_000])
def test_ids_with_a_gap_are_written_whole(tmp_path, largest):
    """70000 is more than 16 bits hold, though the tokenizer has only 600 tokens."""
    gap_tokenizer(600, largest).save_pretrained(tmp_path / "tok")
    (tmp_path / "a.txt").write_text("w5 far far")
    (tmp_path / "a.jsonl").write_text('{"prompt": "w5", "response": "far w7"}\n')
    (tmp_path / "b.jsonl").write_text(json.dumps({"input_ids": [5, largest, 7], "prompt_length": 1}))
    options = ["--tokenizer", tmp_path / "tok"]
    run(tmp_path / "a.txt", *options, "--output", tmp_path / "text")
    assert IndexedShard(tmp_path / "text/shard-00000").tokens(0, 4).tolist() == [5, largest, largest, 0]
    assert json.loads((tmp_path / "text/dataset.json").read_text())["vocab_size"] == largest + 1
    for name in ("a", "b"):
        options = ["--tokenizer", tmp_path / "tok", "--kind", "sft", "--sequence-length", 8]
        run(tmp_path / f"{name}.jsonl", *options, "--output", tmp_path / name)
        assert IndexedShard(tmp_path / name / "shard-00000").tokens(0, 4).tolist() == [5, largest, 7, 0]


@pytest.fixture(scope="module")
def ordinary_mask(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mask") / "tok"
    ordinary_mask_tokenizer().save_pretrained(folder)
    return folder


MASKED, CLEAN = "for step in range", "def add(a, b):"


def test_a_text_with_an_ordinary_mask_word(ordinary_mask, tmp_path):
    tokenizer = load_tokenizer(ordinary_mask)
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in (CLEAN, MASKED, CLEAN)))
    options = [path, "--tokenizer", ordinary_mask, "--output"]
    with pytest.raises(
        UserError, match=r"a\.jsonl:2: holds the mask token \('Ġstep', id 278\) as 1 of its 4"
    ):
        run(*options, tmp_path / "error")
    assert not (tmp_path / "error").exists()
    for rule, texts in [("drop", [CLEAN, CLEAN]), ("reencode", [CLEAN, MASKED, CLEAN])]:
        run(*options, tmp_path / rule, "--mask-in-text", rule)
        shard = IndexedShard(tmp_path / rule / "shard-00000")
        spans = [shard.document_span(document) for document in range(shard.num_documents)]
        assert [tokenizer.decode(shard.tokens(start, stop - 1)) for start, stop in spans] == texts
        assert tokenizer.mask_token_id not in shard.tokens(0, shard.num_tokens)
        summary = json.loads((tmp_path / rule / "dataset.json").read_text())
        assert (summary["num_dropped"], summary["num_reencoded"]) == ((1, 0) if rule == "drop" else (0, 1))
    path.write_text(json.dumps({"text": MASKED}))
    with pytest.raises(UserError, match="all 1 documents hold the mask token and are dropped"):
        run(*options, tmp_path / "none", "--mask-in-text", "drop")


def test_a_sample_with_an_ordinary_mask_word(ordinary_mask, tmp_path):
    tokenizer = load_tokenizer(ordinary_mask)
    path = tmp_path / "a.jsonl"
    pairs = [(CLEAN, MASKED), (MASKED, CLEAN), (CLEAN, CLEAN)]
    path.write_text("".join(json.dumps({"prompt": p, "response": r}) + "\n" for p, r in pairs))
    options = [path, "--kind", "sft", "--sequence-length", 64, "--tokenizer", ordinary_mask, "--output"]
    with pytest.raises(UserError, match=r"a\.jsonl:1: holds the mask token"):
        run(*options, tmp_path / "error")
    for rule, kept in [("drop", pairs[2:]), ("reencode", pairs)]:
        run(*options, tmp_path / rule, "--mask-in-text", rule)
        shard = IndexedShard(tmp_path / rule / "shard-00000")
        assert tokenizer.mask_token_id not in shard.tokens(0, shard.num_tokens)
        prompts = np.load(tmp_path / rule / "shard-00000.prompts.npy")
        for sample, (prompt, response) in enumerate(kept):
            start, stop = shard.document_span(sample)
            cut = start + int(prompts[sample])
            assert tokenizer.decode(shard.tokens(start, cut)) == prompt
            assert tokenizer.decode(shard.tokens(cut, stop - 1)) == response
        assert json.loads((tmp_path / rule / "dataset.json").read_text())["num_dropped"] == 3 - len(kept)


def test_a_spelled_mask_is_trained_as_the_mask_was(ordinary_mask):
    tokenizer = load_tokenizer(ordinary_mask)
    mask, eos = tokenizer.mask_token_id, tokenizer.eos_token_id
    values = {"input_ids": [5, mask, 6, mask, 7, eos], "labels": [-100, -100, 6, mask, -100, eos]}
    sample = encode_record(Record(values, "x:1", 0), tokenizer, mask_in_text="reencode")
    spelling = sample.token_ids[1:3].tolist()
    assert sample.token_ids.tolist() == [5, *spelling, 6, *spelling, 7, eos] and mask not in spelling
    assert sample.trained.tolist() == [False, False, False, True, True, True, False, True]


def test_the_command_reports_mistakes_in_one_line_at_once(tmp_path):
    done = run_script(
        "tools/prepare_data.py", "nowhere.txt", "--tokenizer", "x", "--output", str(tmp_path / "o")
    )
    assert (done.returncode, done.stderr) == (2, "error: input 'nowhere.txt': no such file or folder\n")
