"""A config of any content is refused in seconds, by lines that are not endless."""

from pathlib import Path

import pytest
from config.conftest import COMPLETE, problems

from mdmscale.config.loading import MOST_CHARACTERS, MOST_PROBLEMS, load_config

DOUBLING = "\n".join(
    ["x0: &a0 [1, 1]", *(f"x{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 60))],
)
MERGING = "\n".join(
    ["x0: &a0 {k: 1}", *(f"x{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}" for n in range(1, 60))],
)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (DOUBLING, "more than 10,000 values, aliases counted in full"),
        (MERGING, "more than 10,000 values, aliases counted in full"),
        ("run: [" + "1, " * 20_000 + "]", "line 1: more than 10,000 values"),
        ("run: &a [*a]", "line 1: the alias *a is part of what it stands for"),
        ("run: &a {b: *a}", "line 1: the alias *a is part of what it stands for"),
        ("run: " + "[" * 5000, "line 1: more than 50 levels of nesting"),
        ("run: " + "{a: " * 5000, "line 1: more than 50 levels of nesting"),
        ("run: " + "9" * 5000, "line 1: an integer of 5,000 characters"),
        ("run: 1" + ":59" * 5000, "line 1: an integer of 15,001 characters"),
        ("run: !!int x", "not YAML: invalid literal"),
        ("run: !!python/object/apply:os.getcwd []", "line 1: could not determine a constructor"),
        ("# " + "x" * MOST_CHARACTERS, f"has more than {MOST_CHARACTERS:,} characters"),
    ],
    ids=lambda value: value[:24],
)
def test_hostile_yaml_is_one_line(config_file: Path, text: str, problem: str) -> None:
    config_file.write_text(text)
    (found,) = problems(config_file)
    assert problem in found and len(found) < 300


def test_an_alias_is_still_read(config_file: Path) -> None:
    config_file.write_text(COMPLETE.replace("1e-4", "&rate 1e-4, weight_decay: *rate"))
    config = load_config(config_file)
    assert config.optimizer.weight_decay == config.optimizer.lr == 1e-4


def test_values_and_problems_are_not_shown_without_end(config_file: Path) -> None:
    config_file.write_text(f"run: {{seed: {'x' * 9000}}}")
    (seed,) = [problem for problem in problems(config_file) if "run.seed" in problem]
    assert seed.startswith("run.seed = 'xxx") and len(seed) < 700
    config_file.write_text("run:\n" + "\n".join(f"  unknown{n}: 1" for n in range(200)))
    found = problems(config_file)
    assert len(found) == MOST_PROBLEMS + 1 and found[-1].endswith("more problems")
