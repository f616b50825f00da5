"""The likelihood command: what it reads, its results, how it continues, and what it refuses."""

import json
import math
import sysconfig
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, run_ranks
from models.tiny_folder import write_model_folder
from transformers import LlamaConfig, LlamaForCausalLM

from mdmscale.data.held_out import held_out_indices
from mdmscale.evaluate_command import main
from mdmscale.evaluation.likelihood import measuring
from mdmscale.evaluation.likelihood.scoring import LikelihoodOptions, Scored, log_likelihoods
from mdmscale.evaluation.options import check_model_options
from mdmscale.evaluation.results import Results, read_results
from mdmscale.models.opening import LoadedModel, load_model
from mdmscale.models.prompts import pair_ids
from mdmscale.models.tokenizer import load_tokenizer
from mdmscale.system.errors import UserError

TOOL = ROOT / "tools" / "evaluate.py"
PAIR = {"prompt": "def add(a, b):", "response": " return a + b"}
QUESTION = {"prompt": "def add(a, b): return a", "choices": [" + b", " - b", "print"], "answer": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model's folder."""
    return write_model_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def loaded(folder: Path) -> LoadedModel:
    return load_model(folder, "fp32")


def jsonl(path: Path, *lines: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def measured(folder: Path, tmp_path: Path, *options: object) -> Results:
    output = tmp_path / "results.json"
    command = ["likelihood", folder, "--output", output, "--overwrite", "--rows", 8, *options]
    assert main([str(part) for part in command]) == 0
    return read_results(output)


def refused(folder: Path, *options: object) -> list[str]:
    with pytest.raises(UserError) as caught:
        main([str(part) for part in ("likelihood", folder, *options)])
    return caught.value.problems


def test_a_text_is_scored_without_eos_by_its_own_bytes(
    folder: Path, loaded: LoadedModel, tmp_path: Path
) -> None:
    text = "for step in größe:"
    results = measured(folder, tmp_path, "--text", text)
    ids = loaded.tokenizer(text, add_special_tokens=False).input_ids
    (expected,) = log_likelihoods(loaded, [Scored([], ids)], LikelihoodOptions(rows=8), 8)
    (item,) = results.items
    assert item["nats"] == pytest.approx(expected.nats, rel=1e-5)
    assert (item["tokens"], item["bytes"], item["forwards"]) == (len(ids), len(text.encode()), 8)
    (summary,) = results.summary
    assert summary["bits_per_byte"] == pytest.approx(-item["nats"] / math.log(2) / len(text.encode()))
    assert summary["nats_per_token_error"] is None and summary["monte_carlo_error"] > 0


def test_a_long_text_is_scored_in_windows_that_add_up(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "long.txt"
    file.write_text("for step in range(steps):\n    print(step)\n" * 12)
    (item,) = measured(folder, tmp_path, "--data", file, "--max-length", 16, "--context", 4).items
    assert item["bytes"] == file.stat().st_size
    num_windows = 1 + math.ceil((item["tokens"] - 16) / 12)
    assert item["forwards"] == num_windows * 8


def test_a_response_is_scored_given_its_prompt_with_eos(
    folder: Path, loaded: LoadedModel, tmp_path: Path
) -> None:
    (item,) = measured(folder, tmp_path, "--data", jsonl(tmp_path / "in.jsonl", PAIR)).items
    prompt, response = pair_ids(loaded.tokenizer, PAIR["prompt"], PAIR["response"], "refuse")
    scored = Scored(prompt, [*response, loaded.tokenizer.eos_token_id])
    (expected,) = log_likelihoods(loaded, [scored], LikelihoodOptions(rows=8), 8)
    assert item["nats"] == pytest.approx(expected.nats, rel=1e-5)
    assert (item["kind"], item["bytes"]) == ("response", len(PAIR["response"]))


def test_choices_are_ranked_by_sum_token_and_byte(folder: Path, loaded: LoadedModel, tmp_path: Path) -> None:
    questions = [{**QUESTION, "answer": answer} for answer in range(3)]
    results = measured(
        folder, tmp_path, "--data", jsonl(tmp_path / "in.jsonl", *questions), "--method", "left-to-right"
    )
    item = results.items[0]
    pairs = [
        pair_ids(loaded.tokenizer, QUESTION["prompt"], choice, "refuse") for choice in QUESTION["choices"]
    ]
    options = LikelihoodOptions(method="left-to-right")
    found = [each.nats for each in log_likelihoods(loaded, [Scored(*pair) for pair in pairs], options, 8)]
    assert item["nats"] == pytest.approx(found, rel=1e-5)
    assert item["chosen"] == max(range(3), key=found.__getitem__)
    by_byte = max(range(3), key=lambda choice: found[choice] / len(QUESTION["choices"][choice]))
    assert [each["correct_by_byte"] for each in results.items] == [answer == by_byte for answer in range(3)]
    (summary,) = results.summary
    assert summary["accuracy_by_sum"] == summary["accuracy_by_token"] == pytest.approx(1 / 3)
    low, high = summary["accuracy_by_sum_interval"]
    assert low < 1 / 3 < high


def test_held_out_documents_of_a_corpus_are_texts(corpus: Path, tmp_path: Path) -> None:
    stdlib = Path(sysconfig.get_paths()["stdlib"])
    sizes = [file.stat().st_size for file in sorted(stdlib.glob("[a-c]*.py"))]
    held_out = held_out_indices(len(sizes), 0.5, "documents")
    number = min(range(len(held_out)), key=lambda place: sizes[held_out[place]])
    folder = write_model_folder(tmp_path / "model")
    tokenizer = load_tokenizer(corpus / "tokenizer")
    tokenizer.save_pretrained(folder)
    config = LlamaConfig.from_pretrained(folder)
    config.vocab_size, config.mdm["mask_token_id"] = 520, tokenizer.mask_token_id
    LlamaForCausalLM(config).save_pretrained(folder)
    options = ("--corpus", corpus, "--held-out", 0.5, "--limit", number + 1, "--rows", 4, "--batch-size", 64)
    items = measured(folder, tmp_path, *options).items
    assert [item["bytes"] for item in items] == [sizes[place] for place in held_out[: number + 1]]
    assert {item["kind"] for item in items} == {"text"}


def test_an_interrupted_command_continues(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [{**PAIR, "response": " return a" + " + b" * number} for number in range(5)]
    data = jsonl(tmp_path / "in.jsonl", *lines)
    whole = measured(folder, tmp_path, "--data", data).items
    output = tmp_path / "again.json"
    command = ["likelihood", str(folder), "--data", data, "--rows", "8", "--output", str(output)]
    make_item = measuring.make_item

    def interrupted(number: int, *arguments: Any) -> Any:
        if number == 3:
            raise KeyboardInterrupt
        return make_item(number, *arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(measuring, "make_item", interrupted)
        main(command)
    assert not output.exists()
    assert main(command) == 0
    captured = capsys.readouterr().err
    assert "the same command continues after 3 of 5" in captured and "continuing after 3 of 5" in captured
    for item, expected in zip(read_results(output).items, whole, strict=True):
        assert item["id"] == expected["id"] and item["nats"] == pytest.approx(expected["nats"], rel=1e-5)
    with pytest.raises(UserError, match="exists already"):
        main(command)


def test_another_seed_does_not_continue(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "a.json"
    (tmp_path / "a.json.partial-0").write_text(json.dumps({"recipe": {"seed": 1}}) + "\n")
    (problem,) = refused(folder, "--text", "def", "--output", output)
    assert "was begun with" in problem and "seed = 1, now 0" in problem


def test_a_model_compares_with_itself(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measured(folder, tmp_path, "--text", "def add", "--text", "print")
    file = str(tmp_path / "results.json")
    assert main(["compare", file, file]) == 0
    assert "+0.0000" in capsys.readouterr().out


@pytest.mark.parametrize(
    "options, message",
    [
        ([], "give what to score by one of --text, --data and --corpus"),
        (["--text", ""], "--text '': is empty"),
        (["--text", "a", "--limit", "0"], "--limit 0: must be at least 1"),
        (["--text", "a", "--rows", "5"], "rows = 5: must be a positive multiple of 4"),
        (["--text", "a", "--max-length", "49"], "--max-length 49: must be from 2 to the model's"),
        (["--text", "a", "--context", "48"], "--context 48: must be at least 0 and below"),
        (["--text", "a", "--held-out", "0.1"], "--held-out 0.1: goes with --corpus"),
        (["--corpus", "{tmp}"], "--corpus = '{tmp}': no .idx in this folder"),
        (["--text", "a", "--method", "block"], "method block needs one of at least 1"),
    ],
)
def test_refuses_bad_options(folder: Path, tmp_path: Path, options: list[str], message: str) -> None:
    (problem,) = refused(folder, *(option.format(tmp=tmp_path) for option in options))
    assert message.format(tmp=tmp_path) in problem


@pytest.mark.parametrize(
    "line, message",
    [
        (
            {"question": "a"},
            "in.jsonl:1: has the fields ['question']; expected text (see --text-key), prompt",
        ),
        ({"text": ""}, "in.jsonl:1: 'text' is empty"),
        ({"text": 3}, "in.jsonl:1: 'text' is not a text"),
        ({"prompt": "a"}, "in.jsonl:1: 'response' is missing or not a str"),
        ({"prompt": "a", "response": "b " * 60}, "in.jsonl:1: a prompt of 1 and"),
        ({**QUESTION, "answer": 3}, "in.jsonl:1: 'answer' = 3 is out of range; choices are 0 .. 2"),
        ({**QUESTION, "answer": "A"}, "in.jsonl:1: 'answer' = 'A' is not the number of a choice"),
        ({**QUESTION, "choices": ["x"]}, "in.jsonl:1: 'choices' has 1, and two are needed"),
        ({"choices": ["x", "y"], "answer": 0}, "in.jsonl:1: 'prompt' is missing"),
    ],
)
def test_refuses_records_by_file_and_line(
    folder: Path, tmp_path: Path, line: dict[str, Any], message: str
) -> None:
    (problem,) = refused(folder, "--data", jsonl(tmp_path / "in.jsonl", line))
    assert message in problem


def test_a_model_without_tokenizer_is_refused(tmp_path: Path) -> None:
    folder = write_model_folder(tmp_path / "model")
    for file in folder.glob("*token*"):
        file.unlink()
    (problem,) = refused(folder, "--text", "def")
    assert "no tokenizer" in problem


@pytest.mark.distributed
def test_ranks_share_the_work(folder: Path, tmp_path: Path) -> None:
    lines = [{**PAIR, "response": " return a" + " + b" * number} for number in range(5)]
    data = jsonl(tmp_path / "in.jsonl", *lines)
    alone = measured(folder, tmp_path, "--data", data)
    output = tmp_path / "shared.json"
    printed = run_ranks(
        2, TOOL, "likelihood", str(folder), "--data", data, "--rows", "8", "--output", str(output)
    )
    assert "5 responses" in printed and "shared.json: 5 items" in printed
    shared = read_results(output)
    assert [item["id"] for item in shared.items] == [item["id"] for item in alone.items]
    assert [item["nats"] for item in shared.items] == pytest.approx([each["nats"] for each in alone.items])
    with pytest.raises(UserError, match="several ranks share the work through a file"):
        check_model_options(Namespace(batch_size=8, output=None, overwrite=False), 2)
