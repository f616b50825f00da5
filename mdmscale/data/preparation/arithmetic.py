"""Make a small SFT dataset: arithmetic problems whose answers can be checked."""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mdmscale.system.errors import UserError
from mdmscale.system.files import write_file

_OPERATIONS = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b}


def problems(num: int, digits: int, seed: int, operators: str = "+-*") -> Iterator[tuple[str, str]]:
    """`num` distinct (prompt, response) texts such as ("12+7=", "19"), with operands below 10^digits.

    A pure function of its arguments. The operators take turns, and the operands are uniform.

    Raises:
        UserError: where there are fewer than `num` problems.
    """
    operators = "".join(dict.fromkeys(operators))
    bound = 10**digits
    most = bound * bound * len(operators)
    if num > most:
        raise UserError(
            f"--num {num}: there are only {most} problems with {digits} digits; lower it or raise --digits"
        )
    draws = np.random.Generator(np.random.Philox(key=seed))
    seen: set[str] = set()
    while len(seen) < num:
        operator = operators[len(seen) % len(operators)]
        first, second = (int(operand) for operand in draws.integers(0, bound, 2))
        prompt = f"{first}{operator}{second}="
        if prompt not in seen:
            seen.add(prompt)
            yield prompt, str(_OPERATIONS[operator](first, second))


def main(argv: list[str] | None = None) -> int:
    """Write the dataset as JSONL with the keys prompt and response."""
    parser = argparse.ArgumentParser(
        prog="make_arithmetic.py",
        description="Write an SFT dataset of addition, subtraction and multiplication problems as JSONL.",
        epilog="example: python tools/make_arithmetic.py --num 8000 --output data/arithmetic.jsonl",
    )
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help=".jsonl file to write")
    parser.add_argument(
        "--num", type=int, default=10_000, help="number of problems, all different (default: 10000)"
    )
    parser.add_argument(
        "--digits", type=int, default=2, help="largest number of digits of an operand (default: 2)"
    )
    parser.add_argument("--operators", default="+-*", help="some of the characters '+-*' (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random draws (default: 0)")
    parser.add_argument(
        "--test-output", type=Path, metavar="FILE", help="also write this file, with other problems"
    )
    parser.add_argument(
        "--num-test", type=int, default=500, help="number of problems in --test-output (default: 500)"
    )
    arguments = parser.parse_args(argv)
    if arguments.num < 1 or not 1 <= arguments.digits <= 9 or arguments.seed < 0:
        raise UserError("--num must be at least 1, --digits 1 to 9, and --seed not negative")
    if not arguments.operators or set(arguments.operators) - set(_OPERATIONS):
        raise UserError(f"--operators {arguments.operators!r}: give one or more of '+-*'")
    if arguments.num_test < 1:
        raise UserError(f"--num-test {arguments.num_test}: must be at least 1")
    num_test = arguments.num_test if arguments.test_output else 0
    drawn = list(problems(arguments.num + num_test, arguments.digits, arguments.seed, arguments.operators))
    _write(arguments.output, drawn[: arguments.num])
    if arguments.test_output:
        _write(arguments.test_output, drawn[arguments.num :])
    return 0


def _write(path: Path, pairs: list[tuple[str, str]]) -> None:
    lines = [json.dumps({"prompt": prompt, "response": response}) + "\n" for prompt, response in pairs]
    write_file(path, "".join(lines))
    print(f"{len(pairs)} problems in {path}")
