"""Chat templates as transformers renders them. Only the child process of system/bounded.py imports this.

A template comes with a tokenizer and is a program: it may loop for ever or ask for any memory.
"""

from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template


def render(template: str, messages: list[dict[str, Any]], options: dict[str, Any]) -> list[Any]:
    """[the rendered text, the (start, stop) of what {% generation %} tags mark in it].

    Args:
        options: of transformers' `render_jinja_template`.
    """
    # Typed Any: the annotation lacks the spans.
    both: Any = render_jinja_template(conversations=[messages], chat_template=template, **options)
    texts, spans = both
    return [texts[0], spans[0] if spans else []]
