"""dataset.json names the tokenizer of prepared data, and a run with another one is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from models.tiny_folder import make_tokenizer

from mdmscale.config.data import DataSection
from mdmscale.data.indexed import IndexedWriter, token_dtype
from mdmscale.data.preparation.prepare_command import main
from mdmscale.data.tokenizer_record import check_tokenizer
from mdmscale.models.tokenizer import load_tokenizer
from mdmscale.system.errors import UserError

TEMPLATE = "{% for m in messages %}{{ m['role'] + ':' + m['content'] }}{% endfor %}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared data of both kinds, their tokenizer, and one with other ids, another with another template."""
    folder = tmp_path_factory.mktemp("prepared")
    mine = make_tokenizer()
    mine.chat_template = TEMPLATE
    mine.save_pretrained(folder / "mine")
    mine.chat_template = TEMPLATE + "\n"
    mine.save_pretrained(folder / "template")
    mine.chat_template = TEMPLATE
    mine.add_tokens(["zz"])
    mine.save_pretrained(folder / "larger")
    swapped = json.loads((folder / "mine" / "tokenizer.json").read_text())
    vocab = swapped["model"]["vocab"]
    vocab["x"], vocab["y"] = vocab["y"], vocab["x"]
    make_tokenizer().save_pretrained(folder / "swapped")
    (folder / "swapped" / "tokenizer.json").write_text(json.dumps(swapped))
    (folder / "text.txt").write_text("x + y\n" * 50)
    (folder / "sft.jsonl").write_text('{"prompt": "x", "response": "y"}\n' * 4)
    tokenizer = ["--tokenizer", str(folder / "mine"), "--output"]
    main([str(folder / "text.txt"), *tokenizer, str(folder / "tokens"), "--workers", "1"])
    sft = ["--kind", "sft", "--sequence-length", "64"]
    main([str(folder / "sft.jsonl"), *sft, *tokenizer, str(folder / "sft")])
    return folder


@pytest.mark.parametrize("kind", ["tokens", "sft"])
@pytest.mark.parametrize("form", ["{}", "{}/shard-00000", "{}/*.bin"], ids=["folder", "prefix", "glob"])
def test_other_ids_are_refused_by_both_names(folder: Path, kind: str, form: str) -> None:
    data = DataSection(kind=kind, path=form.format(folder / kind), sequence_length=64)  # type: ignore[arg-type]
    check_tokenizer(data, load_tokenizer(folder / "mine"))
    check_tokenizer(data, load_tokenizer(folder / "larger"))
    with pytest.raises(UserError, match="other token ids") as refused:
        check_tokenizer(data, load_tokenizer(folder / "swapped"))
    (problem,) = refused.value.problems
    for name in ("mine", "swapped", f"{kind}/dataset.json"):
        assert str(folder / name) in problem
    assert "--tokenizer" in problem and "\n" not in problem


def test_another_template_matters_where_it_has_made_the_tokens(folder: Path) -> None:
    other = load_tokenizer(folder / "template")
    check_tokenizer(DataSection(kind="tokens", path=str(folder / "tokens"), sequence_length=64), other)
    with pytest.raises(UserError, match="another chat template"):
        check_tokenizer(DataSection(kind="sft", path=str(folder / "sft"), sequence_length=64), other)


def test_one_of_several_folders_is_found(folder: Path) -> None:
    other = load_tokenizer(folder / "swapped")
    main([str(folder / "text.txt"), "--tokenizer", str(folder / "swapped"), "--output", str(folder / "b")])
    data = DataSection(kind="tokens", path=[str(folder / "b"), str(folder / "tokens")], sequence_length=64)
    with pytest.raises(UserError) as refused:
        check_tokenizer(data, other)
    assert [str(folder / "tokens") in each for each in refused.value.problems] == [True]


def test_a_tokenizer_trained_with_the_data_is_named_by_its_place(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "trained"
    main([str(folder / "text.txt"), "--train-tokenizer", "266", "--output", str(output), "--workers", "1"])
    data = DataSection(kind="tokens", path=str(output), sequence_length=64)
    check_tokenizer(data, load_tokenizer(output / "tokenizer"))
    with pytest.raises(UserError, match=f"the tokenizer '{output / 'tokenizer'}', but"):
        check_tokenizer(data, load_tokenizer(folder / "mine"))


def test_shards_without_a_record_are_accepted(folder: Path, tmp_path: Path) -> None:
    with IndexedWriter(tmp_path / "theirs", token_dtype(300)) as writer:
        writer.add_document(np.arange(100))
    data = DataSection(kind="tokens", path=str(tmp_path), sequence_length=16)
    check_tokenizer(data, load_tokenizer(folder / "mine"))
    (tmp_path / "dataset.json").write_text(json.dumps({"kind": "tokens", "tokenizer": "before"}))
    check_tokenizer(data, load_tokenizer(folder / "mine"))
