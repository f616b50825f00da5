"""Sources as tokens to score, with the UTF-8 bytes that they stand for.

- A text, or a document of a corpus: BOS before it is given, where the tokenizer opens texts so. The text's
  own tokens are scored, and no EOS. Texts longer than the model are scored in windows that add up.
- A response: its prompt is given, and its tokens are scored, with the EOS that SFT training adds. EOS is a
  token of the bound, but it has no bytes.
- Choices: each is a response without EOS.
"""

from dataclasses import dataclass

import numpy as np

from mdmscale.config.data import SpecialTokens
from mdmscale.data.preparation.jsonl import Record
from mdmscale.data.preparation.sft_record import encode_record
from mdmscale.evaluation.likelihood.scoring import Scored, check_item, windows
from mdmscale.evaluation.likelihood.sources import Source
from mdmscale.models.opening import LoadedModel
from mdmscale.models.prompts import opening_ids, pair_ids
from mdmscale.models.text_reader import TextReader
from mdmscale.system.errors import UserError

MAX_PROBLEMS = 10


@dataclass(frozen=True)
class Target:
    """What is scored as one: the windows of a text, a response, or a choice. num_bytes: of its UTF-8 text."""

    windows: list[Scored]
    num_bytes: int


@dataclass(frozen=True)
class Encoder:
    """How sources become targets.

    Attributes:
        max_length: tokens of a window, those given included; None: as many as the model takes.
        context: given tokens before each later window.
    """

    loaded: LoadedModel
    special_tokens: SpecialTokens = "refuse"
    max_length: int | None = None
    context: int = 0

    def targets(self, source: Source) -> list[Target]:
        """The targets of a source: one, or one for each choice.

        Raises:
            UserError: naming where the source is, if it does not fit the model.
        """
        try:
            match source.kind:
                case "text":
                    found = [self._text(source.values["text"])]
                case "document":
                    found = [self._document(source.values["ids"])]
                case "choices":
                    prompt = source.values["prompt"]
                    found = [self._choice(prompt, choice) for choice in source.values["choices"]]
                case _:
                    found = [self._response(source)]
        except UserError as error:
            if source.kind == "response":  # it names the record
                raise
            raise UserError(*(f"{source.where}: {problem}" for problem in error.problems)) from None
        for target in found:
            for window in target.windows:
                check_item(self.loaded, window, source.where)
        return found

    def _text(self, text: str) -> Target:
        ids = TextReader(self.loaded.tokenizer, is_read=False).encode(text).ids
        return Target(self._windows(ids), len(text.encode()))

    def _document(self, ids: list[int]) -> Target:
        opening = opening_ids(self.loaded.tokenizer)
        if opening and ids[: len(opening)] == opening:
            ids = ids[len(opening) :]
        if ids and ids[-1] == self.loaded.tokenizer.eos_token_id:
            ids = ids[:-1]
        return Target(self._windows(ids), self._num_bytes(ids))

    def _windows(self, ids: list[int]) -> list[Scored]:
        if not ids:
            raise UserError("is empty; leave it out")
        most = self.max_length or self.loaded.description.max_length
        return windows(opening_ids(self.loaded.tokenizer), ids, most, self.context)

    def _choice(self, prompt: str, choice: str) -> Target:
        ids, choice_ids = pair_ids(self.loaded.tokenizer, prompt, choice, self.special_tokens)
        return Target([Scored(ids, choice_ids)], len(choice.encode()))

    def _response(self, source: Source) -> Target:
        sample = encode_record(
            Record(source.values, source.where, 0), self.loaded.tokenizer, special_tokens=self.special_tokens
        )
        assert sample is not None  # that is for masks in texts, which are refused
        first = sample.prompt_length
        if not np.all(sample.trained[first:]):
            raise UserError(f"{source.where}: the answer is in several parts, and only one is scored")
        ids = sample.token_ids.tolist()
        return Target([Scored(ids[:first], ids[first:])], self._num_bytes(ids[first:]))

    def _num_bytes(self, ids: list[int]) -> int:
        text = self.loaded.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return len(text.encode())


def encode_sources(encoder: Encoder, sources: list[Source]) -> list[list[Target]]:
    """The targets of every source.

    Raises:
        UserError: naming each source that does not fit the model, up to MAX_PROBLEMS.
    """
    found: list[list[Target]] = []
    problems: list[str] = []
    for source in sources:
        try:
            found.append(encoder.targets(source))
        except UserError as error:
            problems += error.problems
    if problems:
        more = len(problems) - MAX_PROBLEMS
        raise UserError(*problems[:MAX_PROBLEMS], *([f"and {more} more like these"] if more > 0 else []))
    return found
