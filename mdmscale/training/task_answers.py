"""Answers to the questions of `eval.tasks` by the model in training, at any ZeRO stage.

The model stays where it is: DeepSpeed's engine computes the logits of the positions that sampling asks for.
Sampling draws from its own stream, so a run's batches and noise are the same with and without tasks.

Legend: rows = texts; length = their tokens; columns = those whose logits are wanted; vocab.
"""

from dataclasses import dataclass
from textwrap import indent
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from mdmscale.engine.engine import Engine
from mdmscale.evaluation.tasks.running import answer_items
from mdmscale.evaluation.tasks.summary import summarise
from mdmscale.models.backbone import Backbone
from mdmscale.parallel.ranks import Ranks
from mdmscale.training.task_questions import Questions, described

if TYPE_CHECKING:
    from mdmscale.training.metrics import MetricsWriter, ProgressLine

METRICS = ("accuracy", "no_answer", "tokens_per_forward")
NUM_SHOWN = 3
BATCH_SIZE = 16


@dataclass(frozen=True)
class TaskAnswers:
    """The records of all answers, by the label of their task. Every rank has all of them."""

    records: dict[str, list[dict[str, Any]]]

    def metrics(self) -> dict[str, float]:
        """What metrics.jsonl and TensorBoard get."""
        found: dict[str, float] = {}
        for label, records in self.records.items():
            summary = summarise(label, "", records)
            found |= {f"task_{label}_{name}": summary[name] for name in METRICS}
        return found

    def show(self, writer: "MetricsWriter", line: "ProgressLine", step: int) -> None:
        """Print each task's accuracy, and give TensorBoard the first answers as text."""
        metrics = self.metrics()
        for label, records in self.records.items():
            accuracy, without = metrics[f"task_{label}_accuracy"], metrics[f"task_{label}_no_answer"]
            line.say(f"step {step}: {label} {accuracy:.1%} of {len(records)} right, {without:.1%} no answer")
            writer.text(f"task_{label}", "\n\n---\n\n".join(map(as_markdown, records[:NUM_SHOWN])), step)


class SamplingModel:
    """The model in training, called as sampling calls a Hugging Face model.

    It computes outside of inference mode, in which parameters that ZeRO-3 gathers could not be trained again.
    """

    def __init__(self, engine: Engine, backbone: Backbone, ranks: Ranks) -> None:
        self.engine = engine
        self.config = backbone.model.config
        self.device = ranks.device
        self._tensor_group, self._tensor_size = ranks.tp_group, ranks.tp_size

    def __call__(
        self,
        input_ids: torch.Tensor,  # [rows, length]
        attention_mask: torch.Tensor | None,  # [rows, length]
        position_ids: torch.Tensor,  # [rows, length]
        logits_to_keep: torch.Tensor,  # [columns]
        use_cache: bool,
    ) -> SimpleNamespace:
        """`logits`: [rows, columns, vocab]."""
        assert not use_cache
        rows, length = input_ids.shape
        with torch.inference_mode(False), torch.no_grad():
            first = torch.arange(rows, device=input_ids.device)[:, None] * length
            logits = self.engine(
                input_ids=input_ids.clone(),
                attention_mask=None if attention_mask is None else attention_mask.clone(),
                position_ids=position_ids.clone(),
                positions=(first + logits_to_keep.clone()).flatten(),  # [rows * columns]
            )
            return SimpleNamespace(logits=self._whole(logits).view(rows, len(logits_to_keep), -1))

    def _whole(self, logits: torch.Tensor) -> torch.Tensor:
        """The logits of the whole vocabulary, of which each tensor-parallel rank has computed a part."""
        if self._tensor_group is None:
            return logits
        parts = [torch.empty_like(logits) for _ in range(self._tensor_size)]
        dist.all_gather(parts, logits.contiguous(), group=self._tensor_group)
        return torch.cat(parts, dim=-1)


def answer(
    engine: Engine, backbone: Backbone, questions: list[Questions], zero_stage: int, ranks: Ranks
) -> TaskAnswers:
    """Answer all questions. Every rank calls this.

    Up to ZeRO-2 the data ranks share the questions. Under ZeRO-3 a forward is a collective, so all ranks
    answer the same ones together.
    """
    loaded = described(backbone, SamplingModel(engine, backbone, ranks))
    first, share = (0, 1) if zero_stage == 3 else (ranks.dp_rank, ranks.dp_size)
    was_training = engine.training
    engine.eval()
    mine: dict[str, dict[int, dict[str, Any]]] = {}
    for each in questions:
        places = range(first, len(each.items), share)
        items = [each.items[place] for place in places]
        answered = answer_items(loaded, each.task, items, each.options, BATCH_SIZE)
        mine[each.label] = {
            place: answer.record(each.task, "") for place, answer in zip(places, answered, strict=True)
        }
    engine.train(was_training)
    gathered: list[Any] = [None] * ranks.world_size
    dist.all_gather_object(gathered, mine)
    records = {}
    for label in mine:
        found = {place: record for part in gathered for place, record in part[label].items()}
        records[label] = [found[place] for place in sorted(found)]
    return TaskAnswers(records)


def as_markdown(record: dict[str, Any]) -> str:
    """An answer as TensorBoard shows it."""
    mark = "right" if record["correct"] else "wrong" if record["extracted"] is not None else "no answer"
    question, response = (indent(record[part], "    ") for part in ("prompt", "response"))
    return f"{question}\n\n{response}\n\n**{mark}**; expected `{record['expected']}`"
