"""Let a model answer the questions of a task. The study and training call this, too."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from mdmscale.evaluation.tasks.task import Item, Judged, Task
from mdmscale.generation.options import GenerationOptions
from mdmscale.generation.prompts import Request, encode_messages, encode_prompt
from mdmscale.generation.sampler import batches, generate
from mdmscale.models.opening import LoadedModel
from mdmscale.system.errors import UserError

MAX_PROBLEMS = 10


@dataclass(frozen=True)
class Answered:
    """A question with the model's response.

    num_tokens: those of the response before its first EOS. seconds: this response's share of its batch.
    """

    item: Item
    prompt: str
    response: str
    judged: Judged
    num_forwards: int
    num_tokens: int
    seconds: float

    def record(self, task: Task, setting: str) -> dict[str, Any]:
        """The item as results.json has it."""
        return {
            "task": task.name,
            "setting": setting,
            "id": self.item.id,
            "prompt": self.prompt,
            "response": self.response,
            "expected": self.item.expected,
            "extracted": self.judged.extracted,
            "correct": self.judged.score.correct,
            "points": self.judged.score.points,
            "possible": self.judged.score.possible,
            "num_forwards": self.num_forwards,
            "num_tokens": self.num_tokens,
            "seconds": round(self.seconds, 4),
        }


def answer_items(
    loaded: LoadedModel, task: Task, items: Sequence[Item], options: GenerationOptions, batch_size: int = 8
) -> Iterator[Answered]:
    """Answer the items in order, `batch_size` at a time.

    Raises:
        UserError: for prompts that do not fit the model, before anything is sampled.
    """
    chat = task.uses_chat(loaded.tokenizer)
    requests = encode_items(loaded, task, items, options.length)
    for members in batches(list(zip(items, requests, strict=True)), batch_size):
        started = perf_counter()
        generations = list(generate(loaded, [request for _, request in members], options, batch_size))
        seconds = (perf_counter() - started) / len(members)
        for (item, request), each in zip(members, generations, strict=True):
            yield Answered(
                item,
                item.prompt if chat else item.plain_prompt,
                each.text,
                task.judge(item, each.text),
                each.num_forwards,
                tokens_before_eos(each.token_ids[request.prompt_length or 0 :], loaded.eos_ids),
                seconds,
            )


def encode_items(loaded: LoadedModel, task: Task, items: Sequence[Item], length: int) -> list[Request]:
    """The items as requests for responses of `length` tokens.

    Raises:
        UserError: naming those that do not fit the model, up to MAX_PROBLEMS.
    """
    chat, requests, problems = task.uses_chat(loaded.tokenizer), [], []
    for item in items:
        try:
            requests.append(encode_item(loaded, item, length, chat=chat))
        except UserError as error:
            problems += [f"task {task.name}, item {item.id}: {problem}" for problem in error.problems]
            if len(problems) >= MAX_PROBLEMS:
                break
    if problems:
        raise UserError(*problems)
    return requests


def encode_item(loaded: LoadedModel, item: Item, length: int, *, chat: bool) -> Request:
    """An item as a request: its prompt has the tokens that SFT training gives the task's records.

    Special tokens that a question spells out are ordinary text.
    """
    if chat:
        return encode_messages(loaded, [{"role": "user", "content": item.prompt}], length)
    return encode_prompt(loaded, item.plain_prompt, length, "text")


def tokens_before_eos(token_ids: Sequence[int], eos_ids: frozenset[int]) -> int:
    """How many tokens come before the first EOS."""
    return next((place for place, token in enumerate(token_ids) if token in eos_ids), len(token_ids))
