"""Tasks during training: the answers are the exported model's, at any stage, and the run is the same."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import kept_environment, tiny_values, train_all

from mdmscale.analysis.planning.input_check import check_input
from mdmscale.config.run import RunConfig
from mdmscale.evaluation.tasks.catalogue import load_task
from mdmscale.evaluation.tasks.running import answer_items
from mdmscale.generation import GenerationOptions, load_model
from mdmscale.parallel.ranks import Ranks
from mdmscale.system.errors import UserError
from mdmscale.training.metrics import read_metrics
from mdmscale.training.paths import check_paths
from mdmscale.training.setup import set_up
from mdmscale.training.task_answers import SamplingModel, TaskAnswers, as_markdown
from mdmscale.training.task_questions import task_questions
from mdmscale.training.trainer import answer_tasks, train

NUM_ITEMS = 5
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "alone": (1, {"zero_stage": 0}),
    "alone-3": (1, {"zero_stage": 3}),
    "two-0": (2, {"zero_stage": 0}),
    "two-2": (2, {"zero_stage": 2}),
    "two-3": (2, {"zero_stage": 3}),
    "tensor": (2, {"zero_stage": 1, "tensor": 2}),
}


def write_task(folder: Path, lines: list[dict[str, str]]) -> tuple[Path, Path]:
    """A task file with short answers, and its questions."""
    task, data = folder / "short.yaml", folder / "questions.jsonl"
    task.write_text(
        'prompt: "{prompt}"\nanswer: {field: response}\nextract: whole\nscore: exact\ndecoding: {length: 4}\n'
    )
    data.write_text("\n".join(map(json.dumps, lines)))
    return task, data


def values_of(corpus: Path, folder: Path, name: str, parallel: dict[str, Any]) -> dict[str, Any]:
    values = tiny_values(corpus, folder)
    values["run"]["name"] = name
    values["diffusion"] = {}
    values["train"] = {"steps": 4, "global_batch_size": 8, "micro_batch_size": 2}
    values["optimizer"]["warmup_steps"] = 0
    values["parallel"] = parallel
    return values


def train_here(values: dict[str, Any]) -> None:
    """Train on the test process alone."""
    with kept_environment():
        train(RunConfig.model_validate(values))


@pytest.fixture(scope="module")
def folder(corpus: Path, tmp_path_factory: pytest.TempPathFactory, process_group: None) -> Path:
    """Runs with tasks in every layout. What is expected are the answers of the same run without tasks."""
    folder = tmp_path_factory.mktemp("runs")
    train_here(values_of(corpus, folder, "without", {"zero_stage": 0}))
    prompts = ["def f(x):\n    return ", "import ", "class A:", "for each in ", "x = 1 # "]
    task, data = write_task(folder, [{"prompt": prompt, "response": "x"} for prompt in prompts])
    short = load_task(str(task))
    loaded = load_model(folder / "without")
    answered = answer_items(loaded, short, short.items(data), GenerationOptions(length=4))
    write_task(folder, [{"prompt": each.item.prompt, "response": each.response or " "} for each in answered])
    asked = {
        "tasks": [str(task)],
        "task_data": {str(task): str(data)},
        "task_items": NUM_ITEMS,
        "tasks_every": 2,
    }
    jobs: dict[int, list[dict[str, Any]]] = {1: [], 2: []}
    for name, (num_ranks, parallel) in LAYOUTS.items():
        values = values_of(corpus, folder, name, parallel)
        jobs[num_ranks].append(values | {"eval": asked, "logging": {"tensorboard": name == "alone"}})
    for num_ranks, batch in jobs.items():
        batch.append(values_of(corpus, folder, f"without-{num_ranks}", {"zero_stage": 3}))
    for values in jobs[1]:
        train_here(values)
    train_all(2, jobs[2])
    return folder


@pytest.mark.distributed
@pytest.mark.parametrize("name", LAYOUTS)
def test_the_answers_are_those_of_the_exported_model(folder: Path, name: str) -> None:
    records = read_metrics(folder / name)
    assert ["task_short_accuracy" in record for record in records] == [False, True, False, True]
    assert records[-1]["task_short_accuracy"] == 1.0
    assert records[-1]["task_short_no_answer"] == 0.0
    assert 0 < records[-1]["task_short_tokens_per_forward"] <= 1


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("name", "without"), [("alone", "without"), ("alone-3", "without-1"), ("two-3", "without-2")]
)
def test_losses_are_the_same_bit_for_bit_as_without_tasks(folder: Path, name: str, without: str) -> None:
    losses = [[record["loss"] for record in read_metrics(folder / run)] for run in (name, without)]
    norms = [[record["grad_norm"] for record in read_metrics(folder / run)] for run in (name, without)]
    assert losses[0] == losses[1] and norms[0] == norms[1]


@pytest.mark.distributed
def test_tensorboard_shows_answers(folder: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "alone" / "tensorboard"))
    events.Reload()
    assert "task_short_accuracy" in events.Tags()["scalars"]
    (name,) = (tag for tag in events.Tags()["tensors"] if tag.startswith("task_short"))
    text = events.Tensors(name)[-1].tensor_proto.string_val[0].decode()
    assert "import" in text and "**right**" in text


@pytest.fixture
def values(tiny: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    task, data = write_task(tmp_path, [{"prompt": f"def f{n}", "response": "x"} for n in range(3)])
    tiny["eval"] = {"tasks": [str(task)], "task_data": {str(task): str(data)}, "tasks_every": 2}
    tiny["diffusion"] = {}
    return tiny


@pytest.mark.parametrize("packing", [False, True])
def test_logits_during_training_are_those_of_the_model(
    values: dict[str, Any], ranks: Ranks, packing: bool
) -> None:
    values["train"]["packing"] = packing
    run = set_up(RunConfig.model_validate(values), ranks)
    model = run.backbone.model
    input_ids = torch.randint(0, 500, (2, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(2, 9, dtype=torch.int64)
    mask[0, :3] = 0
    columns = torch.tensor([4, 6, 8])
    position_ids = (mask.cumsum(1) - 1).clamp(min=0)
    sampling = SamplingModel(run.engine, run.backbone, ranks)
    with torch.inference_mode():
        found = sampling(input_ids, mask, position_ids, columns, use_cache=False).logits
    assert not found.is_inference(), "parameters must stay trainable"
    with torch.no_grad():
        whole = model.model(
            input_ids=input_ids,
            attention_mask=mask.bool()[:, None, None, :],
            position_ids=position_ids,
            use_cache=False,
        )
        expected = model.lm_head(whole.last_hidden_state[:, columns])
    torch.testing.assert_close(found, expected)


def test_answering_leaves_training_mode_as_it_was(values: dict[str, Any], ranks: Ranks) -> None:
    run = set_up(RunConfig.model_validate(values), ranks)
    before = {name: each.clone() for name, each in run.backbone.model.named_parameters()}
    first, second = answer_tasks(run), answer_tasks(run)
    assert run.engine.training
    assert first.metrics() == second.metrics()
    assert [each["response"] for each in first.records["short"]] == [
        each["response"] for each in second.records["short"]
    ]
    assert all(torch.equal(before[name], each) for name, each in run.backbone.model.named_parameters())


def test_missing_tasks_and_data_cost_a_second(values: dict[str, Any], tmp_path: Path) -> None:
    (task,) = values["eval"]["tasks"]
    values["eval"] |= {"tasks": [task, "gsm9k", "exact"], "task_data": {task: str(tmp_path / "none.jsonl")}}
    config = RunConfig.model_validate(values)
    with pytest.raises(UserError) as caught:
        check_paths(config, writes=False)
    missing, unknown, without = caught.value.problems
    assert missing.startswith("eval.tasks: task short: --data ") and "no such file" in missing
    assert f"in a run, --data is eval.task_data.{task}" in missing
    assert "there is no task 'gsm9k'; did you mean gsm8k?" in unknown
    assert "task exact: has no data of its own" in without
    assert set(caught.value.problems) <= set(check_input(config).problems)


def test_a_dry_run_says_what_is_asked(values: dict[str, Any]) -> None:
    (task,) = values["eval"]["tasks"]
    result = check_input(RunConfig.model_validate(values))
    assert not result.problems and result.found["tasks"] == f"{task} (3 questions)"


def test_questions_that_do_not_fit_the_model_are_refused(
    values: dict[str, Any], ranks: Ranks, tmp_path: Path
) -> None:
    write_task(tmp_path, [{"prompt": "def f " * 900, "response": "x"}])
    values["model"]["max_position_embeddings"] = 64
    with pytest.raises(UserError, match=r"task short, item 0: .* max_position_embeddings = 64"):
        set_up(RunConfig.model_validate(values), ranks)
    assert not (tmp_path / "runs").exists()


def test_only_some_questions_are_asked(values: dict[str, Any]) -> None:
    (task,) = values["eval"]["tasks"]
    values["eval"]["task_items"] = 2
    questions = task_questions(RunConfig.model_validate(values), task)
    assert len(questions.items) == 2 and questions.label == "short" and questions.options.length == 4


def test_answers_as_text_and_numbers() -> None:
    record = {"prompt": "a\nb", "response": "c", "expected": "d", "extracted": None, "correct": False}
    assert as_markdown(record) == "    a\n    b\n\n    c\n\n**no answer**; expected `d`"
    counts = {"points": 0.0, "possible": 1, "num_forwards": 4, "num_tokens": 2, "seconds": 0.1}
    metrics = TaskAnswers({"t": [record | counts]}).metrics()
    assert metrics == {
        "task_t_accuracy": 0.0,
        "task_t_no_answer": 1.0,
        "task_t_tokens_per_forward": 0.5,
    }
