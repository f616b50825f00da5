"""Conversations of SFT data as texts: what comes before the assistant's last turn, and that turn."""

from typing import Any

from mdmscale.data.preparation.jsonl import Record
from mdmscale.models.prompts import render_conversation, render_prompt
from mdmscale.system.errors import UserError


def render_sample(record: Record, tokenizer: Any) -> tuple[str, str]:
    """The (prompt, response) texts of a line's `messages`, whose last one is the assistant's.

    Raises:
        UserError: naming file and line, where the messages or the chat template do not fit.
    """
    messages = _checked_messages(record)
    try:
        prompt, whole = render_prompt(tokenizer, messages[:-1]), render_conversation(tokenizer, messages)
    except UserError as error:
        raise UserError(f"{record.where}: {error}") from None
    if not whole.startswith(prompt):
        raise UserError(
            f"{record.where}: the chat template renders the whole conversation differently from its prompt, "
            "so the response cannot be told apart; give prompt and response instead"
        )
    response = whole[len(prompt) :]
    # EOS must come last, but many templates write a newline after their end-of-turn token.
    closed = response.rstrip().endswith(tokenizer.eos_token)
    return prompt, response.rstrip() if closed else response


def _checked_messages(record: Record) -> list[Any]:
    messages = record.values["messages"]
    if not all(isinstance(message, dict) and isinstance(message.get("role"), str) for message in messages):
        raise UserError(f"{record.where}: each of 'messages' must be an object with 'role' and 'content'")
    if not messages or messages[-1]["role"] != "assistant":
        raise UserError(f"{record.where}: the last of 'messages' must be the assistant's")
    if not str(messages[-1].get("content") or "").strip():
        raise UserError(f"{record.where}: the response is empty; leave the line out")
    return messages
