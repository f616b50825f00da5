"""Exact match: the share of test prompts whose generated response is the right one."""

import json
from itertools import groupby
from pathlib import Path

from mdmscale.errors import UserError
from mdmscale.generation.loading import load_model, read_folder_facts
from mdmscale.generation.prompts import decode_response, encode_prompt


def read_tests(path: Path) -> list[tuple[str, str]]:
    """(prompt, response) of every line.

    Raises:
        UserError: naming the line that has none.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--test {path}: cannot be read: {error}") from None
    tests = []
    for number, line in enumerate(lines, start=1):
        try:
            values = json.loads(line)
            prompt, response = values["prompt"], values["response"]
        except (ValueError, KeyError, TypeError):
            raise UserError(
                f'--test {path}: line {number} is no {{"prompt": ..., "response": ...}}'
            ) from None
        tests.append((prompt, response))
    if not tests:
        raise UserError(f"--test {path}: is empty")
    return tests


def exact_match(folder: Path, tests: list[tuple[str, str]], fill_multiple: int) -> float:
    """The share of tests that the model of `folder` answers exactly, denoising one token a step, greedily.

    There is room for the longest answer and its EOS, and then as far as training filled samples with EOS
    (data.fill_multiple): a small model knows no other lengths.
    """
    import torch

    from mdmscale.generation.denoise import denoise, masked_predictor

    loaded = load_model(read_folder_facts(folder))
    facts = loaded.facts
    longest = max(len(loaded.tokenizer.encode(answer, add_special_tokens=False)) for _, answer in tests)
    multiple = max(1, fill_multiple)
    prompts = [(encode_prompt(loaded, prompt, chat=False).token_ids, answer) for prompt, answer in tests]
    prompts.sort(key=lambda test: len(test[0]))
    num_right = 0
    for width, group in groupby(prompts, key=lambda test: len(test[0])):
        members = list(group)
        length = -(-(width + longest + 1) // multiple) * multiple - width
        rows = [[*token_ids, *[facts.mask_token_id] * length] for token_ids, _ in members]
        tokens = denoise(
            masked_predictor(loaded.model, facts.logit_shift),
            torch.tensor(rows, device=loaded.device),
            mask_token_id=facts.mask_token_id,
            steps=length,
            generator=torch.Generator(loaded.device).manual_seed(0),
        )
        for (token_ids, answer), row in zip(members, tokens[:, width:].tolist(), strict=True):
            num_right += decode_response(loaded, token_ids, row, raw=False) == answer
    return num_right / len(tests)
