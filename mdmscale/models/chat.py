"""Conversations in the tokenizer's chat template: as text, and as the token ids of a prompt.

In a rendered text the special tokens of messages are hidden (models/special_tokens.py), so all that are
written out are the template's. Those are read and no others (models/text_reader.py). A template is a program
of whoever made the tokenizer, so it runs with limits on its time and memory (system/bounded.py).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from mdmscale.models.messages import Message, check_messages, check_tools
from mdmscale.models.special_tokens import hide
from mdmscale.models.text_reader import rendered_reader
from mdmscale.system.bounded import BoundedError, bounded
from mdmscale.system.errors import UserError, first_line

_RENDER = "mdmscale.models.chat_rendering:render"
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
        return self._render(self.messages)[0]

    def render_prompt(self, num_messages: int | None = None) -> str:
        """The first messages (all, if not given), up to where the assistant's answer begins.

        Raises:
            UserError: as `render`, and where there are no messages.
        """
        return self._render(self.messages[:num_messages], add_generation_prompt=True)[0]

    def render_open(self) -> str:
        """The conversation with its last message left open, to be continued.

        Raises:
            UserError: as `render`.
        """
        return self._render(self.messages, continue_final_message=True)[0]

    def first(self, num_messages: int) -> "Chat":
        """The conversation of the first messages."""
        return Chat(self.tokenizer, self.messages[:num_messages], self.tools)

    def marked_spans(self) -> list[tuple[int, int]] | None:
        """The (start, stop) of `render()` that the template's {% generation %} tags mark; None without tags.

        Raises:
            UserError: as `render`.
        """
        if not _GENERATION_TAG.search(self.tokenizer.get_chat_template(tools=self.tools)):
            return None
        rendered, spans = self._render(self.messages, return_assistant_tokens_mask=True)
        if rendered != self.render():
            raise UserError(
                "the chat template renders this conversation in two ways, so its tags mean nothing"
            )
        return [(start, stop) for start, stop in spans if start < stop]

    def _render(self, messages: Sequence[Message], **options: bool) -> tuple[str, list[list[int]]]:
        """The text, and the spans of tags if they are asked for, with options of transformers."""
        if not messages:
            raise UserError("a conversation needs at least one message before the answer")
        try:
            template = self.tokenizer.get_chat_template(tools=self.tools)
            options_and_tokens = {"tools": self.tools, **options, **self.tokenizer.special_tokens_map}
            text, spans = bounded(_RENDER, template, list(messages), options_and_tokens)
        except (BoundedError, ValueError) as error:
            raise UserError(f"the chat template refuses the messages: {first_line(error)}") from None
        return text, spans


def chat_prompt_ids(tokenizer: Any, messages: Any, tools: Any = None) -> list[int]:
    """The token ids of a conversation, up to where the assistant's answer begins.

    Raises:
        UserError: where there is no template, or it does not fit the messages.
    """
    prompt = Chat.of(tokenizer, messages, tools).render_prompt()
    return rendered_reader(tokenizer, prompt).encode(prompt).ids
