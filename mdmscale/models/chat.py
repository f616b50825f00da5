"""Conversations in the tokenizer's chat template: as text, and as the token ids of a prompt.

In a rendered text the special tokens of messages are hidden (models/special_tokens.py), so all that are
written out are the template's. Those are read and no others (models/text_reader.py).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from mdmscale.models.messages import Message, check_messages, check_tools
from mdmscale.models.special_tokens import hide
from mdmscale.models.text_reader import rendered_reader
from mdmscale.system.errors import UserError, first_line

_GENERATION_TAG = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True)
class Chat:
    """A conversation that is ready to render: checked, with its special tokens hidden."""

    tokenizer: Any
    messages: list[Message]
    tools: list[Any] | None = None

    @classmethod
    def of(cls, tokenizer: Any, messages: Any, tools: Any = None) -> Self:
        """Check a conversation.

        Raises:
            UserError: where there is no chat template, a message is malformed, or the template ignores tools.
        """
        if not tokenizer.chat_template:
            raise UserError("messages need a chat template, and this tokenizer has none")
        checked = hide(tokenizer, check_messages(messages))
        chat = cls(tokenizer, checked, hide(tokenizer, check_tools(tools)))
        if chat.tools and checked and chat.render() == cls(tokenizer, checked).render():
            raise UserError(
                "'tools' are given, but the chat template does not write them; leave them out, or use a "
                "template that does"
            )
        return chat

    def render(self) -> str:
        """The whole conversation.

        Raises:
            UserError: where the template refuses it.
        """
        return self._render(self.messages, add_generation_prompt=False)

    def render_prompt(self, num_messages: int | None = None) -> str:
        """The first messages (all, if not given), up to where the assistant's answer begins.

        Raises:
            UserError: as `render`, and where there are no messages.
        """
        return self._render(self.messages[:num_messages], add_generation_prompt=True)

    def first(self, num_messages: int) -> "Chat":
        """The conversation of the first messages."""
        return Chat(self.tokenizer, self.messages[:num_messages], self.tools)

    def marked_spans(self) -> list[tuple[int, int]] | None:
        """The (start, stop) of `render()` that the template's {% generation %} tags mark; None without tags.

        Raises:
            UserError: as `render`.
        """
        from transformers.utils.chat_template_utils import render_jinja_template

        template = self.tokenizer.get_chat_template(tools=self.tools)
        if not _GENERATION_TAG.search(template):
            return None
        # Typed Any: the annotation lacks the spans.
        both: Any = render_jinja_template(
            conversations=[self.messages],
            tools=self.tools,
            chat_template=template,
            return_assistant_tokens_mask=True,
            **self.tokenizer.special_tokens_map,
        )
        rendered, spans = both
        if rendered != [self.render()]:
            raise UserError(
                "the chat template renders this conversation in two ways, so its tags mean nothing"
            )
        return [(start, stop) for start, stop in spans[0] if start < stop]

    def _render(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        if not messages:
            raise UserError("a conversation needs at least one message before the answer")
        try:
            return self.tokenizer.apply_chat_template(
                list(messages),
                tools=self.tools,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
            )
        except Exception as error:  # a template is a program: it may fail in any way on data unforeseen
            raise UserError(f"the chat template refuses the messages: {first_line(error)}") from None


def chat_prompt_ids(tokenizer: Any, messages: Any, tools: Any = None) -> list[int]:
    """The token ids of a conversation, up to where the assistant's answer begins.

    Raises:
        UserError: where there is no template, or it does not fit the messages.
    """
    prompt = Chat.of(tokenizer, messages, tools).render_prompt()
    return rendered_reader(tokenizer, prompt).encode(prompt).ids
