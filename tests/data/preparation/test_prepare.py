import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from conftest import run_script

from mdmscale.data.indexed import IndexedShard
from mdmscale.data.preparation import encode, prepare_command
from mdmscale.data.preparation.prepare_command import main
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


def test_the_command_reports_mistakes_in_one_line_at_once(tmp_path):
    done = run_script(
        "tools/prepare_data.py", "nowhere.txt", "--tokenizer", "x", "--output", str(tmp_path / "o")
    )
    assert (done.returncode, done.stderr) == (2, "error: input 'nowhere.txt': no such file or folder\n")
