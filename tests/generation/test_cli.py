"""The generate command: its output and its errors. Most tests call it in this process."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import run_ranks, run_script, start_script
from rich.console import Console
from workers.forked import Job

from mdmscale.generation import (
    GenerationOptions,
    LoadedModel,
    encode_infilling,
    encode_prompt,
    generate,
    stream,
)
from mdmscale.generation.display import frame_text, print_sample
from mdmscale.generation.generate_command import build_parser, main, options_of
from mdmscale.generation.presets import preset_options
from mdmscale.system.errors import UserError

TOOL = Path(__file__).parents[2] / "tools" / "generate.py"


def run_tool(*arguments: object) -> Job:
    return run_script(str(TOOL), *map(str, arguments))


def run_main(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The command's stdout when it is called in this process."""
    assert main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out


def prompts_file(folder: Path, num: int) -> Path:
    file = folder / "in.jsonl"
    lines = [{"prompt": "def add(a, b)"[: 3 + number], "id": number} for number in range(num)]
    file.write_text("\n".join(map(json.dumps, lines)))
    return file


def test_tool_prints_samples_to_stdout_and_the_speed_to_stderr(model_folder: Path) -> None:
    options = ("--num-samples", 2, "--length", 8, "--steps", 4, "--temperature", 1)
    result = run_tool(model_folder, "--prompt", "def add", *options)
    assert result.returncode == 0, result.stderr
    assert [line for line in result.stdout.splitlines() if line.startswith("---")] == [
        "--- sample 1 of 2 | def add ---",
        "--- sample 2 of 2 | def add ---",
    ]
    (summary,) = result.stderr.splitlines()
    assert summary.startswith("2 texts, 16 tokens in 4.0 passes a text: ") and "tokens/s on" in summary


def test_one_sample_in_a_pipe_is_the_text_that_python_gives(
    model_folder: Path, loaded: LoadedModel, capsys: pytest.CaptureFixture[str]
) -> None:
    values = {"length": 8, "block_length": 4, "temperature": 1.0, "top_p": 0.9, "guidance": 0.5, "seed": 5}
    options = [part for name, value in values.items() for part in (f"--{name.replace('_', '-')}", value)]
    request = encode_prompt(loaded, "def add", 8)
    (expected,) = generate(loaded, [request], GenerationOptions(**values))  # type: ignore[arg-type]
    assert run_main(capsys, model_folder, "--prompt", "def add", *options) == expected.text + "\n"


def test_a_preset_sets_what_is_not_given(
    model_folder: Path, loaded: LoadedModel, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--preset", "dream", "--length", 8, "--top-k", 9, "--seed", 3)
    request = encode_prompt(loaded, "def add", 8)
    expected = preset_options("dream", length=8, top_k=9, seed=3)
    assert expected.temperature == 0.2
    (generation,) = generate(loaded, [request], expected)
    assert run_main(capsys, model_folder, "--prompt", "def add", *options) == generation.text + "\n"


@pytest.mark.parametrize("words, cache", [([], None), (["--cache"], "prefix"), (["--cache", "dual"], "dual")])
def test_options_that_are_not_given_have_their_defaults(words: list[str], cache: str | None) -> None:
    arguments = build_parser().parse_args(["model", "--block-length", "4", *words])
    assert options_of(arguments) == GenerationOptions(block_length=4, cache=cache)  # type: ignore[arg-type]


def test_infilling_from_the_command_line(
    model_folder: Path, loaded: LoadedModel, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "for <|mask|> in <|mask|>:"
    (expected,) = generate(loaded, [encode_infilling(loaded, text)], GenerationOptions())
    assert run_main(capsys, model_folder, "--text", text) == expected.text + "\n"


def test_a_prompts_samples_do_not_depend_on_the_other_prompts(
    model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = (model_folder, "--length", 8, "--temperature", 1, "--num-samples", 2)
    alone = run_main(capsys, *options, "--prompt", "def")
    others = run_main(capsys, *options, "--prompt", "print(step)", "--prompt", "def", "--batch-size", 3)
    assert others.endswith(alone)


def test_the_folders_logit_shift_is_used(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shifted = tmp_path / "shifted"
    shutil.copytree(model_folder, shifted)
    config = json.loads((shifted / "config.json").read_text())
    config["mdm"]["logit_shift"] = True
    (shifted / "config.json").write_text(json.dumps(config))
    options = ("--prompt", "def add(a, b)", "--length", 8, "--raw")
    assert run_main(capsys, shifted, *options) != run_main(capsys, model_folder, *options)


def test_watch_shows_every_pass_and_keeps_stdout_to_the_texts(
    model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(model_folder), "--text", "for <|mask|> in <|mask|>:", "--watch"]) == 0
    captured = capsys.readouterr()
    first, second, summary = captured.err.splitlines()
    assert first.startswith("   1 | for ") and first.count("░") == 1
    assert second.startswith("   2 | for ") and "░" not in second
    assert captured.out == second.removeprefix("   2 | ") + "\n"
    assert summary.startswith("1 texts, 2 tokens in 2.0 passes")


def test_watch_tells_given_masked_new_and_earlier_tokens_apart(loaded: LoadedModel) -> None:
    request = encode_prompt(loaded, "def", 3)
    _, second, _ = stream(loaded, [request], GenerationOptions(length=3))
    text = frame_text(loaded, request, second, 0)
    assert sorted(str(span.style) for span in text.spans if span.end > span.start) == [
        "bold green",
        "dim",
        "dim",
    ]
    assert text.plain.startswith("def") and text.plain.count("░") == 1


def test_jsonl_in_and_out(
    model_folder: Path, loaded: LoadedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.jsonl"
    options = ("--length", 6, "--num-samples", 2, "--temperature", 1, "--batch-size", 3)
    run_main(capsys, model_folder, "--input", prompts_file(tmp_path, 4), "--output", output, *options)
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(line["id"], line["sample"]) for line in lines] == [(i, k) for i in range(4) for k in range(2)]
    requests = [each for line in lines[::2] for each in encode_prompt(loaded, line["prompt"], 6).samples(2)]
    expected = generate(loaded, requests, GenerationOptions(length=6, temperature=1.0))
    assert [line["generated"] for line in lines] == [each.text for each in expected]
    assert {line["num_forwards"] for line in lines} == {6}


@pytest.mark.distributed
def test_ranks_share_a_file_and_an_interrupted_command_continues(model_folder: Path, tmp_path: Path) -> None:
    source = prompts_file(tmp_path, 7)
    options = ("--input", source, "--length", 6, "--temperature", 1, "--batch-size", 2)
    alone = tmp_path / "alone.jsonl"
    assert main([str(part) for part in (model_folder, *options, "--output", alone)]) == 0

    shared = tmp_path / "shared.jsonl"
    half = tmp_path / "shared.jsonl.partial-0"
    (tmp_path / "slowly.py").write_text(SLOWLY)
    arguments = [str(part) for part in (model_folder, *options, "--output", shared)]
    killed = start_script(str(tmp_path / "slowly.py"), *arguments)
    deadline = time.monotonic() + 120
    while not (half.exists() and half.read_bytes().count(b"\n") >= 3):
        assert killed.poll() is None and time.monotonic() < deadline, killed.stderr
        time.sleep(0.05)
    killed.kill()
    assert not shared.exists()

    output = run_ranks(2, TOOL, *arguments)
    assert "continuing after" in output and "shared.jsonl: 7 lines" in output
    assert shared.read_bytes() == alone.read_bytes()
    assert not list(tmp_path.glob("*.partial-*"))


# The tool with a pause after each batch, so that the test can kill it when half the texts are done.
SLOWLY = """
import sys, time
from mdmscale.system.partial_output import PartialOutput
from mdmscale.generation.generate_command import main
append = PartialOutput.append
def append_and_wait(self, lines):
    append(self, lines)
    time.sleep(2)
PartialOutput.append = append_and_wait
main(sys.argv[1:])
"""


def test_a_terminal_gets_a_rule_and_no_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(force_terminal=True, color_system=None, width=40)
    print_sample(console, "a\x1b[2Jb [bold]\n\tc", "sample 1 of 1")
    rule, *text = capsys.readouterr().out.splitlines()
    assert rule.startswith("sample 1 of 1 ─")
    assert "\n".join(text).expandtabs() == "a\N{REPLACEMENT CHARACTER}[2Jb [bold]\n\tc".expandtabs()


@pytest.mark.parametrize(
    "options, message",
    [
        (["--length", "49"], "length = 49: exceeds the model's max_position_embeddings = 48"),
        (["--num-samples", "0"], "--num-samples 0: must be at least 1"),
        (["--batch-size", "0"], "--batch-size 0: must be at least 1"),
        (["--input", "{tmp}/in.jsonl"], "in.jsonl: needs --output FILE"),
        (["--overwrite"], "--overwrite: goes with --output"),
        (["--output", "{tmp}/out.jsonl", "--watch"], "--watch and --output: give only one of them"),
        (
            ["--input", "{tmp}/in.jsonl", "--output", "{tmp}/in.jsonl"],
            "is also the --input, which would be overwritten",
        ),
        (
            ["--text", "a <|mask|> b", "--length", "8", "--block-length", "4", "--cache"],
            "cache: 'a <|mask|> b' has masks anywhere",
        ),
        (["--text", "no mask here"], "has no <|mask|> where tokens are wanted"),
    ],
)
def test_refuses_bad_options(model_folder: Path, tmp_path: Path, options: list[str], message: str) -> None:
    prompts_file(tmp_path, 1)
    with pytest.raises(UserError) as caught:
        main([str(model_folder), *(option.format(tmp=tmp_path) for option in options)])
    (problem,) = caught.value.problems
    assert message in problem


def test_special_tokens_are_refused_read_or_taken_as_text(
    model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(model_folder), "--prompt", "def</s>add", "--length", "2"]
    with pytest.raises(UserError, match=r"prompt 'def</s>add': the prompt has '</s>' written in it"):
        main(command)
    for meaning in ("read", "text"):
        assert main([*command, "--special-tokens", meaning, "--raw"]) == 0
    assert capsys.readouterr().out


def test_all_sources_that_do_not_fit_are_named(model_folder: Path, tmp_path: Path) -> None:
    lines = ["x " * 60] * 14
    (tmp_path / "in.txt").write_text("\n".join(lines))
    with pytest.raises(UserError) as caught:
        main([str(model_folder), "--prompt-file", str(tmp_path / "in.txt"), "--length", "8"])
    assert len(caught.value.problems) == 11 and caught.value.problems[-1] == "and 4 more like these"


def test_several_ranks_need_an_output(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="several ranks share the work through a file; give --output"):
        main([str(model_folder), "--length", "4"])


@pytest.mark.parametrize("options", [["--length", "8", "--steps", "9"], ["--prompt", "x", "--length", "48"]])
def test_tool_fails_with_one_line_and_status_2(model_folder: Path, options: list[str]) -> None:
    result = run_tool(model_folder, *options)
    assert result.returncode == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")


def test_tool_names_a_folder_that_is_no_model(tmp_path: Path) -> None:
    result = run_tool(tmp_path)
    assert result.returncode == 2
    assert result.stderr.splitlines() == [
        f"error: {tmp_path}: neither a Hugging Face model folder (no config.json), a run folder (no "
        "config.yaml) nor a checkpoint (no state.json)"
    ]


def test_help_teaches_without_importing_torch() -> None:
    code = (
        "import sys\n"
        "from mdmscale.generation.generate_command import build_parser\n"
        "print(build_parser().format_help())\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert "examples:" in result.stdout and "--prompt-file" in result.stdout
