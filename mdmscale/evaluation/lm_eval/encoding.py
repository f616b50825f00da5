"""Texts of lm-evaluation-harness as token ids, cut to what the model can take.

The harness has models tokenise "context" and "context + continuation", and takes the rest as the
continuation. A text opens as the tokenizer opens texts (BOS or nothing) and stays open (no EOS). Special
tokens that are written out are read, because the harness gives a chat template's output as text. Only the
mask token is not: in a question it is ordinary text.
"""

from typing import Any

from mdmscale.evaluation.likelihood.scoring import Scored
from mdmscale.models.chat import Chat
from mdmscale.models.opening import LoadedModel
from mdmscale.models.prompts import opening_ids
from mdmscale.models.special_tokens import hide
from mdmscale.models.text_reader import rendered_reader
from mdmscale.system.errors import UserError
from mdmscale.system.notices import say


class Encoder:
    """Turns the harness's texts into tokens, for one model."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._tokenizer: Any = loaded.tokenizer
        # An autoregressive model may have no mask token.
        self._mask_token_id: int | None = loaded.description.mask_token_id
        self._mask_token = None if self._mask_token_id is None else loaded.mask_token
        self.max_length = loaded.description.max_length
        self.opening = opening_ids(self._tokenizer)
        self.is_rendered = False  # whether a chat template writes the texts, and with them what opens them
        self.num_cut = 0  # texts whose beginning was cut off

    def encode(self, text: str, *, opened: bool = True) -> list[int]:
        """The tokens of a text.

        Args:
            opened: put BOS in front if the tokenizer does, unless the text or a template has written it.
        """
        if self._mask_token is not None and self._mask_token in text:
            text = text.replace(self._mask_token, hide(self._tokenizer, self._mask_token))
        ids = rendered_reader(self._tokenizer, text).encode(text).ids
        size = len(self.opening)
        if not opened or self.is_rendered or ids[:size] == self.opening:
            return ids
        return [*self.opening, *ids]

    def render(self, messages: list[dict[str, str]], *, add_generation_prompt: bool) -> str:
        """A conversation in the chat template, for `encode`. Special tokens of messages stay plain text.

        Args:
            add_generation_prompt: end where the assistant's answer begins; else the last message is left open
                to be continued.

        Raises:
            UserError: where there is no template, or it refuses the messages.
        """
        self.is_rendered = True
        chat = Chat.of(self._tokenizer, messages)
        if add_generation_prompt:
            return chat.render_prompt()
        return chat.render_open()

    def scored(self, context: list[int], continuation: list[int]) -> Scored:
        """A continuation to score, behind as much of the context's end as fits.

        Raises:
            UserError: where the continuation alone is too long.
        """
        room = self.max_length - len(continuation)
        if room < 0:
            raise UserError(
                f"a continuation of {len(continuation)} tokens exceeds the model's max_position_embeddings = "
                f"{self.max_length}; leave its task out, or use a model that takes longer texts"
            )
        return Scored(self._fitting(context, room), continuation)

    def prompt(self, context: str, length: int) -> list[int]:
        """The tokens of a prompt that leaves room for `length` more; a long one loses its beginning.

        Raises:
            UserError: where there is no room for a prompt, or the mask token is a word of it.
        """
        room = self.max_length - length
        if room < 1:
            raise UserError(
                f"length = {length}: leaves no room for a prompt in the model's max_position_embeddings = "
                f"{self.max_length}; set length below it"
            )
        prompt = self._fitting(self.encode(context), room)
        if self._mask_token_id in prompt:
            raise UserError(f"a prompt contains the mask token {self._mask_token!r}, which cannot be hidden")
        return prompt

    def windows(self, text: str) -> list[Scored]:
        """A whole text to score, in windows that fit the model: each token once.

        The first window begins with what opens a text. Each further one knows one token of the window before;
        the last is as long as the model takes, so it knows more.
        """
        ids = self.encode(text, opened=False)
        ids = ids[len(self.opening) :] if self.opening and ids[: len(self.opening)] == self.opening else ids
        most, done = self.max_length, self.max_length - len(self.opening)
        windows = [Scored(self.opening, ids[:done])] if ids else []
        while done < len(ids):
            end = min(done + most - 1, len(ids))
            windows.append(Scored(ids[max(0, end - most) : done], ids[done:end]))
            done = end
        return windows

    def _fitting(self, context: list[int], room: int) -> list[int]:
        if len(context) <= room:
            return context
        if self.num_cut == 0:
            say(
                f"a prompt of {len(context)} tokens is cut to its last {room}, as the model takes "
                f"{self.max_length}; so are other long ones"
            )
        self.num_cut += 1
        return context[len(context) - room :]
