"""The command: what it prints, in process where that suffices, and how it fails, as a user meets it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from mdmscale.errors import UserError
from mdmscale.generation import denoise as module
from mdmscale.generation.cli import _print_sample, main
from mdmscale.generation.denoise import Predict, denoise, masked_predictor
from mdmscale.generation.loading import LoadedModel, load_model, read_folder_facts
from mdmscale.generation.prompts import decode_response, encode_prompt, shorten

TOOL = Path(__file__).parents[2] / "tools" / "generate.py"
CHAT_TEMPLATE = (
    "{% for message in messages %}[{{ message.role }}]{{ message.content }}{% endfor %}"
    "{% if add_generation_prompt %}[a]{% endif %}"
)


def run_tool(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOOL), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def loaded(model_folder: Path) -> LoadedModel:
    return load_model(read_folder_facts(model_folder))


def generate(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The command's stdout, from a call in this process."""
    assert main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out


def test_tool_prints_samples_to_stdout_and_the_speed_to_stderr(model_folder: Path) -> None:
    result = run_tool(
        model_folder,
        "--prompt",
        "def add",
        "--num-samples",
        2,
        "--length",
        8,
        "--steps",
        4,
        "--temperature",
        1,
    )
    assert result.returncode == 0, result.stderr
    assert [line for line in result.stdout.splitlines() if line.startswith("---")] == [
        "--- sample 1 of 2 | def add ---",
        "--- sample 2 of 2 | def add ---",
    ]
    (summary,) = result.stderr.splitlines()
    assert summary.startswith("2 x 8 tokens in 4 steps each: ") and "tokens/s" in summary


def test_one_sample_in_a_pipe_is_the_bare_text(
    model_folder: Path, loaded: LoadedModel, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (
        model_folder,
        "--prompt",
        "def add",
        "--length",
        8,
        "--steps",
        4,
        "--temperature",
        1,
        "--seed",
        5,
    )
    prompt = encode_prompt(loaded, "def add", chat=False)
    mask = loaded.facts.mask_token_id
    tokens = denoise(
        masked_predictor(loaded.model, logit_shift=False),
        torch.tensor([[*prompt.token_ids, *[mask] * 8]], device=loaded.device),
        mask_token_id=mask,
        steps=4,
        generator=torch.Generator(loaded.device).manual_seed(5),
        temperature=1.0,
    )
    expected = decode_response(
        loaded, prompt.token_ids, tokens[0, len(prompt.token_ids) :].tolist(), raw=False
    )
    assert generate(capsys, *arguments) == expected + "\n"


def test_the_seed_reproduces_and_matters(model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = (model_folder, "--length", 16, "--steps", 4, "--temperature", 1, "--raw")
    first, again, other = (generate(capsys, *options, "--seed", seed) for seed in (1, 1, 2))
    assert first == again != other


def test_a_prompts_samples_do_not_depend_on_the_other_prompts(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = (model_folder, "--length", 8, "--steps", 2, "--temperature", 1, "--num-samples", 2)
    alone = generate(capsys, *options, "--prompt", "def")
    after_another = generate(capsys, *options, "--prompt", "print(step)", "--prompt", "def")
    assert after_another.endswith(alone)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("print(step)\n\ndef\n")
    assert generate(capsys, *options, "--prompt-file", prompts) == after_another


def test_batch_size_bounds_the_rows_and_keeps_the_number_of_samples(
    model_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = []
    original = module.denoise

    def recording_denoise(predict: Predict, tokens: torch.Tensor, **options: Any) -> torch.Tensor:
        rows.append(len(tokens))
        return original(predict, tokens, **options)

    monkeypatch.setattr(module, "denoise", recording_denoise)
    output = generate(capsys, model_folder, "--num-samples", 5, "--batch-size", 2, "--length", 4)
    assert rows == [2, 2, 1]
    assert output.count("--- sample ") == 5


def test_the_folders_logit_shift_is_used(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shifted = tmp_path / "shifted"
    shutil.copytree(model_folder, shifted)
    config = json.loads((shifted / "config.json").read_text())
    config["mdm"]["logit_shift"] = True
    (shifted / "config.json").write_text(json.dumps(config))
    options = ("--prompt", "def add(a, b)", "--length", 8, "--raw")
    assert generate(capsys, shifted, *options) != generate(capsys, model_folder, *options)


def test_text_ends_before_the_first_eos_unless_raw(loaded: LoadedModel) -> None:
    tokenizer = loaded.tokenizer
    response = [
        *tokenizer.encode(" a"),
        tokenizer.eos_token_id,
        *tokenizer.encode(" b"),
        tokenizer.eos_token_id,
    ]
    assert decode_response(loaded, tokenizer.encode("x"), response, raw=False) == " a"
    assert decode_response(loaded, tokenizer.encode("x"), response, raw=True) == " a</s> b</s>"


def test_eos_in_the_prompt_does_not_cut_the_response(loaded: LoadedModel) -> None:
    tokenizer = loaded.tokenizer
    prompt = [*tokenizer.encode("x"), tokenizer.eos_token_id]
    assert decode_response(loaded, prompt, tokenizer.encode(" a"), raw=False) == " a"


def test_ids_beyond_the_tokenizer_decode_to_nothing(loaded: LoadedModel) -> None:
    assert decode_response(loaded, [], [319, *loaded.tokenizer.encode("a")], raw=False) == "a"


def test_chat_renders_the_template(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaded.tokenizer, "chat_template", CHAT_TEMPLATE)
    prompt = encode_prompt(loaded, "def", chat=True)
    assert loaded.tokenizer.decode(prompt.token_ids) == "[user]def[a]"


def test_a_template_that_refuses_is_the_users_to_mend(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loaded.tokenizer, "chat_template", "{{ raise_exception('needs a system message') }}")
    with pytest.raises(UserError, match="needs a system message"):
        encode_prompt(loaded, "def", chat=True)


def test_prompts_that_the_model_cannot_take(
    loaded: LoadedModel, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="contains the mask token"):
        encode_prompt(loaded, "a <|mask|> b", chat=False)
    with pytest.raises(UserError, match="no chat template"):
        encode_prompt(loaded, "def", chat=True)
    with pytest.raises(UserError, match=r"after a prompt of \d+ tokens: exceeds .* = 48"):
        main([str(model_folder), "--prompt", "print(step) " * 20, "--length", "8"])
    monkeypatch.setattr(type(loaded.tokenizer), "__call__", lambda *_, **__: {"input_ids": [400]})
    with pytest.raises(UserError, match="token id 400"):
        encode_prompt(loaded, "def", chat=False)


def test_a_terminal_gets_a_rule_and_no_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    _print_sample(
        Console(force_terminal=True, color_system=None, width=40), "a\x1b[2Jb [bold]\n\tc", "sample 1 of 1"
    )
    rule, *text = capsys.readouterr().out.splitlines()
    assert rule.startswith("sample 1 of 1 ─")
    assert "\n".join(text).expandtabs() == "a\N{REPLACEMENT CHARACTER}[2Jb [bold]\n\tc".expandtabs()


def test_long_prompts_are_shortened_in_titles() -> None:
    assert shorten("a\n  b") == "a b"
    assert shorten("x" * 60) == "x" * 47 + "..."


@pytest.mark.parametrize(
    "options, message",
    [
        (["--length", "49"], "--length 49: exceeds the model's max_position_embeddings = 48"),
        (["--length", "8", "--steps", "9"], "--steps 9: exceeds --length 8"),
        (["--length", "0"], "--length 0: must be at least 1"),
        (["--num-samples", "0"], "--num-samples 0: must be at least 1"),
        (["--batch-size", "0"], "--batch-size 0: must be at least 1"),
        (["--length", "8", "--steps", "0"], "--steps 0: must be at least 1"),
        (["--temperature", "-1"], "--temperature -1.0: must be 0 or a positive number"),
        (["--temperature", "nan"], "--temperature nan: must be 0 or a positive number"),
        (["--seed", "-1"], "--seed -1: must be from 0"),
        (["--prompt", ""], "--prompt '': is empty"),
        (["--chat"], "--chat: needs a --prompt"),
        (["--prompt-file", "{tmp}/missing.txt"], "missing.txt: cannot be read"),
        (["--prompt-file", "{tmp}/empty.txt"], "empty.txt: is empty"),
    ],
)
def test_refuses_bad_options(model_folder: Path, tmp_path: Path, options: list[str], message: str) -> None:
    (tmp_path / "empty.txt").write_text("\n\n")
    with pytest.raises(UserError) as caught:
        main([str(model_folder), *(option.format(tmp=tmp_path) for option in options)])
    (problem,) = caught.value.problems
    assert message in problem


@pytest.mark.parametrize("options", [["--length", "8", "--steps", "9"], ["--prompt", "x", "--length", "48"]])
def test_tool_fails_with_one_line_and_status_2(model_folder: Path, options: list[str]) -> None:
    result = run_tool(model_folder, *options)
    assert result.returncode == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: --")


def test_tool_names_a_folder_that_is_no_model(tmp_path: Path) -> None:
    result = run_tool(tmp_path)
    assert result.returncode == 2
    assert result.stderr.splitlines() == [
        f"error: {tmp_path}: neither a Hugging Face model folder (no config.json) nor a run folder (no hf/)"
    ]


def test_help_teaches_without_importing_torch() -> None:
    code = (
        "import sys\n"
        "from mdmscale.generation.cli import build_parser\n"
        "print(build_parser().format_help())\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert "examples:" in result.stdout and "--prompt-file" in result.stdout
