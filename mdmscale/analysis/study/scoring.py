"""Exact match: the share of test prompts whose generated response is the expected one."""

import json
from pathlib import Path

from mdmscale.generation import encode_prompt, generate, load_model
from mdmscale.system.errors import UserError

BATCH_SIZE = 64


def read_tests(path: Path) -> list[tuple[str, str]]:
    """(prompt, response) of every line.

    Raises:
        UserError: names the line that is invalid.
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
    """The share of tests that the model of `folder` answers exactly. It denoises one token a step, greedily.

    A response has room for the longest answer and its EOS, rounded up as training filled samples with EOS
    (data.fill_multiple), because a small model has seen no other lengths.
    """
    loaded = load_model(folder)
    longest = max(len(loaded.tokenizer.encode(answer, add_special_tokens=False)) for _, answer in tests)
    multiple = max(1, fill_multiple)
    requests = []
    for prompt, _ in tests:
        width = encode_prompt(loaded, prompt, 1).prompt_length or 0
        length = -(-(width + longest + 1) // multiple) * multiple - width
        requests.append(encode_prompt(loaded, prompt, length))
    generations = generate(loaded, requests, batch_size=BATCH_SIZE)
    answered = zip(tests, generations, strict=True)
    return sum(each.text == answer for (_, answer), each in answered) / len(tests)
