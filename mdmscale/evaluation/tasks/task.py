"""A task: its questions, what is trained, and what an answer is worth."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from mdmscale.data.preparation.formats import read_records
from mdmscale.data.preparation.inputs import HubDataset
from mdmscale.data.preparation.jsonl import Record
from mdmscale.data.preparation.tables import shown_names
from mdmscale.evaluation.tasks.extraction import EXTRACTORS, Answer
from mdmscale.evaluation.tasks.generated import Generated
from mdmscale.evaluation.tasks.scoring import SCORERS, Score, can_be_scored
from mdmscale.evaluation.tasks.tables import read_table
from mdmscale.evaluation.tasks.task_file import Named, TaskFile
from mdmscale.evaluation.tasks.templates import as_text, fields_of, fill
from mdmscale.models.hub import UnreachableError
from mdmscale.system.errors import UserError

MAX_PROBLEMS = 10
Split = Literal["train", "test"]


@dataclass(frozen=True)
class Item:
    """A question.

    Attributes:
        id: the record's own `id`, or its number among the rows that were read.
        prompt: for a chat; `plain_prompt` for a model without a template.
        expected: what the answer is compared with.
        values: the record.
    """

    id: str | int
    prompt: str
    plain_prompt: str
    expected: Answer
    values: dict[str, Any]


@dataclass(frozen=True)
class Judged:
    """A response's answer (None: it has none) and what it is worth."""

    extracted: Answer | None
    score: Score


@dataclass(frozen=True)
class Task:
    """A task file under its name. `tables` is the folder of the tables that records name, if it was given."""

    name: str
    file: TaskFile
    tables: Path | None = None

    def items(self, data: Path | None = None, limit: int | None = None, split: Split = "test") -> list[Item]:
        """The questions of a file, or where the task says that they are; the first `limit` of them.

        Raises:
            UserError: where there is no data, a record lacks a field, or its answer cannot be scored.
        """
        items, problems = [], []
        for number, record in enumerate(self._records(data, limit, split)):
            try:
                items.append(self._item(number, record))
            except UserError as error:
                problems += [f"{record.where}: {problem}" for problem in error.problems]
        if problems:
            more = len(problems) - MAX_PROBLEMS
            raise UserError(*problems[:MAX_PROBLEMS], *([f"and {more} more like these"] if more > 0 else []))
        if not items:
            raise UserError(f"task {self.name}: {data or 'its data'} has no records")
        return items

    def judge(self, item: Item, response: str) -> Judged:
        """Find the answer of a response and score it. Without an answer there are no points."""
        found = first_found(self.file.extract, response)
        scorer: Named = self.file.score
        if self.file.data.reasoning_gym:
            text = "" if found is None else as_text(found)
            points = 0.0 if found is None else self._own_scores.score(text, item.values)
            return Judged(found, Score(points, 1, points == 1.0))
        score = SCORERS[scorer.name](found if found is not None else [], item.expected, scorer.argument)
        return Judged(found, score if found is not None else Score(0.0, score.possible, False))

    def trained(self, item: Item, chat: bool) -> dict[str, Any]:
        """The SFT record of an item: the tokens of its prompt are those that evaluation gives the model.

        Raises:
            UserError: where the task or the record has nothing to train.
        """
        if self.file.response is None:
            raise UserError(f"task {self.name}: has no `response`, so there is nothing to train")
        try:
            self._check_fields(item.values, fields_of(self.file.response))
        except UserError as error:
            raise UserError(f"item {item.id}: {error}") from None
        response = fill(self.file.response, item.values)
        if not chat:
            return {"prompt": item.plain_prompt, "response": response}
        user, assistant = (("user", item.prompt), ("assistant", response))
        return {"messages": [{"role": role, "content": content} for role, content in (user, assistant)]}

    def uses_chat(self, tokenizer: Any) -> bool:
        """Whether prompts go through the tokenizer's chat template."""
        wish = self.file.chat
        return bool(tokenizer.chat_template) if wish == "auto" else wish == "always"

    @cached_property
    def _own_scores(self) -> Generated:
        """What scores the answers of a generated task."""
        data = self.file.data
        assert data.reasoning_gym is not None
        return Generated(data.reasoning_gym, data.options, 1, "test")

    def _records(self, data: Path | None, limit: int | None, split: Split) -> Iterable[Record]:
        source = self.file.data
        if data is not None or source.file is not None:
            path = Path(source.file or "") if data is None else data
            if not path.is_file():
                raise UserError(f"task {self.name}: --data {path}: no such file")
            return islice(read_records(path, split), limit)
        if source.reasoning_gym is not None:
            dataset = Generated(source.reasoning_gym, source.options, limit, split)
            where = f"task {self.name}"
            return (Record(entry, f"{where}, item {at}", 0) for at, entry in enumerate(dataset.entries()))
        rows = source.train if split == "train" else source.test
        if source.hub is None or rows is None:
            raise UserError(f"task {self.name}: has no data of its own; give it with --data FILE")
        return self._hub_records(HubDataset(source.hub, source.config), rows.split, rows.rows, limit)

    def _hub_records(
        self, dataset: HubDataset, split: str, rows: list[int] | None, limit: int | None
    ) -> Iterator[Record]:
        first, end = rows or (0, None)
        if limit is not None:
            end = first + limit if end is None else min(end, first + limit)
        try:
            yield from islice(read_records(dataset, split), first, end)
        except UnreachableError as error:
            raise UnreachableError(
                *error.problems, f"task {self.name}: or give a file of the same records with --data FILE"
            ) from None

    def _item(self, number: int, record: Record) -> Item:
        file, values = self.file, dict(record.values)
        if file.data.table is not None:
            values["table"] = (
                "" if self.tables is None else read_table(self.tables, values.get(file.data.table))
            )
        plain = file.prompt if file.plain_prompt is None else file.plain_prompt
        # Some generated questions have many answers and state none; the package scores them all the same.
        needs_answer = file.data.reasoning_gym is None
        needed = [*fields_of(file.prompt), *fields_of(plain), *([file.answer.field] if needs_answer else [])]
        self._check_fields(values, needed)
        own_id = values.get("id")
        item_id = own_id if isinstance(own_id, str | int) else number
        answer = values.get(file.answer.field)
        expected = "" if answer is None else self._expected(answer)
        return Item(item_id, fill(file.prompt, values), fill(plain, values), expected, values)

    def _check_fields(self, values: dict[str, Any], needed: list[str]) -> None:
        missing = [name for name in dict.fromkeys(needed) if values.get(name) is None]
        if missing:
            raise UserError(
                f"has no {' and no '.join(map(repr, missing))}, which task {self.name} needs; "
                f"it has {shown_names(name for name in values if values[name] is not None)}"
            )

    def _expected(self, value: Any) -> Answer:
        answer = self.file.answer
        where = f"the expected answer in {answer.field!r}"
        expected: Answer | None
        if answer.extract:
            if not isinstance(value, str):
                raise UserError(f"{where} is no text, but task {self.name} searches it for the answer")
            expected = first_found(answer.extract, value)
        else:
            expected = [as_text(each) for each in value] if isinstance(value, list) else as_text(value)
        scorer: Named = self.file.score
        is_own = self.file.data.reasoning_gym is not None
        if expected is None or not (is_own or can_be_scored(scorer.name, expected)):
            shown = as_text(value).strip().replace("\n", " ")[-60:]
            raise UserError(f"{where} cannot be scored: no answer for {scorer.name!r} in {shown!r}")
        return expected


def first_found(extractors: list[Named], text: str) -> Answer | None:
    """What the first extractor finds that finds anything."""
    for named in extractors:
        found = EXTRACTORS[named.name](text, named.argument)
        if found is not None:
            return found
    return None
