"""`prepare_data.py --show` and `train.py --show` print what is trained."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models.chat_tokenizers import sentencepiece, smollm2
from rich.console import Console

from mdmscale.config.loading import load_config
from mdmscale.data.preparation.prepare_command import main
from mdmscale.data.preparation.show import print_samples, sample_text
from mdmscale.diffusion.sample import Sample
from mdmscale.system.errors import UserError
from mdmscale.train_command import main as train

CHAT = [
    {"role": "user", "content": "hi [bold]you[/bold]"},
    {"role": "assistant", "content": "yo"},
    {"role": "user", "content": "🙂\x1b"},
    {"role": "assistant", "content": "ünï"},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tokenizer with a chat template, and lines for it."""
    smollm2().save_pretrained(tmp_path / "tok")
    lines = [
        {"messages": CHAT},
        {"prompt": "3+4=", "completion": "7"},
        {"prompt": "<|im_end|>", "response": "a"},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def show(folder: Path, *options: str) -> None:
    command = [
        str(folder / "a.jsonl"),
        "--kind",
        "sft",
        "--tokenizer",
        str(folder / "tok"),
        "--show",
        *options,
    ]
    assert main(command) == 0


def test_what_is_trained_is_in_brackets_without_a_terminal(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    show(folder, "2", "--train-on", "all")
    text = capsys.readouterr().out
    assert f"{folder / 'a.jsonl'}:1: " in text and "2 samples, " in text
    assert "user\nhi [bold]you[/bold]<|im_end|>\n<|im_start|>assistant\n⟦yo<|im_end|>⟧" in text
    assert "🙂␛<|im_end|>\n<|im_start|>assistant\n⟦ünï<|im_end|>⟧" in text
    assert "3+4=⟦7<|im_end|>⟧" in text
    show(folder, "1")
    assert "assistant\nyo<|im_end|>" in capsys.readouterr().out
    assert sorted(path.name for path in folder.iterdir()) == ["a.jsonl", "tok"]


def test_a_bad_line_is_named_once_it_is_reached(folder: Path) -> None:
    show(folder, "2")
    with pytest.raises(UserError, match=r"a\.jsonl:3: the prompt has '<\|im_end\|>' written in it"):
        show(folder, "3")
    show(folder, "3", "--special-tokens", "text")


def test_the_command_says_what_it_lacks(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([str(folder / "a.jsonl"), "--kind", "sft", "--tokenizer", str(folder / "tok")])
    assert "--output DIR is required (without --show)" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--tokenizer", "t", "--show", str(folder / "a.jsonl")])
    assert (
        "argument --show: " in (message := capsys.readouterr().err)
        and "a.jsonl' is not a positive" in message
    )
    (folder / "a.jsonl").write_text("\n")
    with pytest.raises(UserError, match="no sample to show: the data holds none"):
        show(folder)
    with pytest.raises(UserError, match="--show needs --kind sft"):
        main([str(folder / "a.jsonl"), "--tokenizer", str(folder / "tok"), "--show"])


def test_colours_say_the_same_on_a_terminal() -> None:
    tokenizer = smollm2()
    ids = np.array([*tokenizer.encode("3+4="), *tokenizer.encode("7"), *[tokenizer.eos_token_id] * 6])
    sample = Sample(ids, np.arange(len(ids)) >= len(ids) - 7)
    text = sample_text(sample, tokenizer, is_coloured=True)
    assert text.plain == "3+4=7<|im_end|> (x6)"
    styles = {text.plain[span.start : span.end]: str(span.style) for span in text.spans}
    turn = Sample(np.array([tokenizer.convert_tokens_to_ids("<|im_start|>")]), np.array([True]))
    (span,) = sample_text(turn, tokenizer, is_coloured=True).spans
    assert "magenta" in str(span.style)  # special, though it is not one of EOS, BOS and the like
    assert "dim" in styles["3+4="] and "green" in styles["7"] and "green" in styles["<|im_end|> (x6)"]
    assert sample_text(sample, tokenizer, is_coloured=False).plain == "3+4=⟦7<|im_end|> (x6)⟧"
    for is_terminal, no_color in ((True, False), (True, True), (False, False)):
        file = io.StringIO()
        print_samples(
            [("x:1", sample)], tokenizer, Console(file=file, force_terminal=is_terminal, no_color=no_color)
        )
        assert ("⟦" in file.getvalue()) == (no_color or not is_terminal)


def test_spaces_at_the_edges_are_shown() -> None:
    """SentencePiece's decoder drops the space in front of a text, and so of each part decoded alone."""
    tokenizer = sentencepiece("first")
    ids = np.array(tokenizer.encode("hello to the assistant", add_special_tokens=False))
    trained = np.arange(len(ids)) >= 2
    whole = sample_text(Sample(ids, trained), tokenizer, is_coloured=False).plain
    assert whole.replace("⟦", "").replace("⟧", "") == "hello to the assistant"


def test_a_run_shows_its_samples_filled(
    tiny: dict[str, Any], write_config: Any, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are those of training, whether the run reads lines or shards, and the run's folder is not made."""
    tiny["model"]["tokenizer"] = str(folder / "tok")
    tiny["data"] = {
        "kind": "sft",
        "path": str(folder / "a.jsonl"),
        "sequence_length": 128,
        "fill_multiple": 128,
        "train_on": "all",
        "special_tokens": "read",
        "held_out": 0.0,
    }
    path = str(write_config(tiny))
    assert train(["--config", path, "--show"]) == 0
    of_lines = capsys.readouterr().out
    assert (
        "⟦yo<|im_end|>⟧" in of_lines and "⟦7<|im_end|> (x" in of_lines and "3 samples, 384 tokens" in of_lines
    )
    assert not Path(load_config(path, []).run.output_dir).exists()
    options = ["--sequence-length", "128", "--train-on", "all", "--special-tokens", "read"]
    command = [str(folder / "a.jsonl"), "--kind", "sft", "--tokenizer", str(folder / "tok")]
    assert main([*command, *options, "--output", str(folder / "out")]) == 0
    capsys.readouterr()
    assert train(["--config", path, "--show", f"data.path={folder / 'out'}"]) == 0
    of_shards = capsys.readouterr().out
    assert "⟦yo<|im_end|>⟧" in of_shards and "⟦7<|im_end|> (x" in of_shards
    assert json.loads((folder / "out/dataset.json").read_text())["train_on"] == "all"
    with pytest.raises(UserError, match=r"data\.train_on = last, but .*shard-00000 was prepared with"):
        train(["--config", path, "--show", f"data.path={folder / 'out'}", "data.train_on=last"])
