"""Which token of an imported model masks: the one asked for, a declared or reserved one, or a new one."""

import re
from dataclasses import dataclass
from typing import Any

from mdmscale.models.backbone import MASK_TOKEN
from mdmscale.system.errors import UserError

# <|reserved_special_token_7|> of Llama 3, [control_8] of Mistral, <unused3> of Gemma, <|extra_0|> of Qwen
RESERVED = re.compile(r"[<\[]\|?(reserved|unused|control|extra|special)[a-z_-]*\d+\|?[>\]]", re.IGNORECASE)


@dataclass(frozen=True)
class MaskToken:
    """The mask token of an imported model.

    text: its token in the tokenizer, or None where the id has none.
    is_added: the tokenizer does not have it yet.
    is_untrained: its embedding has never been trained, so it is to be set to the mean.
    reason: why it was chosen.
    """

    token_id: int
    text: str | None
    is_added: bool
    is_untrained: bool
    reason: str


def choose_mask_token(
    requested: str | None, declared: int | None, tokenizer: Any | None, num_rows: int
) -> MaskToken:
    """The mask token of `--mask-token` (an id or a text), else of the model's config or tokenizer, else a
    reserved token that is not in use, else a new one.

    Raises:
        UserError: where the id has no embedding, or there is no tokenizer to look in.
    """
    if requested is not None and not requested.isdecimal():
        return _by_text(requested, tokenizer, num_rows)
    known = int(requested) if requested is not None else declared
    reason = "asked for" if requested is not None else "declared by the model"
    if known is None and tokenizer is not None and tokenizer.mask_token_id is not None:
        known, reason = tokenizer.mask_token_id, "declared by the tokenizer"
    if known is not None:
        return _by_id(known, tokenizer, num_rows, reason)
    if tokenizer is None:
        raise UserError("--mask-token: give an id, as the folder has no tokenizer to choose one from")
    for text, token_id in sorted(tokenizer.get_added_vocab().items(), key=lambda item: item[1]):
        if RESERVED.fullmatch(text) and token_id < num_rows and not _is_in_use(text, tokenizer):
            return MaskToken(token_id, text, False, True, "a reserved token that is not in use")
    return MaskToken(next_token_id(tokenizer), MASK_TOKEN, True, True, "added")


def _by_text(text: str, tokenizer: Any | None, num_rows: int) -> MaskToken:
    if tokenizer is None:
        raise UserError(f"--mask-token {text}: give an id, as the folder has no tokenizer to find it in")
    token_id = tokenizer.get_vocab().get(text)
    if token_id is None:
        return MaskToken(next_token_id(tokenizer), text, True, True, "added, as asked for")
    return _by_id(token_id, tokenizer, num_rows, "asked for")


def _by_id(token_id: int, tokenizer: Any | None, num_rows: int, reason: str) -> MaskToken:
    if token_id >= num_rows:
        raise UserError(f"mask token {token_id}: the model has only {num_rows} embeddings; see --mask-token")
    if tokenizer is None:
        return MaskToken(token_id, None, False, False, reason)
    if token_id >= next_token_id(tokenizer):
        return MaskToken(token_id, None, False, True, f"{reason}; no token of the tokenizer has this id")
    return MaskToken(token_id, tokenizer.convert_ids_to_tokens(token_id), False, False, reason)


def next_token_id(tokenizer: Any) -> int:
    """Above every token's id: ids may have gaps, so the number of tokens would not do."""
    return max(tokenizer.get_vocab().values()) + 1


def _is_in_use(text: str, tokenizer: Any) -> bool:
    template = tokenizer.chat_template or ""
    templates = template.values() if isinstance(template, dict) else [template]
    return text in tokenizer.special_tokens_map.values() or any(text in each for each in templates)
