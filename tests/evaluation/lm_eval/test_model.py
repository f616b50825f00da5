"""The model class of lm-evaluation-harness: its numbers and texts are the package's own."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval")
import lm_eval
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager
from models.tiny_folder import make_tokenizer
from tokenizers.processors import TemplateProcessing

from mdmscale.evaluation.likelihood.plan import LikelihoodOptions
from mdmscale.evaluation.likelihood.scoring import Scored, log_likelihoods
from mdmscale.evaluation.lm_eval.answers import Answers
from mdmscale.evaluation.lm_eval.encoding import Encoder
from mdmscale.evaluation.lm_eval.model import MDMLM
from mdmscale.generation import (
    GenerationOptions,
    LoadedModel,
    encode_ids,
    encode_messages,
    encode_prompt,
    generate,
    load_model,
)
from mdmscale.models.prompts import infilling_ids
from mdmscale.system.errors import UserError
from mdmscale.system.partial_output import PartialOutput

OPTIONS = LikelihoodOptions(rows=8)
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}<assistant>"


def model_of(loaded: LoadedModel, **options: Any) -> MDMLM:
    return MDMLM(loaded, **{"rows": OPTIONS.rows, "batch_size": 4} | options)


def asked(kind: Any, *arguments: Any, doc: int = 0, number: int = 0, task: str = "task") -> Instance:
    return Instance(kind, {}, arguments, number, metadata=(task, doc, 1))


def scored(loaded: LoadedModel, *pairs: tuple[list[int], list[int]]) -> list[float]:
    items = [Scored(prompt, target) for prompt, target in pairs]
    return [each.nats for each in log_likelihoods(loaded, items, OPTIONS, 4)]


def test_log_likelihoods_are_those_of_the_likelihood_command(loaded: LoadedModel) -> None:
    pairs = [("def add(a,", " b):"), ("for step in ", "range"), ("print", "(step) and more to score")]
    answers = model_of(loaded).loglikelihood([asked("loglikelihood", *pair) for pair in pairs])
    expected = []
    for context, continuation in pairs:
        whole = infilling_ids(loaded.tokenizer, context + continuation)
        size = len(infilling_ids(loaded.tokenizer, context.rstrip()))  # spaces go to the continuation
        expected.append((whole[:size], whole[size:]))
    assert [nats for nats, _ in answers] == scored(loaded, *expected)


def test_a_continuation_of_nothing_is_certain_and_without_a_context_it_stands_alone(
    loaded: LoadedModel,
) -> None:
    requests = [asked("loglikelihood", "def", ""), asked("loglikelihood", "", "def add", doc=1)]
    nothing, alone = model_of(loaded).loglikelihood(requests)
    assert nothing == (0.0, True)
    assert [alone[0]] == scored(loaded, ([], infilling_ids(loaded.tokenizer, "def add")))


def test_the_batch_size_and_the_other_requests_change_no_number(loaded: LoadedModel) -> None:
    requests = [asked("loglikelihood", "def", " add(a, b):"[: 3 + size], doc=size) for size in range(6)]
    together = model_of(loaded, batch_size=32).loglikelihood(requests)
    single = [model_of(loaded, batch_size=1).loglikelihood([request])[0] for request in requests]
    assert [nats for nats, _ in together] == pytest.approx([nats for nats, _ in single], rel=1e-5)


def test_a_whole_text_is_scored_in_windows_each_token_once(loaded: LoadedModel) -> None:
    short, long = "def add(a, b): return a", "x = y " * 40
    windows, ids = Encoder(loaded).windows(long), infilling_ids(loaded.tokenizer, long)
    assert [token for window in windows for token in window.target_ids] == ids
    sizes = [len(window.prompt_ids) + len(window.target_ids) for window in windows]
    assert len(sizes) > 2 and set(sizes) == {loaded.description.max_length}  # the last one sees all that fits
    assert [len(window.prompt_ids) for window in windows[:-1]] == [0] + [1] * (len(windows) - 2)
    done = 0
    for window in windows:
        assert window.prompt_ids == ids[done - len(window.prompt_ids) : done]
        done += len(window.target_ids)
    requests = [asked("loglikelihood_rolling", text) for text in (short, long, "")]
    expected = [
        sum(scored(loaded, ([], infilling_ids(loaded.tokenizer, short)))),
        sum(scored(loaded, *[(window.prompt_ids, window.target_ids) for window in windows])),
    ]
    assert model_of(loaded).loglikelihood_rolling(requests) == pytest.approx([*expected, 0.0])


def test_bos_is_given_once_and_never_scored(loaded: LoadedModel) -> None:
    tokenizer = make_tokenizer()
    eos = tokenizer.eos_token_id  # which stands for BOS here
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing("</s> $A", special_tokens=[("</s>", eos)])
    encoder = Encoder(replace(loaded, tokenizer=tokenizer))
    plain = Encoder(loaded).encode("def add")
    assert encoder.encode("def add") == encoder.encode("</s>def add") == [eos, *plain]
    assert encoder.windows("def add") == encoder.windows("</s>def add") == [Scored([eos], plain)]
    encoder.is_rendered = True  # by a chat template, which would have written BOS
    assert encoder.encode("def add") == plain


@pytest.mark.parametrize("until", [["a"], "a", ["zzz"], []])
def test_texts_are_those_of_generate_cut_at_until(loaded: LoadedModel, until: Any) -> None:
    options = GenerationOptions(length=12, block_length=4, temperature=1.0, seed=3)
    prompts = ["def add", "for step"]
    requests = [encode_prompt(loaded, prompt, 12) for prompt in prompts]
    texts = [each.text for each in generate(loaded, requests, options)]
    stops = [until] if isinstance(until, str) else until
    expected = [text.split(stops[0])[0] if stops else text for text in texts]
    model = model_of(loaded, block_length=4, seed=3)
    asking = {"until": until, "max_gen_toks": 12, "do_sample": True, "temperature": 1.0}
    assert model.generate_until([asked("generate_until", prompt, asking) for prompt in prompts]) == expected


def test_a_special_token_can_end_a_text(model_folder: Path) -> None:
    loaded = load_model(model_folder, "fp32")  # with a tokenizer that the test changes
    request = encode_prompt(loaded, "def add", 12)
    (generation,) = generate(loaded, [request], GenerationOptions(length=12, temperature=1.0))
    response = generation.token_ids[request.prompt_length :]
    assert loaded.tokenizer.eos_token_id not in response
    third = loaded.tokenizer.convert_ids_to_tokens(response[3])
    loaded.tokenizer.add_special_tokens({"additional_special_tokens": [third]})
    model = model_of(loaded, temperature=1.0, length=12)
    (text,) = model.generate_until([asked("generate_until", "def add", {"until": [third]})])
    assert text == loaded.tokenizer.decode(response[: response.index(response[3])])


def test_what_the_user_chose_comes_before_what_the_task_asks(loaded: LoadedModel) -> None:
    (chosen,) = generate(loaded, [encode_prompt(loaded, "def", 4)], GenerationOptions(length=4))
    asking = {"max_gen_toks": 9, "temperature": 1.0, "do_sample": True}
    model = model_of(loaded, length=4, temperature=0.0)
    assert model.generate_until([asked("generate_until", "def", asking)]) == [chosen.text]


def test_steps_may_exceed_the_default_length_where_the_task_asks_for_more(loaded: LoadedModel) -> None:
    model = model_of(loaded, steps=300)
    with pytest.raises(UserError, match="steps = 300: exceeds length = 20"):
        model.generate_until([asked("generate_until", "def", {"max_gen_toks": 20})])
    with pytest.raises(UserError, match="length = 300: leaves no room"):
        model.generate_until([asked("generate_until", "def", {"max_gen_toks": 300})])


def test_repeated_requests_draw_other_samples_and_greedy_ones_are_decoded_once(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = asked("generate_until", "def add", {"max_gen_toks": 8, "do_sample": True})
    assert len(set(model_of(loaded).generate_until([request] * 3))) == 3
    greedy = asked("generate_until", "def add", {"max_gen_toks": 8})
    sizes = []

    def counted(model: LoadedModel, requests: Any, *others: Any) -> Any:
        sizes.append(len(requests))
        return generate(model, requests, *others)

    monkeypatch.setattr("mdmscale.evaluation.lm_eval.model.generate", counted)
    assert len(set(model_of(loaded).generate_until([greedy] * 3))) == 1
    assert sizes == [1]


@pytest.mark.parametrize("greedy", ["auto", "always", "never"])
def test_greedy_is_found_out_where_it_is_asked(loaded: LoadedModel, greedy: Any) -> None:
    request = encode_prompt(loaded, "def add", 3)
    (best,) = generate(loaded, [request], GenerationOptions(length=3))
    response = best.token_ids[request.prompt_length :]
    model, prompt = model_of(loaded, greedy=greedy), best.token_ids[: request.prompt_length]
    model._encode_pair = lambda context, continuation: (
        prompt,
        response if continuation == "best" else [9, 9],
    )  # type: ignore[method-assign]
    alone = [asked("loglikelihood", "x", "best", doc=0), asked("loglikelihood", "x", "worse", doc=1)]
    choices = [asked("loglikelihood", "x", each, doc=2, number=k) for k, each in enumerate(("best", "worse"))]
    found = [is_greedy for _, is_greedy in model.loglikelihood([*alone, *choices])]
    assert found == [greedy != "never", False, greedy == "always", False]


def test_a_long_prompt_loses_its_beginning(loaded: LoadedModel, capsys: pytest.CaptureFixture[str]) -> None:
    ids = infilling_ids(loaded.tokenizer, "x = y " * 40)
    most = loaded.description.max_length
    model = model_of(loaded)
    ((nats, _),) = model._loglikelihood_tokens([(("", ""), ids, ids[:5])])
    assert [nats] == scored(loaded, (ids[5 - most :], ids[:5]))
    (text,) = model.generate_until([asked("generate_until", "x = y " * 40, {"max_gen_toks": 8})])
    (expected,) = generate(loaded, [encode_ids(loaded, ids[8 - most :], 8)], GenerationOptions(length=8))
    assert text == expected.text
    notes = capsys.readouterr().err
    assert notes.count("note: ") == 1 and f"cut to its last {most - 5}" in notes


def test_what_cannot_fit_is_refused(loaded: LoadedModel) -> None:
    model = model_of(loaded)
    with pytest.raises(UserError, match="a continuation of 200 tokens exceeds"):
        model._loglikelihood_tokens([(("", ""), [], [5] * 200)])
    with pytest.raises(UserError, match="length = 256: leaves no room"):
        model.generate_until([asked("generate_until", "def", {})])


def test_a_mask_written_in_a_question_is_plain_text(loaded: LoadedModel) -> None:
    model = model_of(loaded)
    ids = model.tok_encode("a <|mask|> b</s>")
    assert loaded.description.mask_token_id not in ids
    assert loaded.tokenizer.decode(ids[:-1]) == "a <|mask|> b"
    assert ids[-1] == loaded.tokenizer.eos_token_id  # which a chat template would have written


def test_a_conversation_has_the_tokens_of_generate(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loaded.tokenizer, "chat_template", TEMPLATE)
    messages = [{"role": "user", "content": "add</s> <|mask|>"}]
    model = model_of(loaded)
    text = model.apply_chat_template(messages)
    request = encode_messages(loaded, messages, 4)
    assert model.tok_encode(text) == request.token_ids[: request.prompt_length]
    assert model.chat_template(True) == TEMPLATE
    (expected,) = generate(loaded, [request], GenerationOptions(length=4))
    assert model.generate_until([asked("generate_until", text, {"max_gen_toks": 4})]) == [expected.text]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"row": 8}, "row: no such option; choose from .*rows"),
        ({"rows": 7}, "rows = 7: must be a positive multiple of 4"),
        ({"steps": 0}, "steps = 0: must be at least 1"),
        ({"batch_size": "many"}, "batch_size = 'many': must be a number"),
        ({"greedy": "maybe"}, "greedy = 'maybe': choose one of auto, always, never"),
    ],
)
def test_wrong_options_are_refused(loaded: LoadedModel, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        model_of(loaded, **options)


def test_answers_on_disk_are_not_computed_again(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [asked("loglikelihood", "def", " add(a, b):", doc=0), asked("loglikelihood", "x", " y", doc=1)]
    writing = asked("generate_until", "def", {"max_gen_toks": 4})
    partial = PartialOutput(tmp_path / "out.json", {})
    first = model_of(loaded, answers=Answers(partial))
    before = first.loglikelihood(requests), first.generate_until([writing])
    again = model_of(loaded, answers=Answers(partial))
    for name in ("log_likelihoods", "greedy_matches", "generate"):
        monkeypatch.setattr(
            f"mdmscale.evaluation.lm_eval.model.{name}", lambda _, jobs, *rest: iter(jobs[:0])
        )
    assert (again.loglikelihood(requests), again.generate_until([writing])) == before


def test_the_harness_opens_the_model_by_its_name(
    loaded: LoadedModel, model_folder: Path, tasks: Path
) -> None:
    found = lm_eval.simple_evaluate(
        model="mdmscale",
        model_args=f"pretrained={model_folder},rows={OPTIONS.rows}",
        tasks=["whole"],
        limit=1,
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
    )
    (nats,) = scored(loaded, ([], infilling_ids(loaded.tokenizer, "print(step)")))
    bits = found["results"]["whole"]["bits_per_byte,none"]
    assert bits == pytest.approx(-nats / math.log(2) / len(b"print(step)"))
    assert found["config"]["likelihood"]["rows"] == OPTIONS.rows
