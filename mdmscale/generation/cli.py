"""`generate`: sample text from a model folder or a finished run. Samples go to stdout, all else to stderr."""

import argparse
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mdmscale.errors import UserError
from mdmscale.generation.loading import (
    FolderFacts,
    LoadedModel,
    find_model_folder,
    load_model,
    read_folder_facts,
)
from mdmscale.generation.prompts import Prompt, decode_response, encode_prompt, prompt_texts, shorten

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

EXAMPLES = """\
examples:
  # what the quickstart's model writes by itself
  python tools/generate.py runs/quickstart --num-samples 4 --length 64 --temperature 1

  # continue a prompt: four tokens a step, drawn from the model's distribution instead of the likeliest
  python tools/generate.py runs/quickstart --prompt "def main(" --length 64 --steps 16 --temperature 1

  # answer one question a line, in the chat template of the model's tokenizer
  python tools/generate.py path/to/model --chat --prompt-file questions.txt --length 256 > answers.txt
"""


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(
        description="Sample text from a masked diffusion language model by denoising a run of mask tokens.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "path", type=Path, metavar="PATH", help="Hugging Face model folder, or the folder of a finished run"
    )
    prompts = parser.add_mutually_exclusive_group()
    prompts.add_argument(
        "--prompt", action="append", metavar="TEXT", help="text to continue; may be repeated"
    )
    prompts.add_argument("--prompt-file", type=Path, metavar="FILE", help="UTF-8 file with one prompt a line")
    parser.add_argument(
        "--chat", action="store_true", help="put each prompt into the tokenizer's chat template"
    )
    parser.add_argument(
        "--num-samples",
        type=int,
        default=1,
        metavar="N",
        help="samples of each prompt, equal at temperature 0 unless remasking is random (default: 1)",
    )
    parser.add_argument(
        "--batch-size", type=int, default=8, metavar="N", help="samples denoised together (default: 8)"
    )
    parser.add_argument(
        "--length", type=int, default=128, metavar="N", help="tokens of each response (default: 128)"
    )
    parser.add_argument(
        "--steps",
        type=int,
        metavar="N",
        help="forward passes, 1 to --length: more is better and slower (default: --length)",
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=0.0,
        metavar="T",
        help="0: the likeliest token; 1: as the model predicts (default: 0)",
    )
    parser.add_argument(
        "--remasking",
        choices=("confidence", "random"),
        default="confidence",
        help="commit the most confident predictions first, or random ones (default: confidence)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the samples (default: 0)")
    parser.add_argument(
        "--raw", action="store_true", help="show all tokens: no cut at EOS, special tokens included"
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command.

    Raises:
        UserError: if an option, the prompts or the model folder do not do.
    """
    options = build_parser().parse_args(argv)
    _check_numbers(options)
    options.steps = options.length if options.steps is None else options.steps
    texts = prompt_texts(options)
    facts = read_folder_facts(find_model_folder(options.path))
    _check_length(facts, prompt_length=0, length=options.length)

    from rich.console import Console
    from transformers.utils import logging

    logging.disable_progress_bar()
    loaded = load_model(facts)
    prompts = [encode_prompt(loaded, text, chat=options.chat) for text in texts]
    for prompt in prompts:
        _check_length(facts, len(prompt.token_ids), options.length)
    _sample_and_print(loaded, prompts, options, output=Console(), notes=Console(stderr=True, highlight=False))
    return 0


def _check_numbers(options: argparse.Namespace) -> None:
    problems = [
        f"--{name.replace('_', '-')} {getattr(options, name)}: must be at least 1"
        for name in ("num_samples", "batch_size", "length", "steps")
        if getattr(options, name) is not None and getattr(options, name) < 1
    ]
    if options.steps is not None and options.steps > options.length >= 1:
        problems.append(
            f"--steps {options.steps}: exceeds --length {options.length}; each step commits at least one"
        )
    if not (math.isfinite(options.temperature) and options.temperature >= 0):
        problems.append(f"--temperature {options.temperature}: must be 0 or a positive number")
    if not 0 <= options.seed < 2**63:
        problems.append(f"--seed {options.seed}: must be from 0 to 2^63 - 1")
    if problems:
        raise UserError(*problems)


def _check_length(facts: FolderFacts, prompt_length: int, length: int) -> None:
    if prompt_length + length > facts.max_length:
        prompt = f" after a prompt of {prompt_length} tokens" if prompt_length else ""
        raise UserError(
            f"--length {length}{prompt}: exceeds the model's max_position_embeddings = {facts.max_length}"
        )


def _sample_and_print(
    loaded: LoadedModel,
    prompts: list[Prompt],
    options: argparse.Namespace,
    output: "Console",
    notes: "Console",
) -> None:
    """Sample each prompt in turn, print its samples as soon as they are there, and the speed at the end."""
    from rich.progress import Progress

    started = time.perf_counter()
    total = options.num_samples * len(prompts)
    num_forwards = len(prompts) * math.ceil(options.num_samples / options.batch_size) * options.steps
    progress = Progress(console=notes, transient=True, disable=not notes.is_terminal)
    progress.add_task("denoising", total=num_forwards)
    for prompt in prompts:
        with progress:  # the bar is off the screen while samples are printed
            responses = list(_responses(loaded, prompt, options, progress))
        for number, response_ids in enumerate(responses, start=1):
            title = f"sample {number} of {options.num_samples}"
            title += f" | {shorten(prompt.text)}" if prompt.text else ""
            text = decode_response(loaded, prompt.token_ids, response_ids, raw=options.raw)
            _print_sample(output, text, title if output.is_terminal or total > 1 else None)
    seconds = time.perf_counter() - started
    notes.print(
        f"{total} x {options.length} tokens in {options.steps} steps each: {seconds:.1f} s, "
        f"{total * options.length / seconds:.0f} tokens/s on {loaded.device.type}"
    )


def _responses(
    loaded: LoadedModel, prompt: Prompt, options: argparse.Namespace, progress: "Progress"
) -> Iterator[list[int]]:
    """Token ids of `options.num_samples` responses; a prompt's samples do not depend on the other prompts."""
    import torch

    from mdmscale.generation.denoise import denoise, masked_predictor

    facts = loaded.facts
    predict_masked = masked_predictor(loaded.model, facts.logit_shift)

    def predict(tokens: torch.Tensor, is_masked: torch.Tensor) -> torch.Tensor:
        logits = predict_masked(tokens, is_masked)
        progress.advance(progress.task_ids[0])
        return logits

    generator = torch.Generator(loaded.device).manual_seed(options.seed)
    token_ids = prompt.token_ids + [facts.mask_token_id] * options.length
    row = torch.tensor(token_ids, device=loaded.device)  # [length]
    for first in range(0, options.num_samples, options.batch_size):
        rows = min(options.batch_size, options.num_samples - first)
        tokens = denoise(
            predict,
            row.repeat(rows, 1),  # [rows, length]
            mask_token_id=facts.mask_token_id,
            steps=options.steps,
            generator=generator,
            temperature=options.temperature,
            remasking=options.remasking,
        )
        yield from tokens[:, len(prompt.token_ids) :].tolist()


def _print_sample(output: "Console", text: str, title: str | None) -> None:
    """On a terminal a rule and the text; elsewhere the bare text, under a plain line where it has a title."""
    from rich.text import Text

    if title is not None and output.is_terminal:
        output.rule(Text(title), align="left", style="dim")
    elif title is not None:
        print(f"--- {title} ---", file=output.file)
    if output.is_terminal:
        # Control characters, which an undertrained model may well write, would upset the terminal.
        shown = "".join(
            char if char.isprintable() or char in "\n\t" else "\N{REPLACEMENT CHARACTER}" for char in text
        )
        output.print(Text(shown), soft_wrap=True)
    else:
        print(text, file=output.file)
