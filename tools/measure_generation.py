#!/usr/bin/env python
"""Measure what blocks, thresholds and caches cost and save, on a task with one right answer.

    python tools/measure_generation.py [--steps 1500] [--json FILE]

A small model learns running sums: response digit i is the sum of the prompt's first i digits, modulo 4. A
digit is hard to predict alone and easy to predict from its neighbour. The script then samples the model in
several ways on the same prompts. It reports the share of fully correct responses and the passes they took.
The figures of docs/generation.md come from this script.
"""

import argparse
import json
import math
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from mdmscale.generation import GenerationOptions, LoadedModel, Request, encode_ids, generate, load_model

NUM_DIGITS = 4
WIDTH = 16  # digits of a prompt
MASK, SEPARATOR, EOS = NUM_DIGITS, NUM_DIGITS + 1, NUM_DIGITS + 2
VOCAB = NUM_DIGITS + 3


def make_examples(num: int, generator: torch.Generator) -> torch.Tensor:
    """Digits, a separator, their running sums modulo 4: int64 [num, 2 WIDTH + 1]."""
    digits = torch.randint(0, NUM_DIGITS, (num, WIDTH), generator=generator)
    return torch.cat([digits, torch.full((num, 1), SEPARATOR), digits.cumsum(dim=1) % NUM_DIGITS], dim=1)


def train_model(steps: int, hidden: int = 96, batch: int = 64) -> LlamaForCausalLM:
    """A model trained with the masked diffusion loss, t stratified over the batch."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=64,
        initializer_range=0.06,
        bos_token_id=None,
        eos_token_id=EOS,
        use_cache=False,
    )
    config.is_causal = False
    config.mdm = {"mask_token_id": MASK, "logit_shift": False, "eps": 1e-3, "source": "scratch"}
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.98))
    for step in range(steps):
        rate = 0.5 * (1 + math.cos(math.pi * step / steps)) * min(1, (step + 1) / 50)
        optimizer.param_groups[0]["lr"] = 2e-3 * rate
        tokens = make_examples(batch, generator)
        t = ((torch.arange(batch) + torch.rand(batch, generator=generator)) / batch)[:, None].clamp(min=1e-3)
        is_masked = torch.rand(tokens.shape, generator=generator) < t
        is_masked[:, : WIDTH + 1] = False
        logits = model(input_ids=tokens.masked_fill(is_masked, MASK)).logits
        losses = F.cross_entropy(logits[is_masked], tokens[is_masked], reduction="none")
        loss = (losses / t.expand_as(tokens)[is_masked]).sum() / (batch * WIDTH)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model.eval()


def open_model(model: LlamaForCausalLM, folder: Path, dtype: str = "fp32") -> LoadedModel:
    """The model as users have it: a folder, opened."""
    vocab = {
        **{str(digit): digit for digit in range(NUM_DIGITS)},
        "<|mask|>": MASK,
        ">": SEPARATOR,
        "</s>": EOS,
    }
    tokenizer = Tokenizer(WordLevel(vocab, unk_token="</s>"))
    tokenizer.pre_tokenizer = Split("", "isolated")
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", mask_token="<|mask|>"
    ).save_pretrained(folder)
    return load_model(folder, dtype)


def make_tests(loaded: LoadedModel, num: int) -> tuple[list[Request], list[list[int]]]:
    """Prompts that training has not drawn (4^16 are possible), and what they become."""
    examples = make_examples(num, torch.Generator().manual_seed(1)).tolist()
    return [encode_ids(loaded, example[: WIDTH + 1], WIDTH) for example in examples], examples


def measure(
    loaded: LoadedModel, requests: list[Request], answers: list[list[int]], options: GenerationOptions
) -> dict[str, float]:
    """Share of right responses, with its standard error, passes a text, and seconds."""
    started = time.perf_counter()
    results = list(generate(loaded, requests, options, batch_size=100))
    seconds = time.perf_counter() - started
    accuracy = sum(each.token_ids == answer for each, answer in zip(results, answers, strict=True)) / len(
        results
    )
    return {
        "accuracy": accuracy,
        "error": math.sqrt(accuracy * (1 - accuracy) / len(results)),
        "passes": sum(each.num_forwards for each in results) / len(results),
        "seconds": seconds,
    }


WAYS: dict[str, dict[str, Any]] = {
    "one token a pass": {},
    "blocks of 4, one token a pass": {"block_length": 4},
    "threshold 0.9": {"threshold": 0.9},
    "blocks of 4, threshold 0.9": {"block_length": 4, "threshold": 0.9},
    "blocks of 4, threshold 0.9, cache": {"block_length": 4, "threshold": 0.9, "cache": "prefix"},
    "blocks of 4, threshold 0.9, dual cache": {"block_length": 4, "threshold": 0.9, "cache": "dual"},
    "blocks of 4, cache": {"block_length": 4, "cache": "prefix"},
    "blocks of 4, dual cache": {"block_length": 4, "cache": "dual"},
    "blocks of 4, factor 0.2": {"block_length": 4, "factor": 0.2},
    "blocks of 4, factor 1": {"block_length": 4, "factor": 1.0},
    "8 steps": {"steps": 8},
    "4 steps": {"steps": 4},
    "1 step": {"steps": 1},
}


def measure_ways(loaded: LoadedModel, num: int, repeats: int = 3) -> dict[str, dict[str, float]]:
    """Every way in turn, `repeats` times over, so that a busy machine slows them all; medians of seconds."""
    requests, answers = make_tests(loaded, num)
    rounds = [
        {
            way: measure(loaded, requests, answers, GenerationOptions(length=WIDTH, **values))
            for way, values in WAYS.items()
        }
        for _ in range(repeats)
    ]
    return {
        way: rounds[0][way] | {"seconds": median(each[way]["seconds"] for each in rounds)} for way in WAYS
    }


def count_changed(loaded: LoadedModel, num: int) -> int:
    """Texts that come out otherwise in batches of 64 than alone."""
    requests, _ = make_tests(loaded, num)
    options = GenerationOptions(length=WIDTH, temperature=1.0, block_length=4)
    alone, together = (list(generate(loaded, requests, options, size)) for size in (1, 64))
    return sum(one.token_ids != other.token_ids for one, other in zip(alone, together, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=1500, help="training steps of the model (default: 1500)")
    parser.add_argument("--num", type=int, default=1000, help="prompts (default: 1000)")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    model = train_model(arguments.steps)
    with tempfile.TemporaryDirectory() as folder:
        loaded = open_model(model, Path(folder))
        figures = measure_ways(loaded, arguments.num)
        changed = {
            dtype: count_changed(open_model(model, Path(folder), dtype), 64) for dtype in ("fp32", "bf16")
        }
    table = Table(title=f"{arguments.num} prompts of {WIDTH} digits to sum up")
    for heading in ("way", "right", "passes a text", "seconds"):
        table.add_column(heading, justify="left" if heading == "way" else "right")
    for way, values in figures.items():
        right = f"{values['accuracy']:.3f} ± {values['error']:.3f}"
        table.add_row(way, right, f"{values['passes']:.2f}", f"{values['seconds']:.2f}")
    console = Console(width=100)
    console.print(table)
    console.print(f"texts of 64 that differ between batch sizes 1 and 64: {changed}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"ways": figures, "changed": changed}, indent=2) + "\n")


if __name__ == "__main__":
    main()
