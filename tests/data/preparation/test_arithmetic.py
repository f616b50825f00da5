import json

import pytest

from mdmscale.data.preparation.arithmetic import main, problems
from mdmscale.system.errors import UserError


def test_the_answers_are_right_and_the_prompts_distinct():
    pairs = list(problems(300, 2, seed=1))
    assert len(pairs) == len({prompt for prompt, _ in pairs}) == 300
    assert all(str(eval(prompt.removesuffix("="))) == response for prompt, response in pairs)
    assert {prompt.strip("0123456789=") for prompt, _ in pairs} == {"+", "-", "*"}


def test_the_seed_decides():
    assert list(problems(50, 3, 1)) == list(problems(50, 3, 1)) != list(problems(50, 3, 2))


def test_more_than_there_are():
    assert len(set(problems(300, 1, 0))) == 300
    with pytest.raises(UserError, match=r"--num 301: there are only 300 .* raise --digits"):
        list(problems(301, 1, 0))
    with pytest.raises(UserError, match="only 100 "):
        list(problems(101, 1, 0, "++"))


def test_operators_may_be_chosen(tmp_path):
    assert all("+" in prompt for prompt, _ in problems(50, 2, 0, "+"))
    with pytest.raises(UserError, match="--operators '/'"):
        main(["--output", str(tmp_path / "a.jsonl"), "--operators", "/"])


def test_the_command_writes_lines_that_a_tokenizer_gives_back(tmp_path, tokenizer):
    assert main(["--output", str(tmp_path / "a.jsonl"), "--num", "30"]) == 0
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert len(lines) == 30
    assert all(tokenizer.decode(tokenizer(line["prompt"]).input_ids) == line["prompt"] for line in lines)


def test_options_out_of_range(tmp_path):
    with pytest.raises(UserError, match="--num must be at least 1"):
        main(["--output", str(tmp_path / "a.jsonl"), "--num", "0"])


def test_a_test_set_of_other_problems(tmp_path):
    train, test = tmp_path / "train.jsonl", tmp_path / "test.jsonl"
    options = ["--num", "30", "--num-test", "20", "--test-output", str(test)]
    assert main(["--output", str(train), *options]) == 0
    prompts = [
        [json.loads(line)["prompt"] for line in path.read_text().splitlines()] for path in (train, test)
    ]
    assert [len(each) for each in prompts] == [30, 20]
    assert len(set(prompts[0] + prompts[1])) == 50
    with pytest.raises(UserError, match="--num-test 0: must be at least 1"):
        main(["--output", str(train), "--num-test", "0", "--test-output", str(test)])
