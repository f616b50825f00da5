"""Exact match: the share of test prompts whose generated response is the expected one."""

from pathlib import Path

from mdmscale.data.preparation.jsonl import read_jsonl
from mdmscale.generation import encode_prompt, generate, load_model
from mdmscale.system.errors import UserError

BATCH_SIZE = 64


def read_tests(path: Path) -> list[tuple[str, str]]:
    """(prompt, response) of every line.

    Raises:
        UserError: names the line that is invalid.
    """
    tests = []
    for record in read_jsonl(path):
        prompt, response = record.values.get("prompt"), record.values.get("response")
        if not isinstance(prompt, str) or not isinstance(response, str):
            raise UserError(f'--test {record.where}: is no {{"prompt": "...", "response": "..."}}')
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
