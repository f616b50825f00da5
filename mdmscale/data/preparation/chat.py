"""Conversations of SFT data: their token ids, and which of them are trained.

The ids are those of the rendered conversation, up to the end of the last answer. What comes before that
answer is encoded as sampling encodes it, so `train_on` decides what is trained and never changes an id.

A turn of the assistant begins where the template's prompt for it ends, and it ends with the token that closes
the turn. Where the template marks the answers with {% generation %} tags, those say what is trained.
"""

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mdmscale.config.data import TrainOn
from mdmscale.models.chat import Chat
from mdmscale.models.messages import answer_texts
from mdmscale.models.prompts import without_space_after_special
from mdmscale.models.special_tokens import MARKS, mark, special_pattern, special_texts, unhide
from mdmscale.models.text_reader import Tokens, encode_continued, rendered_reader
from mdmscale.system.errors import UserError

Span = tuple[int, int]  # (start, stop) in the rendered conversation

_MEND = "mark the answers in the template with {% generation %} tags, or give prompt and response"


def encode_conversation(
    tokenizer: Any, messages: Any, tools: Any, train_on: TrainOn, num_prompt: int | None = None
) -> tuple[list[int], list[bool]]:
    """The token ids of a conversation that ends with the assistant's turn, and which of them are trained.

    Args:
        num_prompt: how many of the messages are the prompt, of which nothing is trained; None: none, but
            under `completion` all up to the first user's.

    Raises:
        UserError: where messages, tools and template do not fit, or what is trained is not what the
            assistant said.
    """
    chat = Chat.of(tokenizer, messages, tools)
    if not chat.messages or chat.messages[-1]["role"] != "assistant":
        raise UserError("the last of 'messages' must be the assistant's")
    answers = [
        number
        for number, message in enumerate(chat.messages)
        if message["role"] == "assistant" and number >= _first_trained(chat, train_on, num_prompt)
    ]
    answers = answers[-1:] if train_on == "last" else answers
    for answer in answers:
        if not any(text.strip() for text in answer_texts(chat.messages[answer])):
            raise UserError(f"the response is empty (message {answer + 1}); leave the line out")
    turns = _Turns(chat)
    spans = turns.spans(answers, is_whole=train_on == "completion")
    stop = len(without_space_after_special(tokenizer, turns.whole[: spans[-1][1]]))
    spans = [(start, min(end, stop)) for start, end in spans]
    texts = [turns.whole[start:end] for start, end in spans]
    if len(texts) == len(answers):
        for answer, text in zip(answers, texts, strict=True):
            _check_trained(chat, [answer], text)
    else:  # several tags in an answer, or one span for all of them
        _check_trained(chat, answers, "".join(texts))
    return _encode(tokenizer, turns.whole[:stop], turns.last_start, spans)


def _first_trained(chat: Chat, train_on: TrainOn, num_prompt: int | None) -> int:
    """The number of the first message that may be trained."""
    if num_prompt is not None or train_on != "completion":
        return num_prompt or 0
    roles = [message["role"] for message in chat.messages]
    return roles.index("user") + 1 if "user" in roles else 0


@dataclass(frozen=True)
class _Turns:
    """Where the assistant's turns lie in a rendered conversation."""

    chat: Chat

    @cached_property
    def whole(self) -> str:
        return self.chat.render()

    @cached_property
    def last_start(self) -> int:
        """Where the last answer begins."""
        return self.start(len(self.chat.messages) - 1)

    def spans(self, answers: list[int], *, is_whole: bool) -> list[Span]:
        """What is trained of the answers, in order; with `is_whole` all from the first to the last one."""
        tagged = self.chat.marked_spans()
        if tagged is None:
            if is_whole:
                return [(self.start(answers[0]), self.stop(answers[-1]))]
            return [(self.start(answer), self.stop(answer)) for answer in answers]
        first = self._first_tagged(answers, is_whole=is_whole)
        kept = [
            (max(start, self.last_start) if stop > self.last_start else start, stop)
            for start, stop in tagged
            if stop > first
        ]
        if not kept:
            raise UserError("the {% generation %} tags of the chat template mark nothing of the answer")
        return [(first, kept[-1][1])] if is_whole else kept

    def _first_tagged(self, answers: list[int], *, is_whole: bool) -> int:
        """Where spans of these answers can begin."""
        if is_whole or len(answers) == 1:
            return self.start(answers[0])
        earlier = [message["role"] for message in self.chat.messages[: answers[0]]]
        return len(self.chat.first(answers[0]).render()) if "assistant" in earlier else 0

    def start(self, answer: int) -> int:
        """Where message number `answer` begins: behind the prompt that the template writes for it."""
        is_last = answer == len(self.chat.messages) - 1
        if answer:
            try:
                prompt = self.chat.render_prompt(answer)
            except UserError:
                if is_last:
                    raise
            else:
                if self.whole.startswith(prompt):
                    return len(prompt)
                if is_last:
                    raise UserError(
                        "the chat template renders the whole conversation differently from its prompt, so "
                        "the model would be sampled from another prompt than it was trained on; give prompt "
                        "and response instead"
                    )
        if (start := self._mark(2 * answer)) is None:
            raise UserError(f"cannot tell where the answer of message {answer + 1} begins; {_MEND}")
        return start

    def stop(self, answer: int) -> int:
        """Where message number `answer` ends: behind its content and the special token that closes it."""
        stop = None if self.chat.messages[answer].get("tool_calls") else self._mark(2 * answer + 1)
        if stop is not None:
            pattern = special_pattern(special_texts(self.chat.tokenizer))
            closing = re.compile(rf"\s*(?:{pattern.pattern})").match(self.whole, stop)
            return closing.end() if closing else stop
        rendered = self.chat.first(answer + 1).render()
        if not self.whole.startswith(rendered) or self._appends_prompt(answer):
            raise UserError(f"cannot tell where the answer of message {answer + 1} ends; {_MEND}")
        return len(rendered.rstrip())

    def _appends_prompt(self, answer: int) -> bool:
        """Whether the template writes the start of an answer behind the messages, though it is not asked."""
        if not answer:
            return False
        prompt = self.chat.render_prompt(answer)
        texts = special_texts(self.chat.tokenizer)
        header = prompt[max((prompt.rfind(text) for text in texts), default=0) :]
        return header not in texts and self.chat.first(answer + 1).render().endswith(header)

    def _mark(self, number: int) -> int | None:
        """Where mark `number` lies; None where the template has dropped it."""
        if self._marked is None or (place := self._marked.find(mark(number))) < 0:
            return None
        return place - len(MARKS.findall(self._marked[:place]))

    @cached_property
    def _marked(self) -> str | None:
        """The conversation with marks 2k and 2k + 1 around the content of the assistant's message k.

        None where the template then writes another text. The marks lie inside of white space, which
        templates trim.
        """
        marked = [
            {**message, "content": _marked_content(message["content"], number)}
            if message["role"] == "assistant"
            else message
            for number, message in enumerate(self.chat.messages)
        ]
        try:
            rendered = Chat(self.chat.tokenizer, marked, self.chat.tools).render()
        except UserError:
            return None
        return rendered if MARKS.sub("", rendered) == self.whole else None


def _marked_content(content: str, number: int) -> str:
    inner = content.strip()
    before, _, after = content.partition(inner) if inner else (content, "", "")
    return f"{before}{mark(2 * number)}{inner}{mark(2 * number + 1)}{after}" if inner else content


def _check_trained(chat: Chat, answers: list[int], trained: str) -> None:
    """Check that what is trained has the texts of the answers, in order. White space does not count."""
    trained, place = _squeezed(trained), 0
    for answer in answers:
        stops = [place]
        for text in answer_texts(chat.messages[answer]):
            found = trained.find(_squeezed(text), place)
            if found < 0:
                missing = unhide(chat.tokenizer, _first_missing(text, trained[place:]))
                raise UserError(
                    f"the chat template drops or changes what the assistant says in message {answer + 1}: "
                    f"{missing!r} is not in what is trained; give prompt and response, or use a template "
                    "that keeps it"
                )
            stops.append(found + len(_squeezed(text)))
        place = max(stops)


def _first_missing(text: str, trained: str) -> str:
    """The words of a text from the first one on that is not trained, cut to 60 characters."""
    words = text.split()
    kept = next(size for size in range(len(words) - 1, -1, -1) if "".join(words[:size]) in trained)
    return " ".join(words[kept:])[:60]


def _squeezed(text: str) -> str:
    return "".join(text.split())


def _encode(tokenizer: Any, whole: str, last_start: int, spans: list[Span]) -> tuple[list[int], list[bool]]:
    """The ids of a conversation whose last answer begins at `last_start`; and whether `spans` hold each."""
    reader = rendered_reader(tokenizer, whole)
    before, after = encode_continued(tokenizer, reader, whole[:last_start], whole[last_start:])
    edges = [(reader.length(whole[:start]), reader.length(whole[:stop])) for start, stop in spans]
    if spans[-1][0] <= last_start and spans[-1][1] == len(whole):  # nearly always; no need to look
        is_cut = spans[-1][0] == last_start  # then nothing of it lies before
        return before.ids + after.ids, _within(before, edges[:-1] if is_cut else edges) + [True] * len(
            after.ids
        )
    return before.ids + after.ids, _within(before, edges) + _within(after, edges)


def _within(tokens: Tokens, edges: list[Span]) -> list[bool]:
    """Whether each token has a character in one of the spans."""
    if not edges:
        return [False] * len(tokens.ids)
    if (places := tokens.spans) is None:
        raise UserError("which tokens are the assistant's cannot be told without a tokenizer.json")
    return [
        any(start < right and max(stop, start + 1) > left for left, right in edges) for start, stop in places
    ]
