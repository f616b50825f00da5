"""Answering: the prompt's tokens, batches, counts; and that records are trained as questions are asked."""

import json
from pathlib import Path

import pytest
from models.chat_tokenizers import CHATML

from mdmscale.data.preparation.jsonl import Record
from mdmscale.data.preparation.sft_record import encode_record
from mdmscale.evaluation.tasks.catalogue import load_task
from mdmscale.evaluation.tasks.running import (
    answer_items,
    encode_item,
    encode_items,
    tokens_before_eos,
)
from mdmscale.evaluation.tasks.settings import fitted, parse_settings, preset_of, settings_of
from mdmscale.generation import GenerationOptions, LoadedModel, encode_prompt, generate
from mdmscale.system.errors import UserError

OPTIONS = GenerationOptions(length=8, steps=4)


def test_answers_are_what_generate_gives(loaded: LoadedModel, pairs: Path) -> None:
    task = load_task("exact")
    items = task.items(pairs)
    answered = list(answer_items(loaded, task, items, OPTIONS, batch_size=3))
    expected = list(generate(loaded, [encode_prompt(loaded, item.prompt, 8) for item in items], OPTIONS))
    assert [each.response for each in answered] == [each.text for each in expected]
    assert [each.num_forwards for each in answered] == [4] * 7
    record = answered[0].record(task, "steps=4")
    assert record["id"] == "q0" and record["task"] == "exact" and record["setting"] == "steps=4"
    assert record["prompt"] == "def" and record["expected"] == "return" and record["seconds"] >= 0
    assert json.loads(json.dumps(record)) == record


def test_a_right_answer_counts(loaded: LoadedModel, pairs: Path, tmp_path: Path) -> None:
    task = load_task("exact")
    items = task.items(pairs)
    texts = [each.response for each in answer_items(loaded, task, items, OPTIONS)]
    lines = [{"prompt": item.prompt, "response": text} for item, text in zip(items, texts, strict=True)]
    assert all(text.strip() for text in texts)
    (tmp_path / "known.jsonl").write_text("\n".join(map(json.dumps, lines)))
    known = task.items(tmp_path / "known.jsonl")
    assert all(each.judged.score.correct for each in answer_items(loaded, task, known, OPTIONS))


@pytest.mark.parametrize("template", [None, CHATML.replace("OPEN", "").replace("CLOSE", "")])
@pytest.mark.parametrize("special", ["", " </s> "])
def test_training_and_evaluation_give_a_prompt_the_same_tokens(
    loaded: LoadedModel, tmp_path: Path, template: str | None, special: str
) -> None:
    question = f"How many{special} are 3 + 4?"
    file = tmp_path / "gsm8k.jsonl"
    file.write_text(json.dumps({"question": question, "answer": "3+4 = <<3+4=7>>7\n#### 7"}))
    task = load_task("gsm8k")
    (item,) = task.items(file)
    loaded.tokenizer.chat_template = template
    try:
        chat = task.uses_chat(loaded.tokenizer)
        assert chat == (template is not None)
        asked = encode_item(loaded, item, 4, chat=chat)
        record = Record(task.trained(item, chat), "here", 0)
        trained = encode_record(record, loaded.tokenizer, special_tokens="text")
    finally:
        loaded.tokenizer.chat_template = None
    assert trained is not None and asked.prompt_length == trained.prompt_length
    prompt = trained.token_ids[: trained.prompt_length].tolist()
    assert asked.token_ids == [*prompt, *[loaded.description.mask_token_id] * 4]


def test_prompts_that_do_not_fit_are_named_before_anything_is_sampled(
    loaded: LoadedModel, pairs: Path
) -> None:
    task = load_task("exact")
    items = task.items(pairs)
    with pytest.raises(UserError) as caught:
        encode_items(loaded, task, items, 254)
    named = [problem.split(": ")[0] for problem in caught.value.problems]
    long = [item for item in items if encode_item(loaded, item, 1, chat=False).prompt_length > 2]
    assert named == [f"task exact, item {item.id}" for item in long] and 0 < len(long) < 7


def test_tokens_before_eos() -> None:
    assert tokens_before_eos([5, 6, 1, 7, 1], frozenset({1, 2})) == 2
    assert tokens_before_eos([5, 6], frozenset({1})) == 2
    assert tokens_before_eos([1], frozenset({1})) == 0


def test_settings_are_every_combination_of_the_values() -> None:
    task = load_task("gsm8k")
    (own,) = settings_of(task, {})
    assert own.label == "" and (own.options.length, own.options.steps, own.options.block_length) == (
        128,
        128,
        32,
    )
    given = parse_settings(["steps=32,64", "temperature=0,0.5", "eos=late"])
    settings = settings_of(task, given, seed=7)
    assert [each.label for each in settings] == [
        f"steps={steps} temperature={temperature}" for steps in (32, 64) for temperature in (0, 0.5)
    ]
    assert all(each.options.eos == "late" and each.options.seed == 7 for each in settings)
    (preset,) = settings_of(task, {}, {"length": 16})
    assert preset.options == GenerationOptions(length=16)


@pytest.mark.parametrize("name", ["gsm8k", "hitab", "openscience"])
def test_a_task_of_the_paper_is_sampled_as_the_papers_preset(name: str) -> None:
    task = load_task(name)
    assert settings_of(task, {}) == settings_of(task, {}, preset_of(f"paper-{name}"))


def test_unknown_presets() -> None:
    assert preset_of(None) is None
    with pytest.raises(UserError, match=r"--preset lada: there is no preset 'lada'; did you mean llada\?"):
        preset_of("lada")


def test_steps_follow_the_length_and_give_way_to_a_threshold() -> None:
    base = {"length": 512, "steps": 256, "block_length": 16}
    assert fitted(base, {"length": 64})["steps"] == 32
    assert fitted(base, {"length": 64, "steps": 8})["steps"] == 8
    assert "steps" not in fitted(base, {"threshold": 0.9})
    assert fitted(base, {"threshold": None})["steps"] == 256
    assert fitted({"length": 8}, {"length": 4}) == {"length": 4}


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (["stps=3"], r"--set stps=3: there is no option 'stps'; did you mean steps\?"),
        (["steps"], "--set steps: write name=value"),
        (["steps=1", "steps=2"], "steps is given twice"),
        (["steps=[1"], r"--set steps=\[1: line 1"),
    ],
)
def test_settings_that_are_none(given: list[str], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        parse_settings(given)


def test_combinations_that_do_not_go_together_are_all_named() -> None:
    with pytest.raises(UserError) as caught:
        settings_of(load_task("gsm8k"), parse_settings(["steps=2,64,500"]))
    assert [problem.split(": ")[1] for problem in caught.value.problems] == ["steps=2", "steps=500"]
