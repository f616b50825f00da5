"""Paired differences between two results, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mdmscale.evaluate_command import main
from mdmscale.evaluation.compare_command import compare
from mdmscale.evaluation.results import Results, read_results
from mdmscale.evaluation.statistics import difference
from mdmscale.system.errors import UserError


def texts(nats: np.ndarray) -> list[dict[str, Any]]:
    return [
        {"id": f"{number}-x", "kind": "text", "nats": -float(each), "tokens": 10, "bytes": 30}
        for number, each in enumerate(nats)
    ]


def answers(correct: list[bool]) -> list[dict[str, Any]]:
    return [
        {"task": "gsm8k", "setting": "64 steps", "id": number, "correct": each}
        for number, each in enumerate(correct)
    ]


def results(items: list[dict[str, Any]], command: str = "likelihood", **settings: Any) -> Results:
    return Results(command, "runs/a", {"seed": 0, "rows": 32, **settings}, [], items)


@pytest.fixture
def nats() -> np.ndarray:
    """Nats of 30 texts under two models, float64 [2, 30]: the texts differ far more than the models."""
    random = np.random.default_rng(0)
    hardness = random.normal(50, 10, 30)
    return np.stack([hardness, hardness - 1 + random.normal(0, 0.5, 30)])


def test_differences_of_texts_are_paired(nats: np.ndarray) -> None:
    tokens, num_bytes = compare(results(texts(nats[0])), results(texts(nats[1])))
    expected = difference(nats[0] / 10, nats[1] / 10)
    assert tokens.difference == pytest.approx(expected.value) and tokens.num_items == 30
    assert tokens.interval == pytest.approx(expected.interval())
    assert tokens.p_value == pytest.approx(expected.p_value()) and tokens.p_value < 1e-6
    assert num_bytes.difference == pytest.approx(expected.value / 3 / np.log(2))


def test_order_does_not_pair_items_but_ids_do(nats: np.ndarray) -> None:
    first, second = results(texts(nats[0])), results(texts(nats[1]))
    assert compare(first, results(second.items[::-1])) == compare(first, second)


def test_accuracies_have_mcnemars_p_value_and_a_bootstrap() -> None:
    left, right = [True] * 4 + [False] * 16, [True] * 4 + [True] * 6 + [False] * 10
    (found,) = compare(results(answers(left), "tasks"), results(answers(right), "tasks"))
    assert found.name == "gsm8k, 64 steps, accuracy"
    assert (found.first, found.second) == (0.2, 0.5)
    assert found.p_value == pytest.approx(2 / 2**6)
    assert 0 < found.interval[0] < 0.3 < found.interval[1] < 0.6


def test_settings_of_a_task_are_compared_apart() -> None:
    items = [*answers([True, False]), *({**each, "setting": "8 steps"} for each in answers([False, False]))]
    found = compare(results(items, "tasks"), results(items, "tasks"))
    assert [(each.name, each.first) for each in found] == [
        ("gsm8k, 64 steps, accuracy", 0.5),
        ("gsm8k, 8 steps, accuracy", 0.0),
    ]


def written(folder: Path, name: str, content: Results) -> str:
    file = folder / name
    file.write_text("".join(content.lines()))
    assert read_results(file).items == content.items
    return str(file)


def test_the_command_prints_a_table(
    nats: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [written(tmp_path, f"{side}.json", results(texts(nats[side]))) for side in (0, 1)]
    assert main(["compare", *files]) == 0
    output = capsys.readouterr().out
    assert "text, nats a token" in output and "text, bits a byte" in output and "first: runs/a" in output


@pytest.mark.parametrize(
    "other, message",
    [
        (results(answers([True]), "tasks"), "are of 'likelihood' and 'tasks'"),
        (results(texts(np.ones(3)), seed=1), "differ in seed: 0 and 1"),
        (results(texts(np.ones(3)), rows=64), "differ in rows: 32 and 64"),
        (results(texts(np.ones(2))), "1 items are in only one of them, such as 2-x"),
    ],
)
def test_what_is_not_comparable_is_refused(tmp_path: Path, other: Results, message: str) -> None:
    first = written(tmp_path, "a.json", results(texts(np.ones(3))))
    with pytest.raises(UserError, match=message):
        main(["compare", first, written(tmp_path, "b.json", other)])


def test_a_file_that_is_no_result_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"command": "likelihood"}))
    with pytest.raises(UserError, match="has no 'model'"):
        main(["compare", str(tmp_path / "a.json"), str(tmp_path / "a.json")])
