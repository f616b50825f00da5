"""Choose the mask token of an imported model: the requested, the declared, a reserved or a new one."""

import re
from dataclasses import dataclass
from typing import Any

from mdmscale.models.backbone import MASK_TOKEN
from mdmscale.models.tokenizer import num_token_ids
from mdmscale.system.errors import UserError

# <|reserved_special_token_7|> of Llama 3, [control_8] of Mistral, <unused3> of Gemma, <|extra_0|> of Qwen
RESERVED = re.compile(r"[<\[]\|?(reserved|unused|control|extra|special)[a-z_-]*\d+\|?[>\]]", re.IGNORECASE)


@dataclass(frozen=True)
class MaskToken:
    """The mask token of an imported model.

    Attributes:
        text: the token in the tokenizer; None where the tokenizer has no token of this id.
        is_added: the tokenizer does not have the token yet.
        is_untrained: its embedding was never trained, so the import sets it to the mean of all embeddings.
        reason: why this token was chosen.
    """

    token_id: int
    text: str | None
    is_added: bool
    is_untrained: bool
    reason: str


def choose_mask_token(
    requested: str | None, declared: int | None, tokenizer: Any | None, num_rows: int
) -> MaskToken:
    """Choose the first of these: `--mask-token` (an id or a text), the mask token of the model's config, that
    of the tokenizer, an unused reserved token, a new token.

    Raises:
        UserError: where the id has no embedding, or a tokenizer is needed and there is none.
    """
    if requested is not None and not requested.isdecimal():
        return _by_text(requested, tokenizer, num_rows)
    known = int(requested) if requested is not None else declared
    reason = "requested" if requested is not None else "declared by the model"
    if known is None and tokenizer is not None and tokenizer.mask_token_id is not None:
        known, reason = tokenizer.mask_token_id, "declared by the tokenizer"
    if known is not None:
        return _by_id(known, tokenizer, num_rows, reason)
    if tokenizer is None:
        raise UserError("--mask-token: give an id, as the folder has no tokenizer to choose one from")
    for text, token_id in sorted(tokenizer.get_added_vocab().items(), key=lambda item: item[1]):
        if RESERVED.fullmatch(text) and token_id < num_rows and not _is_in_use(text, tokenizer):
            return MaskToken(token_id, text, False, True, "an unused reserved token")
    return MaskToken(num_token_ids(tokenizer), MASK_TOKEN, True, True, "added")


def _by_text(text: str, tokenizer: Any | None, num_rows: int) -> MaskToken:
    if tokenizer is None:
        raise UserError(f"--mask-token {text}: give an id, as the folder has no tokenizer to find it in")
    token_id = tokenizer.get_vocab().get(text)
    if token_id is None:
        return MaskToken(num_token_ids(tokenizer), text, True, True, "added, as requested")
    return _by_id(token_id, tokenizer, num_rows, "requested")


def _by_id(token_id: int, tokenizer: Any | None, num_rows: int, reason: str) -> MaskToken:
    if token_id >= num_rows:
        raise UserError(f"mask token {token_id}: the model has only {num_rows} embeddings; see --mask-token")
    if tokenizer is None:
        return MaskToken(token_id, None, False, False, reason)
    if token_id >= num_token_ids(tokenizer):
        return MaskToken(token_id, None, False, True, f"{reason}; no token of the tokenizer has this id")
    return MaskToken(token_id, tokenizer.convert_ids_to_tokens(token_id), False, False, reason)


def _is_in_use(text: str, tokenizer: Any) -> bool:
    template = tokenizer.chat_template or ""
    templates = template.values() if isinstance(template, dict) else [template]
    return text in tokenizer.special_tokens_map.values() or any(text in each for each in templates)
